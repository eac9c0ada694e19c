"""Which sample comes when: a pure function of (seed, n), made for reading whole shards one after another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from shapeloom.seed import numpy_rng


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
        self._passes: dict[int, tuple[ndarray, ndarray]] = {}
        self._windows: dict[tuple[int, int], ndarray] = {}
        self._ahead: tuple[tuple[int, int], list[int]] = ((-1, -1), [])

    def index(self, n: int) -> int:
        """Row of sample n >= 0; every pass of `total` samples visits each row once."""
        epoch, window, position = self._place(n)
        return int(self._shuffled_window(epoch, window)[position])

    def shards_from(self, n: int) -> list[int]:
        """The shards of sample n's window and of the next one, in the order in which to fetch them."""
        epoch, window, _ = self._place(n)
        if (epoch, window) != self._ahead[0]:
            _, ends = self._shuffled_shards(epoch)
            after, following, _ = self._place(epoch * self.total + int(ends[window]))
            used = [*self._shards_of(epoch, window), *self._shards_of(after, following)]
            self._ahead = ((epoch, window), list(dict.fromkeys(used)))
        return self._ahead[1]

    def _shards_of(self, epoch: int, window: int) -> list[int]:
        order, _ = self._shuffled_shards(epoch)
        return [int(s) for s in order[window * self.window : (window + 1) * self.window] if self.sizes[s]]

    def _place(self, n: int) -> tuple[int, int, int]:
        """Pass, window in it, and position in that."""
        epoch, position = divmod(n, self.total)
        _, ends = self._shuffled_shards(epoch)
        window = int(np.searchsorted(ends, position, side="right"))
        return epoch, window, position - (int(ends[window - 1]) if window else 0)

    def _shuffled_shards(self, epoch: int) -> tuple[ndarray, ndarray]:
        """Shard order of a pass, and the end position of each of its windows."""
        if epoch not in self._passes:
            order = numpy_rng(self.seed, "shards", epoch).permutation(len(self.sizes))
            ends = np.cumsum(self.sizes[order])
            ends = np.append(ends[self.window - 1 :: self.window], ends[-1])
            _remember(self._passes, epoch, (order, ends))
        return self._passes[epoch]

    def _shuffled_window(self, epoch: int, window: int) -> ndarray:
        if (epoch, window) not in self._windows:
            shards = self._shards_of(epoch, window)
            rows = np.concatenate([self.starts[s] + np.arange(self.sizes[s]) for s in shards])
            rng = numpy_rng(self.seed, "samples", epoch, window)
            _remember(self._windows, (epoch, window), rng.permutation(rows))
        return self._windows[epoch, window]


def _remember(results: dict[Any, Any], key: Any, value: Any) -> None:
    """Neighbours of the current one suffice for a sequential reader."""
    while len(results) >= 4:
        results.pop(next(iter(results)), None)  # another thread may have been faster
    results[key] = value
