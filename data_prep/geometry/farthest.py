"""Farthest-point order: every prefix of it covers all points about evenly (Gonzalez 1985)."""

import ctypes
import functools
from pathlib import Path

import fpsample
import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray

from shapeloom.native import load

_FLOATS, _INTS = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int64)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled code; raises NotBuilt where it can't be had."""
    found = load(Path(__file__).with_suffix(".cpp"))
    found.farthest_first.argtypes = [_FLOATS, ctypes.c_int64, ctypes.c_int64, _INTS]
    found.farthest_first.restype = ctypes.c_int32
    return found


def farthest_first(
    points: Float[ndarray, "points 3"], num: int, *, height: int = 7, compiled: bool = False
) -> Int64[ndarray, " chosen"]:
    """Numbers of `num` of the points, or of all if there are fewer, each the farthest from those before it.

    compiled: by this folder's C++, which begins with number 0, or else by fpsample, which begins anywhere.
    height: of fpsample's tree of buckets, which is lower for few points: it wants one point a bucket or
    more, and two buckets or more.
    """
    num = min(num, len(points))
    if compiled:
        return _compiled(np.ascontiguousarray(points, np.float32), num)
    height = min(height, len(points).bit_length() - 1)
    if height < 1:
        return np.arange(num)
    order = fpsample.bucket_fps_kdline_sampling(points.astype(np.float32), num, h=height, start_idx=0)
    return order.astype(np.int64)


def _compiled(points: ndarray, num: int) -> Int64[ndarray, " num"]:
    if points.ndim != 2 or points.shape[1] != 3 or len(points) >= 2**31:
        raise ValueError(f"points of shape {points.shape}: expected (fewer than 2^31, 3)")
    order = np.empty(num, np.int64)
    if num:
        pointers = points.ctypes.data_as(_FLOATS), order.ctypes.data_as(_INTS)
        if library().farthest_first(pointers[0], len(points), num, pointers[1]):
            raise MemoryError(f"the order of {len(points):,} points")
    return order
