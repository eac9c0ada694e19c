"""What a mesh hangs together as: its parts, its hollows, its pinches, its budget of triangles.

vertices [n, 3] and faces [m, 3], outward and counter-clockwise. Closed: each edge is passed as often one way
as the other. Watertight: exactly once each way, so that nothing is pinched together at an edge either.
"""

import math

import fast_simplification
import igl
import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Vertices = Float[np.ndarray, "vertices 3"]
Faces = Int[np.ndarray, "faces 3"]
SomeMesh = tuple[Float[np.ndarray, "some 3"], Int[np.ndarray, "some_faces 3"]]

# How fast fast-simplification lets errors grow. For the same number of faces its own 7 errs twice as much as
# 5 on curved surfaces (docs/LOG.md).
AGGRESSION = 5
# A pinch's sides are drawn apart by this share of the way to their own faces' middle: programs that join
# vertices by their place would pinch them again.
PINCH_SHARE = 0.02
# ... and so often, until no two have the same place in float32.
PINCH_ROUNDS = 8


def parts(vertices: Vertices, faces: Faces) -> Int[np.ndarray, " faces"]:
    """Returns the number, from 0 on, of the connected part that each face belongs to."""
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    return np.unique(_connected(edges, len(vertices))[faces[:, 0]], return_inverse=True)[1]


def part_areas(vertices: Vertices, faces: Faces) -> Float[np.ndarray, " parts"]:
    """Returns the area of each connected part, the largest first."""
    areas = np.bincount(parts(vertices, faces), weights=trimesh.triangles.area(vertices[faces]))
    return np.sort(areas)[::-1].astype(np.float64)  # integers, where there are no parts


def _connected(edges: Int[np.ndarray, "edges 2"], num: int) -> Int[np.ndarray, " num"]:
    """Returns the number of the connected component of each of `num` nodes."""
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(num, num))
    return connected_components(graph, directed=False)[1]


def drop_crumbs(vertices: Vertices, faces: Faces, *, min_share: float, max_components: int = 0) -> SomeMesh:
    """Drops connected parts with less than `min_share` of the whole area; the largest part always stays.

    max_components: keep no more parts than this, the largest by area; 0 keeps them all.
    """
    if not len(faces):
        return vertices, faces
    part = parts(vertices, faces)
    area = np.bincount(part, weights=trimesh.triangles.area(vertices[faces]))
    keep = area >= min(min_share * area.sum(), area.max())
    if max_components:
        keep[np.argsort(-area, kind="stable")[max_components:]] = False
    return compact(vertices, faces[keep[part]])


def fill_cavities(vertices: Vertices, faces: Faces) -> SomeMesh:
    """Drops what nothing leads to from outside: walls of hollows, and parts that float in them.

    A part that only reaches into another, as simplification leaves them, stays.
    """
    if not len(faces):
        return vertices, faces
    part, places = parts(vertices, faces), vertices.astype(np.float64)
    a, b, c = (places[faces[:, i]] for i in range(3))
    keep = np.bincount(part, weights=(a * np.cross(b, c)).sum(axis=1)) > 0
    solid = keep.copy()
    # Of nearly all parts the first place is outside of all others already: each is asked of one by one, since
    # to prepare them all for every part takes a second in noise.
    first, around = a[np.unique(part, return_index=True)[1]], np.zeros(len(keep))
    for number in np.flatnonzero(solid) if solid.sum() > 1 else ():
        own = faces[part == number]
        corners = places[own].reshape(-1, 3)
        within = solid & ((corners.min(axis=0) <= first) & (first <= corners.max(axis=0))).all(axis=1)
        within[number] = False
        if within.any():
            around[within] += igl.winding_number(places, own, first[within])
    for number in np.flatnonzero(around >= 0.5):
        others = faces[solid[part] & (part != number)]
        own_places = places[np.unique(faces[part == number])]
        keep[number] = (igl.winding_number(places, others, own_places) < 0.5).any()
    return compact(vertices, faces[keep[part]])


def simplify(vertices: Vertices, faces: Faces, *, max_faces: int) -> SomeMesh:
    """Simplifies a closed mesh to about `max_faces` triangles by quadric error; it comes out watertight.

    Where it stops short of the number, nothing more could go without turning faces over.
    """
    if len(faces) > max_faces:
        vertices, faces = fast_simplification.simplify(
            vertices, faces.astype(np.int32), target_count=max_faces, agg=AGGRESSION
        )
    return separate_pinches(vertices, faces)


def separate_pinches(vertices: Vertices, faces: Faces) -> SomeMesh:
    """Returns a closed mesh as a watertight one: what is pinched together at an edge or vertex comes apart.

    Simplification pinches thin places together (every fourth hard case) and leaves sheets of two opposite
    faces, which vanish here. Vertices at the same place come apart too, such as those that sharpening brought
    together on the box's walls. Raises ValueError for a mesh that isn't closed.
    """
    faces = _without_sheets(faces.astype(np.int64))
    if not len(faces):
        return compact(vertices, faces)
    first, second = _opposite_edges(faces)
    while True:
        origin, split = _split(faces, first, second)
        again = _passed_again(split, first)
        if not len(again):
            break
        # Both ends still turn around both sides of this edge: joined the other way, they come apart.
        second[again], second[again - 1] = second[again - 1], second[again]
    faces = split
    return _apart(vertices[origin], faces, touching=np.bincount(origin)[origin] > 1), faces


def _apart(
    vertices: Vertices, faces: Faces, *, touching: Bool[np.ndarray, " vertices"]
) -> Float[np.ndarray, "vertices 3"]:
    """Returns float32 places, no two the same: vertices that touch are drawn towards their own faces."""
    vertices = vertices.astype(np.float64)
    touching = touching | _shares_place(vertices)
    if touching.any():
        middle = vertices[faces].mean(axis=1)
        count = np.maximum(np.bincount(faces.ravel(), minlength=len(vertices)), 1)[:, None]
        total = [np.bincount(faces.ravel(), np.repeat(middle[:, i], 3), len(vertices)) for i in range(3)]
        step = PINCH_SHARE * (np.stack(total, axis=1) / count - vertices)
        for _ in range(PINCH_ROUNDS):
            vertices[touching] += step[touching]
            touching = _shares_place(vertices)
            if not touching.any():
                break
    return vertices.astype(np.float32)


def joined_by_place(vertices: Vertices, faces: Faces) -> Faces:
    """Returns faces whose vertices are numbered by their float32 places, as programs join them."""
    index = np.unique(vertices.astype(np.float32), axis=0, return_inverse=True)[1].ravel()
    return index[faces].astype(np.int64)


def _shares_place(vertices: Vertices) -> Bool[np.ndarray, " vertices"]:
    """Returns which vertices have the same float32 place as another."""
    _, index, count = np.unique(vertices.astype(np.float32), axis=0, return_inverse=True, return_counts=True)
    return count[index.ravel()] > 1


def _passed_again(faces: Faces, edges: Int[np.ndarray, " edges"]) -> Int[np.ndarray, " again"]:
    """Returns which of the edges join the same vertices as the one before them; no two in a row."""
    start, end = faces.ravel()[edges], np.roll(faces, -1, axis=1).ravel()[edges]
    code = np.minimum(start, end) * (faces.max() + 1) + np.maximum(start, end)
    same = np.flatnonzero(code[1:] == code[:-1]) + 1
    return same[np.diff(same, prepend=-1) > 1]


def is_watertight(faces: Faces) -> bool:
    """Returns whether each edge is passed exactly once each way; a mesh without faces isn't watertight."""
    start, end = faces.ravel().astype(np.int64), np.roll(faces, -1, axis=1).ravel()
    size = faces.max(initial=0) + 1
    there, back = np.unique(start * size + end), np.unique(end * size + start)
    return 0 < len(there) == faces.size and np.array_equal(there, back)


def split_creases(vertices: Vertices, faces: Faces, *, degrees: float) -> SomeMesh:
    """Returns a closed mesh's faces with vertices doubled along edges where faces turn by `degrees` or more.

    Two faces share a vertex if one can walk between them around it without crossing such an edge.
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
    first, second = _opposite_edges(faces)
    flat = (normal[first // 3] * normal[second // 3]).sum(axis=1) > math.cos(math.radians(degrees))
    origin, faces = _split(faces, first[flat], second[flat])
    return vertices[origin], faces


def _opposite_edges(faces: Faces) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"]]:
    """Returns the edges of faces, numbered 3 * face + corner that they start at, in opposite pairs."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    key = np.minimum(start, end).astype(np.int64) * (faces.max(initial=0) + 1) + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    upward = (start < end)[order]
    first, second = order[upward], order[~upward]
    if not np.array_equal(key[first], key[second]):
        raise ValueError("expected a closed mesh: each edge is passed as often one way as the other.")
    return first, second


def _split(
    faces: Faces, first: Int[np.ndarray, " edges"], second: Int[np.ndarray, " edges"]
) -> tuple[Int[np.ndarray, " split"], Faces]:
    """Returns where vertices came from, and faces that share them across the given pairs of edges alone."""
    following = np.roll(np.arange(faces.size).reshape(-1, 3), -1, axis=1).ravel()
    pairs = np.concatenate([np.stack([first, following[second]], 1), np.stack([following[first], second], 1)])
    group = _connected(pairs, faces.size)
    _, representative, number = np.unique(group, return_index=True, return_inverse=True)
    return faces.ravel()[representative], number.reshape(-1, 3).astype(np.int64)


def _without_sheets(faces: Faces) -> Int[np.ndarray, "kept 3"]:
    """Returns the faces without pairs that lie back to back on the same corners, and without lines."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, group, count = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    keep: Bool[np.ndarray, " faces"] = np.ones(len(faces), bool)
    for number in np.flatnonzero(count > 1):
        same = np.flatnonzero(group == number)
        x, y, z = faces[same].T
        turn = np.sign((x - y) * (y - z) * (z - x))
        one, other = same[turn > 0], same[turn < 0]
        gone = min(len(one), len(other))
        keep[one[:gone]] = keep[other[:gone]] = False
    return faces[keep]


def compact(vertices: Vertices, faces: Faces) -> SomeMesh:
    """Returns a mesh without the vertices that no face uses."""
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used].astype(np.float32), index.reshape(-1, 3).astype(np.int64)
