"""Points on sharp edges, which samples by area miss: where faces meet at an angle or a surface ends.

As in Dora (Chen 2024), whose "sharp edge sampling" takes edges by their dihedral angle. Each point carries
the normals of both faces.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int8
from numpy import ndarray

from data_prep.geometry.farthest import farthest_first
from data_prep.geometry.topology import weld
from data_prep.mesh import Mesh
from shapeloom.surfaces import face_normals

SHARP_DEGREES = 30.0
"""Angle between the normals of two faces from which their edge is sharp."""
_CANDIDATES = 3
"""Points a kept one, for farthest-point thinning."""

Hidden = Callable[
    [Float64[ndarray, "candidates 3"], Float64[ndarray, "candidates 3"]], Bool[ndarray, " candidates"]
]


def sharp_edges(
    mesh: Mesh, *, degrees: float = SHARP_DEGREES
) -> tuple[Float[ndarray, "edges 2 3"], Float[ndarray, "edges 2 3"]]:
    """Ends of the sharp edges, and unit normals of the faces on either side (at a boundary twice the same).

    Vertices count by their positions. Where more than two faces meet in an edge, it is sharp.
    """
    _, welded = weld(np.asarray(mesh.vertices, np.float64), mesh.faces)
    start, end = welded.reshape(-1), welded[:, [1, 2, 0]].reshape(-1)
    real = np.flatnonzero(start != end)
    ends = np.stack([np.minimum(start, end), np.maximum(start, end)], axis=1)[real]
    order = real[np.lexsort((ends[:, 1], ends[:, 0]))]
    low, high = np.minimum(start, end)[order], np.maximum(start, end)[order]
    first = np.flatnonzero(np.append(True, (np.diff(low) != 0) | (np.diff(high) != 0)))
    count = np.diff(np.append(first, len(order)))
    one = order[first]
    other = order[np.minimum(first + 1, len(order) - 1)]
    other = np.where(count == 1, one, other)
    normals = face_normals(mesh.triangles)
    sides = np.stack([normals[one // 3], normals[other // 3]], axis=1)
    # Neighbours that pass their edge in the same direction are wound against each other.
    sides[(count > 1) & (start[one] == start[other]), 1] *= -1
    cosine = np.einsum("ec,ec->e", sides[:, 0], sides[:, 1])
    sharp = (count != 2) | (cosine < np.cos(np.radians(degrees)))
    return mesh.triangles.reshape(-1, 3)[_ends(one[sharp])], sides[sharp]


def _ends(corner: Int[ndarray, " edges"]) -> Int[ndarray, "edges 2"]:
    """Corner numbers of an edge's ends, by the corner that it starts from."""
    return np.stack([corner, corner - corner % 3 + (corner + 1) % 3], axis=1)


def edge_points(
    mesh: Mesh, num: int, rng: np.random.Generator, *, hidden: Hidden
) -> tuple[Float32[ndarray, "points 3"], Int8[ndarray, "points 2 3"]]:
    """`num` points, uniform by length, in farthest-point order, and both normals times 127; or none at all.

    None where the mesh has no sharp edge, or `hidden` (see `surface_points`) hides them all.
    """
    ends, sides = sharp_edges(mesh)
    length = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    if not length.sum() > 0:
        return np.zeros((0, 3), np.float32), np.zeros((0, 2, 3), np.int8)
    candidates = _CANDIDATES * num
    places = (np.arange(candidates) + rng.random(candidates)) / candidates * length.sum()
    cumulative = np.cumsum(length)
    edge = np.minimum(np.searchsorted(cumulative, places, side="right"), len(length) - 1)
    t = 1 - (cumulative[edge] - places) / np.maximum(length[edge], 1e-30)
    t = np.clip(t, 0, 1)[:, None]  # rounding of the cumulative sum
    positions = ends[edge, 0] * (1 - t) + ends[edge, 1] * t
    outward = sides[edge].sum(axis=1)
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)  # a sheet's sharp fold
    exposed = np.flatnonzero(~hidden(positions, outward))
    if not len(exposed):
        return np.zeros((0, 3), np.float32), np.zeros((0, 2, 3), np.int8)
    positions, edge = positions[exposed], edge[exposed]
    order = np.resize(farthest_first(positions, num), num)
    return positions[order].astype(np.float32), np.rint(127 * sides[edge[order]]).astype(np.int8)
