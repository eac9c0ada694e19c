"""Chamfer distances of all pairs of clouds, by compiled code (chamfer.cpp) or, without a compiler, by trees.

A pair of 2,048 points takes 0.6 ms by the former and 6 by the latter. d(X, Y) is `chamfer_l2`, whose squares
need no root. Compiled code takes coordinates as float32, as clouds are stored, and agrees to its rounding.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial import cKDTree

from shapeloom.log import get_logger
from shapeloom.native import NotBuilt, load

LANES = 16
"""Of chamfer.cpp."""

Cloud = Float[ndarray, "_ 3"]
Distances = Float[ndarray, "_ _"]

log = get_logger("eval")


def chamfer_matrix(first: Sequence[Cloud], second: Sequence[Cloud]) -> Distances:
    """Returns d(X, Y) of all pairs. Raises ValueError for a cloud without points, or not of finite ones."""
    rows, columns = ([prepared(cloud) for cloud in each] for each in (first, second))
    return np.array([_l2(x, y) for x in rows for y in columns]).reshape(len(rows), len(columns))


def symmetric_chamfer_matrix(clouds: Sequence[Cloud]) -> Distances:
    """Returns d(X, Y) of all pairs of one set; each is measured once. Raises as `chamfer_matrix` does."""
    known = [prepared(cloud) for cloud in clouds]
    out = np.zeros((len(clouds), len(clouds)))
    for i, j in zip(*np.triu_indices(len(clouds), 1), strict=True):
        out[i, j] = _l2(known[i], known[j])
    return out + out.T


def prepared(cloud: Cloud) -> Any:
    """Returns a cloud as `squared_distances` takes it, to be used many times. Raises as above."""
    if not len(cloud) or not np.isfinite(cloud).all():
        raise ValueError(f"a cloud of shape {list(cloud.shape)}: expected a point or more, all finite")
    return _way()[0](cloud)


def squared_distances(x: Any, y: Any) -> tuple[Float[ndarray, " _"], Float[ndarray, " _"]]:
    """Returns the squared distance of each point of one prepared cloud to the other cloud, both ways."""
    return _way()[1](x, y)


def _l2(x: Any, y: Any) -> float:
    of_x, of_y = squared_distances(x, y)
    return float(of_x.mean(dtype=np.float64) + of_y.mean(dtype=np.float64))


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled code; raises NotBuilt where it can't be had."""
    found = load(Path(__file__).with_suffix(".cpp"))
    found.nearest.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int64,
        *2 * [ctypes.c_void_p],
    ]
    found.nearest.restype = None
    return found


@functools.cache
def _way() -> tuple[Callable[[Cloud], Any], Callable[[Any, Any], tuple[ndarray, ndarray]]]:
    """What prepares a cloud, once, and what measures two that were prepared."""
    try:
        library()
    except NotBuilt as why:
        log.info("clouds are compared by trees, which takes ten times as long: %s", why)
        return cKDTree, _by_trees
    return _Planes, _by_planes


def _by_trees(x: cKDTree, y: cKDTree) -> tuple[ndarray, ndarray]:
    return y.query(x.data)[0] ** 2, x.query(y.data)[0] ** 2


class _Planes:
    """A cloud as chamfer.cpp takes it."""

    def __init__(self, cloud: Cloud) -> None:
        self.num = len(cloud)
        self.size = -(-self.num // LANES) * LANES
        self._coordinates = np.full((3, self.size), np.inf, np.float32)
        self._coordinates[:, : self.num] = cloud.T
        self.address = self._coordinates.ctypes.data


def _by_planes(x: _Planes, y: _Planes) -> tuple[ndarray, ndarray]:
    of_x, of_y = np.empty(x.size, np.float32), np.empty(y.size, np.float32)
    library().nearest(x.address, x.size, y.address, y.size, of_x.ctypes.data, of_y.ctypes.data)
    return of_x[: x.num], of_y[: y.num]
