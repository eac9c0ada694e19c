"""Which sample comes when: a pure function of (seed, n), made for reading whole shards one after another."""

import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray

from shapeloom.seed import numpy_rng

T = TypeVar("T")
_LOCK = threading.Lock()


class ReadingOrder:
    """Which row sample n of a run is: a pure function of (seed, n), the same on every rank and restart.

    Each pass over the data shuffles the shards, cuts them into windows of `window` shards and shuffles the
    samples of each window, so that a reader needs only one window of shards at hand.
    """

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, window: int = 16) -> None:
        if sum(shard_sizes) <= 0 or window < 1:
            raise ValueError(f"expected samples and a window >= 1, got {shard_sizes}, window {window}")
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.total = int(self.sizes.sum())
        self.seed, self.window = seed, window
        self._passes: dict[int, tuple[ndarray, list[int]]] = {}
        self._windows: dict[tuple[int, int], ndarray] = {}
        self._ahead: tuple[tuple[int, int], list[int]] = ((-1, -1), [])

    def index(self, n: int) -> int:
        """Row of sample n >= 0; every pass of `total` samples visits each row once."""
        epoch, window, position = self._place(n)
        return int(self._shuffled_window(epoch, window)[position])

    def shards_from(self, n: int) -> list[int]:
        """The shards of sample n's window and of the next one, in the order in which to fetch them."""
        epoch, window, _ = self._place(n)
        place, used = self._ahead
        if (epoch, window) != place:
            _, ends = self._shuffled_shards(epoch)
            after, following, _ = self._place(epoch * self.total + ends[window])
            both = [*self._shards_of(epoch, window), *self._shards_of(after, following)]
            used = list(dict.fromkeys(both))
            self._ahead = ((epoch, window), used)
        return used

    def _shards_of(self, epoch: int, window: int) -> list[int]:
        order, _ = self._shuffled_shards(epoch)
        return [int(s) for s in order[window * self.window : (window + 1) * self.window] if self.sizes[s]]

    def _place(self, n: int) -> tuple[int, int, int]:
        """Pass, window in it, and position in that."""
        epoch, position = divmod(n, self.total)
        _, ends = self._shuffled_shards(epoch)
        window = bisect_right(ends, position)  # of a list, a fifth of what NumPy takes for one number
        return epoch, window, position - (ends[window - 1] if window else 0)

    def _shuffled_shards(self, epoch: int) -> tuple[ndarray, list[int]]:
        """Shard order of a pass, and the end position of each of its windows."""
        found = self._passes.get(epoch)
        if found is None:
            order = numpy_rng(self.seed, "shards", epoch).permutation(len(self.sizes))
            ends = np.cumsum(self.sizes[order])
            ends = np.append(ends[self.window - 1 :: self.window], ends[-1])
            return _remember(self._passes, epoch, (order, ends.tolist()))
        return found

    def _shuffled_window(self, epoch: int, window: int) -> ndarray:
        found = self._windows.get((epoch, window))
        if found is None:
            shards = self._shards_of(epoch, window)
            rows = np.concatenate([self.starts[s] + np.arange(self.sizes[s]) for s in shards])
            rng = numpy_rng(self.seed, "samples", epoch, window)
            return _remember(self._windows, (epoch, window), rng.permutation(rows))
        return found


def _remember(results: dict[Any, T], key: Any, value: T) -> T:
    """Keeps and returns `value`; a few neighbours suffice for readers that go on from step to step.

    Several threads may ask: each uses what it was given, and only the bookkeeping is locked.
    """
    with _LOCK:
        while len(results) >= 8:
            results.pop(next(iter(results)))
        results[key] = value
    return value
