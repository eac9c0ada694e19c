"""Zip archives: members read in place and never extracted, so that no name in one can lead anywhere.

An archive's path stands in a member's own like a folder's: `models.zip/chairs/a.obj`. Names that have
backslashes, from Windows, are paths all the same. Hidden files and macOS's `__MACOSX` are no members.
"""

import functools
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from data_prep.failures import AssetError

ARCHIVES = (".zip", ".sh3f")
_MAX_RATIO, _RATIO_FROM = 200, 1 << 22
"""A member that is 200 times smaller in its archive and unpacks to more than 4 MB is taken for a zip bomb."""


def check_size(name: str, size: int, max_bytes: int) -> None:
    """AssetError if a file has more than `max_bytes`."""
    if size > max_bytes:
        raise AssetError("too_large", f"{name} has {size / 1e6:.0f} MB, the limit is {max_bytes / 1e6:.0f}")


def is_hidden(name: str) -> bool:
    """Whether a file's or folder's name says that it is none of the user's: `.git`, `._a.obj`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def fold(name: str) -> str:
    """What two names have in common that differ in case or in how their accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def split_archive(path: Path) -> tuple[Path | None, str]:
    """`a/models.zip/b/c.obj` -> (`a/models.zip`, "b/c.obj"); (None, "") for a file in no archive."""
    for parent in path.parents:
        if parent.suffix.lower() in ARCHIVES and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None, ""


def read_member(archive: Path, member: str, max_bytes: int) -> bytes:
    """Bytes of one member of a zip archive. AssetError if it is damaged, too large or a zip bomb."""
    try:
        opened, by_name, _ = _opened(archive)
        info = by_name[member]
        check_size(member, info.file_size, max_bytes)
        if info.file_size > max(_RATIO_FROM, _MAX_RATIO * info.compress_size):
            ratio = info.file_size // max(info.compress_size, 1)
            raise AssetError("too_large", f"{member} unpacks to {ratio} times its size: a zip bomb")
        return opened.read(info)  # at most file_size bytes, whatever the data would unpack to
    except KeyError as error:
        raise AssetError("unreadable", f"{archive.name} has no {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise AssetError("unreadable", f"{member} of {archive.name}: {error}") from error


def find_member(archive: Path, name: str, *, any_case: bool) -> str | None:
    """The member that a path names, or with `any_case` the first that differs from it as `fold` allows."""
    _, by_name, by_folded = _opened(archive)
    if any_case:
        return by_folded.get(fold(name))
    return name if name in by_name else None


def list_members(archive: Path) -> tuple[list[str], list[tuple[str, AssetError]]]:
    """Names of an archive's files, sorted, and those whose names lead out of it with the reason.

    Raises AssetError for an archive that can't be read.
    """
    try:
        names = sorted(_opened(archive)[1])
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise AssetError("unreadable", f"not a zip archive that can be read: {error}") from error
    odd = [name for name in names if _leads_out(name)]
    message = "its name in the archive leads out of it"
    shown = [n for n in names if not _leads_out(n) and not any(map(is_hidden, PurePosixPath(n).parts))]
    return shown, [(name, AssetError("outside_folder", message)) for name in odd]


_Opened = tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo], dict[str, str]]


def _opened(archive: Path) -> _Opened:
    """An archive, and its files by their names without `./` and doubled slashes, as paths have them."""
    status = archive.stat()
    return _open_once(archive, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)  # of thousands of members, which an asset looks up one by one
def _open_once(archive: Path, mtime: int, size: int) -> _Opened:
    opened = zipfile.ZipFile(archive)
    files = (info for info in opened.infolist() if not info.is_dir() and not info.filename.endswith("\\"))
    by_name = {str(PurePosixPath(info.filename.replace("\\", "/"))): info for info in files}
    return opened, by_name, {fold(name): name for name in sorted(by_name, reverse=True)}


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.startswith("/") or ".." in parts or "\0" in name or ":" in parts[0]
