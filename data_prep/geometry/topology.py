"""How a mesh's faces hang together: what is one piece, what is closed, what is wound against its neighbours.

Positions stand for vertices here, each once (`weld`). Faces that share one belong to one component. An edge
that is passed as often forwards as backwards, by all faces together, is no boundary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import igl
import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy import ndarray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from shapeloom.surfaces import face_crosses

WELD = 1e-5
"""Positions closer than about this are one vertex; assets are 1.9 across."""


@dataclass(frozen=True)
class Topology:
    """The components of a mesh."""

    component: Int[ndarray, " faces"]
    closed: Bool[ndarray, " components"]
    """Whether it has no boundary."""
    volume: Float64[ndarray, " components"]
    """Signed; about the component's own middle, so that it means something for open ones too."""
    area: Float64[ndarray, " components"]


@dataclass(frozen=True)
class Closing:
    """A surface as closed - caps + loose, in triangles."""

    closed: Float64[ndarray, "closed 3 3"]
    """Without a boundary."""
    caps: Float64[ndarray, "caps 3 3"]
    """Of those the ones that close holes."""
    loose: Float64[ndarray, "loose 3 3"]
    """Faces of components that have more boundary than faces."""


def weld(
    vertices: Float64[ndarray, "vertices 3"], faces: Int[ndarray, "faces 3"]
) -> tuple[Float64[ndarray, "positions 3"], Int[ndarray, "faces 3"]]:
    """One vertex for all that coincide, and the faces over those."""
    cells = np.rint(vertices / WELD).astype(np.int64)
    cells -= cells.min(axis=0)
    key = np.ravel_multi_index(tuple(cells.T), tuple(cells.max(axis=0) + 1))
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    return vertices[first], number[faces]


def topology(positions: Float64[ndarray, "positions 3"], faces: Int[ndarray, "faces 3"]) -> Topology:
    """Components, their closedness, signed volume and area."""
    of_position = _connected((faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)), len(positions))
    count = int(of_position.max()) + 1
    component = of_position[faces[:, 0]]
    start, _ = boundary(faces, len(positions))
    closed = np.bincount(of_position[start], minlength=count) == 0
    triangles = positions[faces]
    crosses = face_crosses(triangles)
    double_area = np.linalg.norm(crosses, axis=1)
    middle = triangles.mean(axis=1)
    total = np.bincount(component, double_area, count)
    centre = np.stack(
        [
            np.bincount(component, double_area * middle[:, d], count) / np.maximum(total, 1e-300)
            for d in range(3)
        ],
        axis=1,
    )
    volume = np.einsum("ij,ij->i", middle - centre[component], crosses) / 6
    return Topology(component, closed, np.bincount(component, volume, count), total / 2)


def against_majority(
    positions: Float64[ndarray, "positions 3"], faces: Int[ndarray, "faces 3"]
) -> Bool[ndarray, " faces"]:
    """Faces that are wound against the greater part, by area, of the manifold patch that they belong to."""
    start, end = faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
    _, edge, passes = np.unique(start * len(positions) + end, return_inverse=True, return_counts=True)
    twice = (passes[edge] > 1).reshape(-1, 3).any(axis=1)  # an edge is passed twice in one direction
    against = np.zeros(len(faces), bool)
    if not twice.any():
        return against
    component = _connected((start, end), len(positions))[faces[:, 0]]
    odd = np.flatnonzero(np.isin(component, component[twice]))  # the others are consistent as they are
    oriented, patch = igl.bfs_orient(np.ascontiguousarray(faces[odd], np.int64))
    turned = (oriented != faces[odd]).any(axis=1)
    area = np.linalg.norm(face_crosses(positions[faces[odd]]), axis=1)
    minority = np.bincount(patch, np.where(turned, area, -area)) <= 0
    against[odd] = turned == minority[patch]
    return against


def close_up(
    positions: Float64[ndarray, "positions 3"],
    faces: Int[ndarray, "faces 3"],
    component: Int[ndarray, " faces"],
) -> Closing:
    """Closes every hole by a fan of triangles about its middle; component: see `Topology`."""
    num = len(positions)
    start, end = boundary(faces, num)
    of_position = np.zeros(num, np.int64)
    of_position[faces] = component[:, None]
    edges, own = (np.bincount(c, minlength=component.max() + 1) for c in (of_position[start], component))
    is_loose = edges > own
    kept = ~is_loose[of_position[start]]
    start, end = start[kept], end[kept]
    hole = _connected((start, end), num)[start]
    sums = np.stack([np.bincount(hole, positions[start, d], num) for d in range(3)], axis=1)
    middle = sums[hole] / np.bincount(hole, minlength=num)[hole, None]
    caps = np.stack([positions[end], positions[start], middle], axis=1)
    triangles, loose = positions[faces], is_loose[component]
    return Closing(np.concatenate([triangles[~loose], caps]), caps, triangles[loose])


def boundary(
    faces: Int[ndarray, "faces 3"], num: int
) -> tuple[Int[ndarray, " edges"], Int[ndarray, " edges"]]:
    """Start and end of the edges passed more often this way than back, each as many times as it is so.

    num: of positions. As many of these edges end at a position as start there: they are closed curves.
    """
    start, end = faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
    low, high = np.minimum(start, end), np.maximum(start, end)
    passes = coo_matrix((np.where(start < end, 1, -1), (low, high)), shape=(num, num)).tocsr().tocoo()
    left = (passes.data != 0) & (passes.row != passes.col)
    row, column, balance = passes.row[left], passes.col[left], passes.data[left]
    starts, ends = np.where(balance > 0, row, column), np.where(balance > 0, column, row)
    return np.repeat(starts, np.abs(balance)), np.repeat(ends, np.abs(balance))


def _connected(edges: Sequence[Int[ndarray, " edges"]], num: int) -> Int[ndarray, " positions"]:
    """For each position the number of what hangs together with it."""
    graph = coo_matrix((np.ones(len(edges[0]), bool), tuple(edges)), shape=(num, num))
    return connected_components(graph, directed=False)[1]
