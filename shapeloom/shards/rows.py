"""The rows of a data set of any size: counted at once, read shard by shard when they are asked for.

A million assets' manifests are a GB of JSON. `index.json`, which `finish_dataset` writes, says of each shard
its digest, size and counts, so that a data set is opened without them; a manifest is read when one of its
rows is, and the few read last are kept. That suits `ReadingOrder`, which stays within a few shards.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy import ndarray

from shapeloom.config import UserError
from shapeloom.shards.manifests import manifest_path, read_manifest
from shapeloom.shards.writing import ShardFacts, read_index, shard_facts
from shapeloom.storage import AnyPath, is_local

KEPT_ROWS = 8192
"""Of manifests read last, some 60 MB; and of at least KEPT_SHARDS, two windows of an order and some."""
KEPT_SHARDS = 36


@dataclass(frozen=True)
class Row:
    """What a manifest tells of one sample: enough to choose it, caption it and find its members."""

    key: str
    shard: int
    split: str
    group: str
    category: str
    captions: list[str]
    attributes: dict[str, str]
    members: Mapping[str, Sequence[int]]
    """Extension -> (byte offset, size) in the shard's tar."""

    @property
    def label(self) -> str:
        """For messages: its key and first caption."""
        return f"{self.key} ({self.captions[0]!r})" if self.captions else self.key


def read_facts(folder: AnyPath, shards: Sequence[AnyPath], header: Mapping[str, Any]) -> list[ShardFacts]:
    """Returns what is known of each shard: from the index, or from a manifest that differs from it.

    The index counts for shards whose manifest has the size that it tells, and if it is the header's own; data
    sets from before there was one are read in whole.
    """
    known = read_index(folder, header)

    def facts(shard: AnyPath) -> ShardFacts:
        found, path = known.get(shard.name), manifest_path(shard)
        if found is not None and path.is_file() and path.stat().st_size == found.manifest_size:
            return found
        return shard_facts(shard, read_manifest(shard))

    with ThreadPoolExecutor(1 if is_local(folder) else 16) as pool:
        return list(pool.map(facts, shards))


class Rows(Sequence[Row]):
    """All rows, or those of a split, in shard order. Safe from many threads."""

    def __init__(self, shards: Sequence[AnyPath], facts: Sequence[ShardFacts], split: str | None) -> None:
        self._shards, self._facts, self._split = list(shards), list(facts), split
        counts = [sum(n for name, n in each.splits.items() if split in (None, name)) for each in facts]
        self._ends: list[int] = list(accumulate(counts))
        self._chosen: ndarray | None = None
        self._read: OrderedDict[int, list[Row]] = OrderedDict()
        self._kept = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: for workers of a DataLoader."""
        return {**self.__dict__, "_read": OrderedDict(), "_kept": 0, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        if self._chosen is not None:
            return len(self._chosen)
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Returns a row, or a list of them; IndexError beyond the last one."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -(num := len(self)) <= index < num:
            raise IndexError(f"row {index} of {num}")
        place = index % num
        if self._chosen is not None:
            place = int(self._chosen[place])
        shard = bisect_right(self._ends, place)
        return self._of(shard)[place - (self._ends[shard - 1] if shard else 0)]

    def __iter__(self) -> Iterator[Row]:
        """All in order; each manifest is read once, whatever is kept."""
        return (self[index] for index in range(len(self)))

    def per_shard(self) -> list[int]:
        """Returns how many rows each shard has, without reading any."""
        if self._chosen is None:
            return np.diff(self._ends, prepend=0).tolist()
        shards = np.searchsorted(self._ends, self._chosen, side="right")
        return np.bincount(shards, minlength=len(self._ends)).tolist()

    def chosen(self, keep: Callable[[int], bool]) -> "Rows":
        """Returns those whose index `keep` says yes to."""
        places = np.arange(len(self)) if self._chosen is None else self._chosen
        rows = Rows(self._shards, self._facts, self._split)
        rows._chosen = places[[keep(index) for index in range(len(self))]]
        return rows

    def _of(self, shard: int) -> list[Row]:
        with self._lock:
            if shard in self._read:
                self._read.move_to_end(shard)
                return self._read[shard]
        rows = self._parsed(shard)
        with self._lock:
            if shard not in self._read:
                self._read[shard] = rows
                self._kept += len(rows)
            while len(self._read) > KEPT_SHARDS and self._kept > KEPT_ROWS:
                self._kept -= len(self._read.popitem(last=False)[1])
        return rows

    def _parsed(self, shard: int) -> list[Row]:
        path, facts = self._shards[shard], self._facts[shard]
        manifest = read_manifest(path)
        found = shard_facts(path, manifest)
        if (found.sha256, found.splits) != (facts.sha256, facts.splits):
            raise UserError(
                f"{manifest_path(path)} isn't the manifest that its data set was finished with. Run the "
                "stage that wrote it again (it makes what is missing), or copy the missing files back."
            )
        samples = manifest["samples"]
        return [_row(shard, s) for s in samples if self._split in (None, s["split"])]


def _row(shard: int, entry: Mapping[str, Any]) -> Row:
    return Row(shard=shard, **entry)
