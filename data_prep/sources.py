"""Where assets come from: a folder of 3D files and, if there is one, its captions.csv.

    path,caption[,category][,licence][,group][,split][,anything else]

`path` is relative to the folder. Several rows of one path are several captions of it; other columns become
attributes. Files without a row (or folders without the file) are captioned by file and folder names. An
asset's group is its name without trailing numbers, so that "tree_1" and "tree_2" stand on the same side of a
split; its split, unless the file names one, is a function of the group's hash alone.
"""

import csv
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from pydantic import Field

from data_prep.failures import Failure
from data_prep.load import SUFFIXES
from shapeloom.config import Config, UserError
from shapeloom.runs import file_digest
from shapeloom.seed import derive_seed

CAPTIONS_FILE = "captions.csv"
SPLITS = ("train", "val", "test", "judge")


class SplitFractions(Config):
    """Shares of the name groups, for assets whose split no captions file names; their sum is 1."""

    train: float = Field(default=0.8, ge=0, le=1)
    val: float = Field(default=0.05, ge=0, le=1)
    test: float = Field(default=0.05, ge=0, le=1)
    judge: float = Field(
        default=0.1, ge=0, le=1, description="assets that train the evaluation's own judge alone"
    )


@dataclass(frozen=True)
class Source:
    """One file to prepare."""

    path: str
    """Relative to the folder, with slashes."""
    key: str
    """Content id: the first 16 hex digits of `sha256`."""
    sha256: str
    """Of the file's bytes and, for OBJ and glTF, of the files that it names."""
    captions: list[str]
    category: str
    licence: str
    group: str
    split: str
    attributes: dict[str, str]


@dataclass
class _Listed:
    """What captions.csv says of one path."""

    captions: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def find_sources(folder: Path, fractions: SplitFractions) -> tuple[list[Source], list[Failure]]:
    """All assets of `folder` sorted by path, and what had to be left out: rows that name nothing, duplicates.

    Raises UserError for a missing or empty folder and for a captions file that can't be understood.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"The assets folder {folder} {what}. Name a folder of {', '.join(SUFFIXES)} files.")
    paths = _asset_files(folder)
    if not paths:
        raise UserError(f"The assets folder {folder} holds no {', '.join(SUFFIXES)} files, at any depth.")
    if abs(sum(fractions.model_dump().values()) - 1) > 1e-6:
        raise UserError(f"The split fractions must add up to 1, but are {fractions.model_dump()}.")
    listed, failures = _read_captions(folder, set(paths))
    sources: dict[str, Source] = {}
    for path in paths:
        source = _source(folder, path, listed.get(path, _Listed()), fractions)
        if source.key in sources:
            message = f"has the same content as {sources[source.key].path}"
            failures.append(Failure(path, "sources", "duplicate", message, source.sha256))
        else:
            sources[source.key] = source
    return list(sources.values()), failures


def _asset_files(folder: Path) -> list[str]:
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _source(folder: Path, path: str, listed: _Listed, fractions: SplitFractions) -> Source:
    columns = dict(listed.columns)
    group = columns.pop("group", "") or default_group(path)
    digest = content_digest(folder / path)
    parent = Path(path).parent.name
    return Source(
        path=path,
        key=digest[:16],
        sha256=digest,
        captions=listed.captions or default_captions(path),
        category=columns.pop("category", "") or spaced(parent),
        licence=columns.pop("licence", ""),
        group=group,
        split=columns.pop("split", "") or split_of(group, fractions),
        attributes=columns,
    )


def spaced(name: str) -> str:
    """Words of a file name: `WaterBottle_2-old` -> "water bottle 2 old"."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])", " ", name)
    return " ".join(re.split(r"[\s_\-.]+", name)).strip().lower()


def default_group(path: str) -> str:
    """File name without its trailing numbers, lower case: `packs/Tree_02.glb` -> "tree"."""
    name = Path(path).stem.lower()
    return re.sub(r"[\s_\-.()0-9]+$", "", name) or name


def default_captions(path: str) -> list[str]:
    """Captions from the names of file and folder: ["water bottle", "water bottle, survival"]."""
    name = spaced(re.sub(r"[\s_\-.()0-9]+$", "", Path(path).stem) or Path(path).stem)
    folder = spaced(Path(path).parent.name)
    return [name, f"{name}, {folder}"] if folder else [name]


def split_of(group: str, fractions: SplitFractions) -> str:
    """The side on which a name group stands: a function of its hash and the fractions."""
    position, shares = derive_seed("split", group) / 2**63, fractions.model_dump()
    for name in SPLITS:
        position -= shares[name]
        if position < 0:
            return name
    return "train"  # rounding of the last share


# ---------------------------------------------------------------- captions.csv


def _read_captions(folder: Path, paths: set[str]) -> tuple[dict[str, _Listed], list[Failure]]:
    file = folder / CAPTIONS_FILE
    if not file.is_file():
        return {}, []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", restkey="")
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a UTF-8 CSV file: {error}. Save it as UTF-8 with commas.") from error
    if "path" not in header:
        raise UserError(f"{file} has no column `path`; its columns are: {', '.join(header) or 'none'}.")
    if repeated := {name for name in header if header.count(name) > 1}:
        raise UserError(f"{file} has more than one column {', '.join(sorted(repeated))}.")
    return _collect(file, rows, paths)


def _collect(
    file: Path, rows: Iterable[tuple[int, dict[str, str]]], paths: set[str]
) -> tuple[dict[str, _Listed], list[Failure]]:
    listed: dict[str, _Listed] = {}
    failures = []
    for line, row in rows:
        path = row["path"].strip().replace("\\", "/").removeprefix("./")
        caption = " ".join(row.get("caption", "").split())
        split = row.get("split", "").strip()
        if split and split not in SPLITS:
            raise UserError(f"{file}, line {line}: split {split!r} is none of {', '.join(SPLITS)}.")
        if path not in paths:
            message = f"{CAPTIONS_FILE}, line {line}, names a file that is not in the folder"
            failures.append(Failure(path, "sources", "missing", message, ""))
            continue
        if row.get(""):
            message = (
                f"{CAPTIONS_FILE}, line {line}, has more fields than the header: quote captions with commas"
            )
            failures.append(Failure(path, "sources", "bad_row", message, ""))
            continue
        entry = listed.setdefault(path, _Listed())
        if caption and caption not in entry.captions:
            entry.captions.append(caption)
        for name, value in row.items():
            if name not in ("path", "caption", "") and value.strip():
                entry.columns.setdefault(name, value.strip())
    return listed, failures


# ---------------------------------------------------------------- content


def content_digest(path: Path) -> str:
    """SHA-256 of the file; for OBJ and glTF, of it and the files that it names, where they exist."""
    companions = _companions(path)
    if not companions:
        return file_digest(path)
    digests = [file_digest(file) for file in (path, *companions)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _companions(path: Path) -> list[Path]:
    """Files below the asset's folder that it names, directly or through its materials, in order."""
    match path.suffix.lower():
        case ".obj":
            libraries = _named(path, rb"^\s*mtllib\s+(.+?)\s*$")
            textures = [t for library in libraries for t in _named(library, rb"^\s*map_Kd\s+(.+?)\s*$")]
            return libraries + textures
        case ".gltf":
            return _named(path, rb'"uri"\s*:\s*("(?!data:)(?:[^"\\]|\\.)*")')
        case _:
            return []


def _named(path: Path, pattern: bytes) -> list[Path]:
    found = []
    for match in re.finditer(pattern, path.read_bytes(), re.MULTILINE | re.IGNORECASE):
        # A JSON string keeps its quotes and escapes; anything odd in it just names no file.
        name = unquote(match[1].decode(errors="replace").strip('"').replace("\\", "/"))
        file = path.parent / name
        if file.resolve().is_relative_to(path.parent.resolve()) and file.is_file():
            found.append(file)
    return found
