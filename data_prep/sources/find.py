"""Where assets come from: a folder, a manifest, a zip archive or a Sweet Home 3D library.

The path says which: a folder is walked (archives in it are looked into, `captions.csv` is read), a .csv or
.parquet file is a manifest, a .zip or .sh3f file an archive. Objaverse has a config section of its own
(`objaverse_cache.py`). An asset without a caption is captioned by file and folder names. Its group is its
name without trailing numbers, so that "tree_1" and "tree_2" stand on the same side of a split; its split,
unless one is named, is a function of the group's hash alone.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.failures import AssetError, Failure
from data_prep.formats.archives import ARCHIVES, is_hidden, list_members
from data_prep.formats.files import is_inside
from data_prep.formats.load import SUFFIXES
from data_prep.sources.content import content_digest
from data_prep.sources.layouts import names_of
from data_prep.sources.listings import Listed, read_captions, read_manifest
from data_prep.sources.naming import SPLITS, SplitFractions, split_of
from data_prep.sources.sweethome3d import read_library
from shapeloom.config import UserError

__all__ = ["SPLITS", "Source", "SplitFractions", "assets_root", "find_sources", "make_sources"]

CAPTIONS_FILE = "captions.csv"
NAMELESS = "an object"
"""The caption of an asset of which nothing is known."""
MANIFESTS = (".csv", ".parquet")


@dataclass(frozen=True)
class Source:
    """One asset to prepare."""

    path: str
    """Relative to the assets' root, with slashes; a member of an archive is `archive.zip/member.obj`."""
    key: str
    """Content id: the first 16 hex digits of `sha256`."""
    sha256: str
    """Of the file's bytes and, for formats that name others (OBJ, glTF, DAE, PLY), of those files."""
    captions: list[str]
    category: str
    licence: str
    group: str
    split: str
    attributes: dict[str, str]
    provenance: dict[str, str] = field(default_factory=dict)
    """`source` (folder, manifest, archive, sweethome3d, objaverse) and what it knows: id, creator, url."""
    rotation: list[float] | None = None
    """Row-major, in the file's own frame, where the source says that the model must be turned."""
    warnings: list[str] = field(default_factory=list)
    """What was done to its captions."""


@dataclass
class _Found:
    """Assets by path, before their files are looked at."""

    listed: dict[str, Listed] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def fail(self, path: str, error: AssetError) -> None:
        self.failures.append(Failure(_in_utf8(path), "sources", error.reason, error.message, ""))


def _in_utf8(path: str) -> str:
    """A path as it is, or with escapes for bytes that are no UTF-8."""
    return path.encode(errors="backslashreplace").decode()


def assets_root(assets: Path) -> Path:
    """The folder that sources' paths are relative to: the folder itself, or the one that holds the file."""
    return assets if assets.is_dir() else assets.parent


def find_sources(assets: Path, fractions: SplitFractions) -> tuple[list[Source], list[Failure]]:
    """All assets of a folder, manifest or archive, sorted by path, and what had to be left out and why.

    Raises UserError for a path that is none of them, that holds no asset, or whose captions can't be
    understood.
    """
    root = assets_root(assets)
    kinds = ", ".join(SUFFIXES)
    if assets.is_dir():
        found = _walk(assets)
    elif not assets.is_file():
        raise UserError(f"The assets folder {assets} does not exist. Name a folder of {kinds} files.")
    elif assets.suffix.lower() in MANIFESTS:
        found = _Found(*read_manifest(assets))
    elif assets.suffix.lower() in ARCHIVES:
        found = _Found()
        _add_archive(found, root, assets.name)
    else:
        raise UserError(
            f"The assets {assets} is a file of an unknown kind. Name a folder of {kinds} files, a manifest "
            f"({', '.join(MANIFESTS)}) or an archive ({', '.join(ARCHIVES)})."
        )
    if not found.listed and not found.failures:
        raise UserError(f"The assets folder {assets} holds no {kinds} files, at any depth.")
    return make_sources(root, found.listed, found.failures, fractions)


def make_sources(
    root: Path, listed: Mapping[str, Listed], failures: list[Failure], fractions: SplitFractions
) -> tuple[list[Source], list[Failure]]:
    """Sources of listed paths, sorted; unreadable files and second copies join the failures."""
    if abs(sum(fractions.model_dump().values()) - 1) > 1e-6:
        raise UserError(f"The split fractions must add up to 1, but are {fractions.model_dump()}.")
    sources: dict[str, Source] = {}
    failures = list(failures)
    for path in sorted(listed):
        digest = ""
        try:
            digest = _checked_digest(root, path)
            if digest[:16] in sources:
                raise AssetError("duplicate", f"has the same content as {sources[digest[:16]].path}")
        except AssetError as error:
            failures.append(Failure(path, "sources", error.reason, error.message, digest))
            continue
        sources[digest[:16]] = _source(path, digest, listed[path], fractions)
    return list(sources.values()), failures


def _checked_digest(root: Path, path: str) -> str:
    """The content's digest; AssetError for no file, another kind of file, or a link out of the root."""
    file = root / path
    _check_inside(root, file)
    if file.suffix.lower() not in SUFFIXES:
        raise AssetError("unsupported", f"{file.suffix or 'no suffix'}; supported: {', '.join(SUFFIXES)}")
    return content_digest(file, root=root)


def _check_inside(root: Path, file: Path) -> None:
    if not is_inside(root, file):
        raise AssetError("outside_folder", "is a link that leads out of the assets folder")


def _source(path: str, digest: str, listed: Listed, fractions: SplitFractions) -> Source:
    columns, names = dict(listed.columns), names_of(path)
    group = columns.pop("group", "") or names.group
    warnings, captions = list(listed.warnings), listed.captions or names.captions
    if not captions:
        warnings.append(f"has no caption, and its path says nothing of it: called {NAMELESS!r}")
    return Source(
        path=path,
        key=digest[:16],
        sha256=digest,
        captions=captions or [NAMELESS],
        category=columns.pop("category", "") or names.category,
        licence=columns.pop("licence", ""),
        group=group,
        split=columns.pop("split", "") or split_of(group, fractions),
        attributes=columns,
        provenance=listed.provenance or {"source": "folder"},
        rotation=listed.rotation,
        warnings=warnings,
    )


# ---------------------------------------------------------------- folders and archives


def _walk(folder: Path) -> _Found:
    """Everything below a folder: files, archives, captions; links to folders are failures, not followed."""
    found = _Found()

    def closed(error: OSError) -> None:
        place = Path(error.filename).relative_to(folder).as_posix()
        found.fail(place, AssetError("unreadable", f"a folder that can't be read: {error.strerror}"))

    for parent, folders, files in os.walk(folder, onerror=closed):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in folders:
            if Path(parent, name).is_symlink():
                message = "is a link to a folder; name that folder itself, or copy it"
                found.fail(Path(parent, name).relative_to(folder).as_posix(), AssetError("link", message))
        for name in sorted(files):
            path = Path(parent, name).relative_to(folder).as_posix()
            if is_hidden(name) or not name.lower().endswith((*SUFFIXES, *ARCHIVES)):
                continue
            if _in_utf8(path) != path:
                found.fail(path, AssetError("bad_name", "its path is no UTF-8: rename it"))
            elif name.lower().endswith(ARCHIVES):
                _add_archive(found, folder, path)
            else:
                found.listed[path] = Listed()
    captions, failures = read_captions(folder / CAPTIONS_FILE, set(found.listed))
    found.failures += failures
    for path, entry in captions.items():
        known = found.listed[path]  # a library's own words stay where the captions file has none
        entry.captions = entry.captions or known.captions
        entry.columns = known.columns | entry.columns
        entry.provenance = known.provenance | entry.provenance
        entry.rotation = known.rotation
        found.listed[path] = entry
    return found


def _add_archive(found: _Found, root: Path, path: str) -> None:
    """The assets of a .zip or .sh3f file at `path` below the root."""
    archive = root / path
    try:
        _check_inside(root, archive)
        if archive.suffix.lower() == ".sh3f":
            listed, failures = read_library(archive, path)
            if not listed and not failures:
                raise AssetError("empty", "its catalogue lists no models")
            found.listed |= listed
            found.failures += failures
            return
        members, odd = list_members(archive)
        if not any(name.lower().endswith((*SUFFIXES, *ARCHIVES)) for name in members) and not odd:
            raise AssetError("empty", f"holds no {', '.join(SUFFIXES)} files")
    except AssetError as error:
        found.fail(path, error)
        return
    for name, reason in odd:
        found.fail(f"{path}/{name}", reason)
    for name in members:
        if name.lower().endswith(SUFFIXES):
            found.listed[f"{path}/{name}"] = Listed(provenance={"source": "archive"})
        elif name.lower().endswith(ARCHIVES):
            found.fail(f"{path}/{name}", AssetError("unsupported", "an archive within an archive: unpack it"))
