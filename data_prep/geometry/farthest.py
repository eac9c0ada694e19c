"""Farthest-point order: every prefix of it covers all points about evenly (Gonzalez 1985)."""

import ctypes
import functools
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64
from numpy import ndarray

from shapeloom.native import NotBuilt, load

_FLOATS, _INTS = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int64)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled code; raises NotBuilt where it can't be had."""
    found = load(Path(__file__).with_suffix(".cpp"))
    found.farthest_first.argtypes = [_FLOATS, ctypes.c_int64, ctypes.c_int64, _INTS]
    found.farthest_first.restype = ctypes.c_int32
    return found


def farthest_first(points: Float[ndarray, "points 3"], num: int) -> Int64[ndarray, " chosen"]:
    """Numbers of `num` of the points, or of all if there are fewer, each the farthest from those before it.

    It begins with number 0; of equally far points the lowest number comes first. In float32, by compiled
    code; the same numbers by a plain loop, many times slower, where there is no C++ compiler.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) >= 2**31:
        raise ValueError(f"points of shape {points.shape}: expected (fewer than 2^31, 3)")
    points, num = np.ascontiguousarray(points, np.float32), min(num, len(points))
    if not num:
        return np.empty(0, np.int64)
    try:
        return _compiled(points, num)
    except NotBuilt:
        return plain_loop(points, num)


def plain_loop(points: Float32[ndarray, "points 3"], num: int) -> Int64[ndarray, " num"]:
    """What the compiled code is tested against. num: 1 to len(points)."""
    squared, order = np.full(len(points), np.inf, np.float32), np.zeros(num, np.int64)
    for i in range(1, num):
        x, y, z = (points - points[order[i - 1]]).T
        squared = np.minimum(squared, x * x + y * y + z * z)
        squared[order[i - 1]] = -1  # chosen
        order[i] = squared.argmax()
    return order


def _compiled(points: Float32[ndarray, "points 3"], num: int) -> Int64[ndarray, " num"]:
    order = np.empty(num, np.int64)
    pointers = points.ctypes.data_as(_FLOATS), order.ctypes.data_as(_INTS)
    if library().farthest_first(pointers[0], len(points), num, pointers[1]):
        raise MemoryError(f"the order of {len(points):,} points")
    return order
