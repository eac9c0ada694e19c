"""An asset's identity: a digest of its file and of the files that it names."""

import hashlib
import re
from pathlib import Path, PurePosixPath

from data_prep.failures import AssetError
from data_prep.files import Files
from data_prep.plain_formats import map_options
from shapeloom.storage import file_digest

# No pattern lets a run of blanks be divided in two ways: on a hostile file that takes hours.
_PATTERNS = {
    ".obj": rb"^[ \t]*mtllib[ \t]+([^\r\n]+)",
    ".mtl": rb"^[ \t]*map_(?:kd|d)[ \t]+([^\r\n]+)",
    ".gltf": rb'"uri"\s*:\s*("(?!data:)(?:[^"\\]|\\.)*")',
    ".dae": rb"<init_from>([^<]*)</init_from>",
    ".ply": rb"^comment TextureFile ([^\r\n]+)",
}


def content_digest(path: Path, max_bytes: int = 1 << 30) -> str:
    """SHA-256 of the file; of formats that name others, of it and those of them that are there.

    path: a file, or a member as `archive.zip/member`. Raises AssetError if it can't be read.
    """
    files = Files(path, max_bytes)
    if files.archive is None and not path.is_file():
        if path.exists():
            raise AssetError("unreadable", "is not a regular file")
        raise AssetError("missing", "there is no such file")
    try:
        if path.suffix.lower() not in _PATTERNS:
            return _digest(files, None)
        companions = _companions(files)
        digests = [_digest(files, found) for found in (None, *companions)]
    except OSError as error:
        raise AssetError("unreadable", f"can't be read: {error.strerror}") from error
    return digests[0] if not companions else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(files: Files, found: Path | str | None) -> str:
    """Of a file that `Files.find` found; None is the asset's own."""
    if files.archive is None:
        return file_digest(files.path if found is None else Path(found))
    data = files.own() if found is None else files.get(_relative(files, str(found)))
    return hashlib.sha256(data).hexdigest()


def _relative(files: Files, member: str) -> str:
    return str(PurePosixPath(member).relative_to(PurePosixPath(files.member).parent))


def _companions(files: Files) -> list[Path | str]:
    """What the asset names, directly or through its materials, in order."""
    data = files.own()
    found = _named(files, data[:4096] if files.path.suffix.lower() == ".ply" else data, files.path.suffix)
    libraries = [name for name in found if str(name).lower().endswith(".mtl")]
    for library in libraries:
        name = _relative(files, str(library)) if files.archive else str(library)
        found += _named(files, files.get(name), ".mtl")
    return found


def _named(files: Files, data: bytes, suffix: str) -> list[Path | str]:
    found: list[Path | str] = []
    for match in re.finditer(_PATTERNS[suffix.lower()], data, re.MULTILINE | re.IGNORECASE):
        # A JSON string keeps its quotes and escapes; anything odd in it just names no file.
        name = match[1].decode(errors="replace").strip().strip('"')
        if suffix == ".mtl":
            name, _, _ = map_options(name)
        try:
            file = files.find(name)
        except (AssetError, OSError):  # loading refuses the asset for it
            continue
        if file is not None and file not in found:
            found.append(file)
    return found
