"""What an asset may read: its own file, and files that it names in its own folder and below. Nothing else.

An asset lies in a folder or in a zip archive, whose path then stands in the asset's own like a folder's:
`models.zip/chairs/a.obj`. Members of archives are read in place and never extracted, so that no name in one
can lead anywhere. What an asset names is looked up among the files (or members) below it; links that lead out
are refused.
"""

import functools
import os
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from data_prep.failures import AssetError

ARCHIVES = (".zip", ".sh3f")
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/|file:")
_MAX_RATIO, _RATIO_FROM = 200, 1 << 22
"""A member that is 200 times smaller in its archive and unpacks to more than 4 MB is taken for a zip bomb."""


@dataclass
class Files:
    """The files of one asset. `missing` collects what it named in vain."""

    path: Path
    """Of the asset: a file, or a member as `archive.zip/member`."""
    max_bytes: int
    missing: list[str] = field(default_factory=list)
    refused: list[AssetError] = field(default_factory=list)
    """Errors of `get`, for callers whose libraries swallow them."""

    def __post_init__(self) -> None:
        self.archive, self.member = split_archive(self.path)

    def own(self) -> bytes:
        """Bytes of the asset's own file. Raises AssetError for one that is too large or not there."""
        if self.archive is not None:
            return read_member(self.archive, self.member, self.max_bytes)
        return _read(self.path, self.max_bytes)

    def get(self, name: str) -> bytes:
        """Bytes of a file that the asset names, relative to itself; URIs and plain names both serve.

        Raises AssetError for one outside the asset's folder or too large, FileNotFoundError for none.
        """
        try:
            found = self.find(name)
            if found is None:
                self.missing.append(name)
                raise FileNotFoundError(name)
            if self.archive is not None:
                return read_member(self.archive, str(found), self.max_bytes)
            return _read(Path(found), self.max_bytes)
        except AssetError as error:
            self.refused.append(error)
            raise

    def find(self, name: str) -> Path | str | None:
        """Where the named file is: a path, or an archive's member; None if there is none."""
        plain = name.strip().replace("\\", "/")
        if _ABSOLUTE.match(plain):  # a place on its author's disk: the file may have come along
            plain = plain.rpartition("/")[2]
        for candidate in dict.fromkeys((plain, unquote(plain))):  # glTF writes URIs, OBJ plain names
            if "\0" in candidate or len(candidate) > 1000:
                continue
            found = self._find_member(candidate) if self.archive is not None else self._find_file(candidate)
            if found is not None:
                return found
        return None

    def _find_file(self, name: str) -> Path | None:
        path = self.path.parent / name
        if not is_inside(self.path.parent, path):
            raise _outside(name)
        try:
            return path if path.is_file() else None
        except OSError:  # a name too long
            return None

    def _find_member(self, name: str) -> str | None:
        assert self.archive is not None
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise _outside(name)
        member = str(PurePosixPath(self.member).parent / name)
        return member if member in _opened(self.archive)[1] else None


def _outside(name: str) -> AssetError:
    return AssetError("outside_folder", f"refers to {name!r}, which lies outside the asset's folder")


def _read(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise AssetError("unreadable", f"{path.name} is not a regular file")
    check_size(path.name, path.stat().st_size, max_bytes)
    return path.read_bytes()


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, its links followed, stays in a folder; links that run in circles lead nowhere."""
    # Unlike Path.resolve, realpath doesn't mind circles.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_size(name: str, size: int, max_bytes: int) -> None:
    """AssetError if a file has more than `max_bytes`."""
    if size > max_bytes:
        raise AssetError("too_large", f"{name} has {size / 1e6:.0f} MB, the limit is {max_bytes / 1e6:.0f}")


def split_archive(path: Path) -> tuple[Path | None, str]:
    """`a/models.zip/b/c.obj` -> (`a/models.zip`, "b/c.obj"); (None, "") for a file in no archive."""
    for parent in path.parents:
        if parent.suffix.lower() in ARCHIVES and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None, ""


def read_member(archive: Path, member: str, max_bytes: int) -> bytes:
    """Bytes of one member of a zip archive. AssetError if it is damaged, too large or a zip bomb."""
    try:
        opened, by_name = _opened(archive)
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
    return [n for n in names if not _leads_out(n)], [(n, AssetError("outside_folder", message)) for n in odd]


def _opened(archive: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive, and its files by their names without `./` and doubled slashes, as paths have them."""
    status = archive.stat()
    return _open_once(archive, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)  # of thousands of members, which an asset looks up one by one
def _open_once(archive: Path, mtime: int, size: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    opened = zipfile.ZipFile(archive)
    return opened, {str(PurePosixPath(i.filename)): i for i in opened.infolist() if not i.is_dir()}


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.startswith("/") or "\\" in name or ".." in parts or "\0" in name or ":" in parts[0]
