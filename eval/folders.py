"""What is judged: folders of any system's outputs with a list of prompts, and the assets they are held
against.

The list is a CSV with the columns `path` and `prompt` (or `caption`), and `truth` where outputs are meant to
be a certain reference asset (its path there). A path names a 3D file, a picture, or a folder of pictures of
one object, with or without its suffix, so that one list serves folders of several formats. An output that the
list names and the folder lacks is an empty one: failures are never left out.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.formats.load import SUFFIXES, Up
from shapeloom.config import UserError
from shapeloom.seed import numpy_rng
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath, read_json

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LISTS = ("prompts.csv", "captions.csv")
"""Looked for in a folder for which no list is named, in this order."""


@dataclass(frozen=True)
class Item:
    """One output, or one reference asset."""

    name: str
    """As the list has it."""
    prompt: str = ""
    root: Path = Path()
    """What the file may read lies in it."""
    mesh: Path | None = None
    pictures: tuple[Path, ...] = ()
    truth: "Item | None" = None
    up: Up | None = None
    rotation: tuple[float, ...] | None = None
    """As `load_mesh` takes them; up None: as outputs are told to be read."""


@dataclass(frozen=True)
class References:
    """Assets that outputs are held against."""

    held_out: list[Item]
    training: list[Item]
    """Empty where the reference is no data set with splits."""
    root: Path
    digest: str | None = None
    """Of a data set; of a plain folder, the files' own digests tell (`eval.looks`)."""
    known: Mapping[str, Item] = field(default_factory=dict)
    """Of a data set, all of these splits by their paths."""

    def asset(self, path: str) -> Item:
        """Returns the asset at a path below the root, whether it is there or not."""
        return self.known.get(path, Item(path, "", self.root, self.root / path))


# ---------------------------------------------------------------- outputs


def read_outputs(folder: Path, prompts: Path | None, references: References) -> list[Item]:
    """Returns a folder's outputs in the order of their list, or all its 3D files by name without prompts.

    references: among which the list's truths are. Raises UserError for a folder without outputs, a list
    without the columns, or a truth that isn't there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Name folders of 3D files or pictures.")
    if prompts is not None:
        return [_listed(folder, row, references) for row in _rows(prompts)]
    if (folder / "metadata.json").is_file():
        return list(_own_samples(folder))
    for name in LISTS:
        if (folder / name).is_file():
            return [_listed(folder, row, references) for row in _rows(folder / name)]
    meshes = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not meshes:
        raise UserError(
            f"{folder} holds no {', '.join(SUFFIXES)} files. Name outputs of other kinds in a list "
            "(--prompts, columns path and prompt)."
        )
    return [Item(path.relative_to(folder).as_posix(), "", folder, path) for path in meshes]


def _rows(path: Path) -> list[dict[str, str]]:
    """A list's rows with path and prompt; of several captions of one path the first counts."""
    if not path.is_file():
        raise UserError(f"The list of prompts {path} does not exist.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        prompt = row.get("prompt") or row.get("caption")
        if not row.get("path") or not prompt:
            raise UserError(
                f"{path} needs the columns path and prompt (or caption), filled in every row; it has "
                f"{', '.join(str(name) for name in row)}."
            )
        found.setdefault(row["path"], {**row, "prompt": " ".join(prompt.split())})
    if not found:
        raise UserError(f"The list of prompts {path} is empty.")
    return list(found.values())


def _listed(folder: Path, row: Mapping[str, str], references: References) -> Item:
    mesh, pictures = _find(folder, row["path"])
    truth = references.asset(row["truth"]) if row.get("truth") else None
    if truth is not None and not _is_there(truth):
        raise UserError(
            f"The list names {row['truth']} as the truth of {row['path']}, but {truth.mesh} is no file."
        )
    return Item(row["path"], row["prompt"], folder, mesh, pictures, truth)


def _find(folder: Path, name: str) -> tuple[Path | None, tuple[Path, ...]]:
    """The 3D file or the pictures that a path of a list names."""
    path = folder / name
    if path.is_dir():
        return None, tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES))
    known = path.suffix.lower() in (*SUFFIXES, *PICTURES)
    stem = path.with_suffix("") if known else path
    # Not with_suffix: a name may have dots of its own.
    for found in (path, *(stem.with_name(stem.name + suffix) for suffix in (*SUFFIXES, *PICTURES))):
        if found.is_file():
            return (None, (found,)) if found.suffix.lower() in PICTURES else (found, ())
    return (None, _find(folder, stem.relative_to(folder).as_posix())[1]) if stem.is_dir() else (None, ())


def _own_samples(folder: Path) -> Iterator[Item]:
    """Of `python -m sampling`."""
    for entry in read_json(folder / "metadata.json", advice="Sample again.").get("samples", []):
        mesh, pictures = _find(folder, entry["name"])
        yield Item(entry["name"], str(entry.get("label") or entry["prompt"]), folder, mesh, pictures)


# ---------------------------------------------------------------- references


def read_references(data: AnyPath, splits: Sequence[str], *, most: int, seed: int) -> References:
    """Returns up to `most` held-out and as many training assets, drawn by `seed`.

    data: what `python -m data_prep` wrote, a folder or a URL, whose assets must still lie where they were
    and are turned as it turned them, or any folder of 3D files, all held out. Raises UserError for neither.
    """
    if not (data / "dataset.json").is_file():
        if not isinstance(data, Path):
            raise UserError(
                f"{data} is no finished data set (no dataset.json in it), and 3D files are read from local "
                "folders alone: check the URL, or copy the files here."
            )
        items = read_outputs(data, None, References([], [], data))
        return References(_draw(items, most, seed), [], data)
    root, up = assets_of(data), _config(data).get("up")
    shards = AssetShards(data)
    by_split: dict[str, list[Item]] = {}
    for index, row in enumerate(shards.rows):
        if row.split in (*splits, "train"):
            facts, caption = shards.facts(index), row.captions[0] if row.captions else ""
            path, rotation = facts["path"], facts.get("rotation")
            turned = tuple(map(float, rotation)) if rotation else None
            item = Item(path, caption, root, root / path, up=up, rotation=turned)
            by_split.setdefault("train" if row.split == "train" else "held out", []).append(item)
    held_out = by_split.get("held out", [])
    if not held_out:
        raise UserError(f"{data} has no assets of the splits {', '.join(splits)} (reference_splits).")
    missing = [item.name for item in held_out if not _is_there(item)]
    if missing:
        raise UserError(
            f"The assets that {data} was prepared from are not in {root} ({len(missing)} missing, such as "
            f"{missing[0]}). Reference pictures are rendered from them: put them back, or name a folder of "
            "3D files as the reference."
        )
    chosen = _draw(held_out, most, seed)
    training = by_split.get("train", [])
    known = {item.name: item for item in (*held_out, *training)}
    return References(chosen, _draw(training, len(chosen), seed), root, shards.digest, known)


def _is_there(item: Item) -> bool:
    """A file, or a member of an archive that is one."""
    assert item.mesh is not None
    return any(path.is_file() for path in (item.mesh, *item.mesh.parents) if path != item.root)


def _draw(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    order = numpy_rng("references", seed).permutation(len(items))[:most]
    return [items[i] for i in sorted(order)]


def assets_of(data: AnyPath) -> Path:
    """Returns the folder of files that a data set was prepared from: its own, or its config's."""
    if isinstance(data, Path) and (data / "assets").is_dir():
        return data / "assets"
    assets = Path(_config(data).get("assets") or Path(str(data), "assets"))
    return assets.parent if assets.is_file() else assets


def _config(data: AnyPath) -> dict[str, Any]:
    """What a data set was prepared with, or nothing."""
    path = data / "config.yaml"
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}
