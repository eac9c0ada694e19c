"""A shard's manifest: which samples it holds, what is said of them, and where in the tar their members lie.

    {"schema": 2, "sha256": ..., "size": ..., "count": ..., "members": [[NAME...]...], "samples": [ENTRY...]}
    ENTRY: {"key": ..., "split": ..., "captions": ..., ..., "members": 0, "start": 512, "sizes": [SIZE...]}

A sample's members lie one behind another, so where the first one's content starts and all their sizes tell
where each is; an entry's `members` says which of the lists of names they have. Schema 1 gave each member of
each sample by name with its range, four times as long; it is read, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from shapeloom.config import UserError
from shapeloom.storage import AnyPath, read_json

SCHEMA = 2
REMAKE = "Copy it again, or delete it and run the stage that writes it again."


class Members(Mapping[str, tuple[int, int]]):
    """Extension -> (byte offset, size) in the shard's tar, looked up in arrays that are a shard's."""

    def __init__(
        self, places: Mapping[str, int], offsets: Int64[ndarray, " n"], sizes: Int64[ndarray, " n"]
    ) -> None:
        """places: of each name in the arrays, which are in the order of the tar."""
        self._places, self._offsets, self._sizes = places, offsets, sizes

    def __getitem__(self, name: str) -> tuple[int, int]:
        place = self._places[name]
        return int(self._offsets[place]), int(self._sizes[place])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def manifest_path(shard: AnyPath) -> AnyPath:
    """`000000.index.json` beside `000000.tar`."""
    return shard.with_suffix(".index.json")


def packed(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a manifest's `members` and `samples`.

    samples: their entries, with `members` as name -> (byte offset, size) in the order of the tar.
    """
    lists: dict[tuple[str, ...], int] = {}
    entries = []
    for sample in samples:
        members = sample["members"]
        which = lists.setdefault(tuple(members), len(lists))
        (start, _), *_ = members.values()
        entries.append(
            {**sample, "members": which, "start": start, "sizes": [n for _, n in members.values()]}
        )
    return {"members": [list(names) for names in lists], "samples": entries}


def read_manifest(shard: AnyPath) -> dict[str, Any]:
    """The manifest of a finished shard: schema, sha256, size, count, and samples (see `Row`)."""
    path = manifest_path(shard)
    if not path.is_file():
        raise UserError(f"{shard} has no manifest {path.name} beside it: run the stage that writes it again.")
    manifest = read_json(path, advice=REMAKE)
    if manifest.get("schema") == 1:
        return manifest
    check_schema(path, manifest.get("schema"), SCHEMA)
    for which, names in enumerate(manifest.pop("members")):
        _unpack(names, [sample for sample in manifest["samples"] if sample["members"] == which])
    return manifest


def _unpack(names: Sequence[str], samples: Sequence[dict[str, Any]]) -> None:
    """Gives entries whose members have these names their `Members`."""
    places = {name: place for place, name in enumerate(names)}
    starts = np.array([sample.pop("start") for sample in samples], dtype=np.int64)
    sizes = np.array([sample.pop("sizes") for sample in samples], dtype=np.int64)
    # From a member's content to the next one's: its own, padded to whole blocks, and a header.
    steps = (-(-sizes // BLOCKSIZE) + 1) * BLOCKSIZE
    offsets = starts[:, None] + np.cumsum(steps, axis=1) - steps
    for sample, *row in zip(samples, offsets, sizes, strict=True):
        sample["members"] = Members(places, *row)


def check_schema(path: AnyPath, found: Any, expected: int) -> None:
    """Raises UserError when the file `path` says that it is of another schema than this version's."""
    if found != expected:
        raise UserError(
            f"{path} has schema {found!r}, and this version reads schema {expected}: "
            "make the data again with this version, or read it with the version that made it."
        )
