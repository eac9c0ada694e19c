"""How far points are from a surface, and how often it winds about them: by libigl, or by compiled code.

Distances are exact. Generalised winding numbers (Jacobson 2013) are approximate far away (Barill 2018), off
by 0.01 on real assets. The compiled code needs them for little of a surface: it closes each hole by a cap,
so that a ray tells exactly how often, a whole number of times, all of it winds about a point, and takes off
what the caps wind, which are few triangles. `python -m benchmarks.speed.insides` compares the two.
"""

from typing import Protocol, runtime_checkable

import igl
import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy import ndarray

from data_prep.geometry.topology import Closing
from data_prep.geometry.triangle_tree import TriangleTree

Points = Float64[ndarray, "points 3"]
Numbers = Float64[ndarray, " points"]


@runtime_checkable
class Queries(Protocol):
    """What a signed distance is made of."""

    def winding(self, points: Points) -> Numbers:
        """How often the surface winds about each point."""
        ...

    def distances(self, points: Points) -> tuple[Numbers, Numbers]:
        """Unsigned distances to the whole surface and to its sheets alone (infinite without any)."""
        ...


class LibraryQueries:
    """By libigl, which needs no compiler."""

    def __init__(
        self,
        vertices: Float64[ndarray, "vertices 3"],
        faces: Int[ndarray, "faces 3"],
        is_sheet: Bool[ndarray, " faces"],
    ) -> None:
        self._vertices, self._faces, self._is_sheet = vertices, faces, is_sheet
        self._sheets = np.ascontiguousarray(faces[is_sheet])
        self._tree = igl.FastWindingNumberBVH()
        self._tree.init(vertices, faces)

    def winding(self, points: Points) -> Numbers:
        """As `Queries` has it."""
        return self._tree.winding_number(points)

    def distances(self, points: Points) -> tuple[Numbers, Numbers]:
        """As `Queries` has it."""
        squared, nearest, _ = igl.point_mesh_squared_distance(points, self._vertices, self._faces)
        to_sheets = np.where(self._is_sheet[nearest], squared, np.inf)
        unknown = np.flatnonzero(~self._is_sheet[nearest])
        if len(self._sheets) and len(unknown):
            found = igl.point_mesh_squared_distance(points[unknown], self._vertices, self._sheets)
            to_sheets[unknown] = found[0]
        return np.sqrt(squared), np.sqrt(to_sheets)


class CompiledQueries:
    """By triangle_tree.cpp."""

    def __init__(
        self,
        triangles: Float64[ndarray, "faces 3 3"],
        is_sheet: Bool[ndarray, " faces"],
        closing: Closing,
    ) -> None:
        """Raises NotBuilt where there is no compiled code."""
        self._solids, self._sheets = _tree(triangles[~is_sheet]), _tree(triangles[is_sheet])
        self._closed, self._caps, self._loose = map(_tree, (closing.closed, closing.caps, closing.loose))

    def winding(self, points: Points) -> Numbers:
        """As `Queries` has it."""
        sums = np.zeros(len(points))
        if self._caps is not None:
            self._caps.add_windings(points, sums)
            np.negative(sums, out=sums)
        if self._closed is not None:
            self._closed.add_crossings(points, sums)
        if self._loose is not None:
            self._loose.add_windings(points, sums)
        return sums

    def distances(self, points: Points) -> tuple[Numbers, Numbers]:
        """As `Queries` has it."""
        squared = np.full(len(points), np.inf)
        if self._sheets is not None:
            self._sheets.lower_distances(points, squared)
        to_sheets = np.sqrt(squared)
        if self._solids is not None:
            self._solids.lower_distances(points, squared)
        return np.sqrt(squared), to_sheets


def _tree(triangles: Float64[ndarray, "triangles 3 3"]) -> TriangleTree | None:
    return TriangleTree(triangles) if len(triangles) else None
