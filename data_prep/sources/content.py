"""An asset's identity: a digest of its file and of the files that it names."""

import hashlib
import re
from pathlib import Path

from data_prep.failures import AssetError
from data_prep.formats.files import Files
from data_prep.formats.mtl import MAPS, find_libraries, read_materials
from data_prep.formats.obj_text import decode, library_names
from shapeloom.storage import file_digest

# No pattern lets a run of blanks be divided in two ways: on a hostile file that takes hours.
_PATTERNS = {
    ".gltf": rb'"uri"\s*:\s*("(?!data:)(?:[^"\\]|\\.)*")',
    ".dae": rb"<init_from>([^<]*)</init_from>",
    ".ply": rb"^comment TextureFile ([^\r\n]+)",
}


def content_digest(path: Path, max_bytes: int = 1 << 30, *, root: Path | None = None) -> str:
    """SHA-256 of the file; of formats that name others, of it and those of them that are there.

    path: a file, or a member as `archive.zip/member`; root: as for `load_mesh`. Raises AssetError if it can't
    be read.
    """
    files = Files(path, max_bytes, root)
    if files.archive is None and not path.is_file():
        if path.exists():
            raise AssetError("unreadable", "is not a regular file")
        raise AssetError("missing", "there is no such file")
    try:
        digests = [_digest(files, found) for found in (None, *_companions(files))]
    except OSError as error:
        raise AssetError("unreadable", f"can't be read: {error.strerror}") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(files: Files, found: str | None) -> str:
    """Of a file that `Files.find` found; None is the asset's own."""
    if files.archive is None:
        assert files.root is not None
        return file_digest(files.path if found is None else files.root / found)
    return hashlib.sha256(files.own() if found is None else files.read(found)).hexdigest()


def _companions(files: Files) -> list[str]:
    """Where the files are that the asset names, directly or through its materials, in order."""
    suffix = files.path.suffix.lower()
    if suffix == ".obj":
        libraries = find_libraries(files, library_names(files.own()))
        materials = read_materials(files, libraries).values()
        names = [(m.picture(keyword, files)[0], m.folder) for m in materials for keyword in MAPS]
    elif suffix in _PATTERNS:
        data = files.own()[: 4096 if suffix == ".ply" else None]
        # A JSON string keeps its quotes and escapes; anything odd in it just names no file.
        words = re.findall(_PATTERNS[suffix], data, re.MULTILINE | re.IGNORECASE)
        libraries, names = [], [(decode(word).strip().strip('"'), files.folder) for word in words]
    else:
        return []
    places = (files.find(name, folder) for name, folder in dict.fromkeys(names) if name)
    return list(dict.fromkeys([*libraries, *(place for place in places if place is not None)]))
