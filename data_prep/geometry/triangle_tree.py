"""Distances to triangles, and how often they wind about points, by compiled code (triangle_tree.cpp)."""

import ctypes
import functools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from shapeloom.native import load

_DOUBLES = ctypes.POINTER(ctypes.c_double)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled code; raises NotBuilt where it can't be had."""
    found = load(Path(__file__).with_suffix(".cpp"))
    found.make_tree.argtypes, found.make_tree.restype = [_DOUBLES, ctypes.c_int64], ctypes.c_void_p
    found.free_tree.argtypes, found.free_tree.restype = [ctypes.c_void_p], None
    for function in (found.lower_distances, found.add_crossings, found.add_windings):
        function.argtypes = [ctypes.c_void_p, _DOUBLES, ctypes.c_int64, _DOUBLES]
        function.restype = ctypes.c_int32
    return found


class TriangleTree:
    """One triangle or more; any of them may lack area or be there twice.

    Its methods change the numbers that they are given, float64, one for each point.
    """

    def __init__(self, triangles: Float64[ndarray, "triangles 3 3"]) -> None:
        """Raises ValueError for what isn't triangles, and NotBuilt without compiled code."""
        known = triangles.shape[1:] == (3, 3) and np.isfinite(triangles).all()
        if not known or not 0 < len(triangles) < 2**31:
            raise ValueError(f"triangles of shape {triangles.shape}: expected (1 or more, 3, 3), all finite")
        corners = np.ascontiguousarray(triangles, np.float64)
        self._handle = library().make_tree(_pointer(corners), len(corners))
        if not self._handle:
            raise MemoryError(f"a tree of {len(triangles):,} triangles")
        weakref.finalize(self, library().free_tree, self._handle)

    def lower_distances(
        self, points: Float64[ndarray, "points 3"], squared: Float64[ndarray, " points"]
    ) -> None:
        """Lowers squared distances to that to the nearest triangle, where it is nearer."""
        self._run(library().lower_distances, points, squared)

    def add_crossings(self, points: Float64[ndarray, "points 3"], sums: Float64[ndarray, " points"]) -> None:
        """Adds how often triangles without a boundary wind about the points: whole numbers, exact."""
        self._run(library().add_crossings, points, sums)

    def add_windings(self, points: Float64[ndarray, "points 3"], sums: Float64[ndarray, " points"]) -> None:
        """Adds the generalised winding numbers of any triangles, approximate for those far away."""
        self._run(library().add_windings, points, sums)

    def _run(self, function: Any, points: ndarray, numbers: ndarray) -> None:
        points = np.ascontiguousarray(points, np.float64)
        assert numbers.dtype == np.float64 and numbers.flags.c_contiguous
        if points.ndim != 2 or points.shape[1] != 3 or not len(points) == len(numbers) < 2**31:
            raise ValueError(f"points {points.shape} and {numbers.shape} numbers: expected (n, 3) and (n,)")
        if function(self._handle, _pointer(points), len(points), _pointer(numbers)):
            raise MemoryError(f"the order of {len(points):,} points")


def _pointer(array: ndarray) -> Any:
    return array.ctypes.data_as(_DOUBLES)
