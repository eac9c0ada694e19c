"""What an asset may read: its own file, and files that it names within the assets' root. Nothing else.

The root is the folder that was given to be prepared, or the archive that the asset lies in. A named file is
looked for where the name says, relative to the file that names it; then in any case of letters; then, since
assets are moved without their folders, by the name's last parts and in the folders where textures lie. Links
that lead out of the root are refused.
"""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from data_prep.failures import AssetError
from data_prep.formats.archives import check_size, find_member, fold, read_member, split_archive

_ABSOLUTE = re.compile(r"/|[A-Za-z]:/|file:")
_TEXTURE_FOLDERS = (
    "textures",
    "texture",
    "images",
    "image",
    "tex",
    "maps",
    "materials",
    "materials/textures",
)
"""Beside an asset or its folder, as Sketchfab (`source`, `textures`) and Google Scanned Objects have them."""


@dataclass
class Files:
    """The files of one asset. `missing` and `notes` become its warnings."""

    path: Path
    """Of the asset: a file, or a member as `archive.zip/member`."""
    max_bytes: int
    root: Path | None = None
    """Within which everything lies; none: the asset's own folder. Of no meaning in an archive."""
    missing: list[str] = field(default_factory=list)
    """What the asset named in vain, with the reason if that isn't plain."""
    notes: list[str] = field(default_factory=list)
    """What was found elsewhere than where it was named."""

    def __post_init__(self) -> None:
        self._outside = False
        self.archive, self.member = split_archive(self.path)
        if self.archive is not None:
            self.folder = PurePosixPath(self.member).parent.as_posix()
            return
        if self.root is None or not self.path.is_relative_to(self.root):
            self.root = self.path.parent
        self.folder = self.path.parent.relative_to(self.root).as_posix()

    def own(self) -> bytes:
        """Bytes of the asset's own file. Raises AssetError for one that is too large or not there."""
        if self.archive is not None:
            return read_member(self.archive, self.member, self.max_bytes)
        return _read(self.path, self.max_bytes)

    def get(self, name: str, folder: str | None = None) -> bytes:
        """Bytes of a file that the asset names; URIs and plain names both serve.

        folder: relative to the root, of the file that holds the name; none: the asset's.
        Raises FileNotFoundError for none within the root, AssetError for one too large.
        """
        found = self.find(name, folder)
        if found is None:
            raise FileNotFoundError(self.miss(name))
        return self.read(found)

    def miss(self, name: str) -> str:
        """Notes that `find` has just found no such file; returns what is to be said of it."""
        self.missing.append(f"{name}, which lies outside the assets folder" if self._outside else name)
        return self.missing[-1]

    def read(self, found: str) -> bytes:
        """Bytes of what `find` has found."""
        if self.archive is not None:
            return read_member(self.archive, found, self.max_bytes)
        assert self.root is not None
        return _read(self.root / found, self.max_bytes)

    def find(self, name: str, folder: str | None = None) -> str | None:
        """Where the named file is, relative to the root or archive; None if there is none."""
        self._outside = False
        plain = name.strip().strip('"').replace("\\", "/")
        absolute = bool(_ABSOLUTE.match(plain))  # a place on its author's disk: the file may have come along
        names = list(dict.fromkeys((plain, unquote(plain))))  # glTF writes URIs, OBJ plain names
        names = [n for n in names if n and "\0" not in n and len(n) <= 1000]
        folders = list(dict.fromkeys((self.folder if folder is None else folder, self.folder)))
        direct = [_join(at, n) for n in names for at in folders if not absolute]
        for place in direct:
            if place is not None and (found := self._look(place, any_case=False)):
                return found
        self._outside |= None in direct
        for place in (*direct, *_elsewhere(names, folders)):
            if place is not None and (found := self._look(place, any_case=True)):
                if not absolute:
                    self.notes.append(f"{name} is taken from {found}")
                return found
        return None

    def _look(self, place: str, *, any_case: bool) -> str | None:
        if self.archive is not None:
            return find_member(self.archive, place, any_case=any_case)
        assert self.root is not None
        found = _in_any_case(self.root, place) if any_case else place
        if found is None:
            return None
        try:
            there = (self.root / found).is_file()
        except OSError:  # a name too long
            return None
        if there and not is_inside(self.root, self.root / found):
            self._outside = True
            return None
        return found if there else None


def _elsewhere(names: list[str], folders: list[str]) -> Iterator[str | None]:
    """Where else to look, the likeliest first."""
    for name in names:
        parts = [part for part in re.sub(r"^(file:|[A-Za-z]:)", "", name).split("/") if part not in ("", ".")]
        while ".." in parts:
            parts = parts[parts.index("..") + 1 :]
        for start in range(len(parts)):
            for folder in folders:
                yield _join(folder, "/".join(parts[start:]))
        for folder in folders if parts else ():
            for above in (folder, f"{folder}/.."):
                for textures in _TEXTURE_FOLDERS:
                    yield _join(above, f"{textures}/{parts[-1]}")


def _join(folder: str, name: str) -> str | None:
    """`a/b` and `../c.png` to `a/c.png`; None for what leads out of the root."""
    parts: list[str] = []
    for part in f"{folder}/{name}".split("/"):
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _in_any_case(root: Path, place: str) -> str | None:
    """The path below the root that differs from `place` in case alone; the first of several."""
    found = ""
    for part in place.split("/"):
        here = root / found
        try:
            names = _names(str(here), here.stat().st_mtime_ns)
        except OSError:  # no folder, or none that may be read
            return None
        if (name := part if (here / part).exists() else names.get(fold(part))) is None:
            return None
        found = f"{found}/{name}" if found else name
    return found


@functools.lru_cache(maxsize=64)  # of thousands of files, which each asset there looks up
def _names(folder: str, mtime: int) -> dict[str, str]:
    return {fold(name): name for name in sorted(os.listdir(folder), reverse=True)}


def _read(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise AssetError("unreadable", f"{path.name} is not a regular file")
    check_size(path.name, path.stat().st_size, max_bytes)
    return path.read_bytes()


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, its links followed, stays in a folder; links that run in circles lead nowhere."""
    # Unlike Path.resolve, realpath doesn't mind circles.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
