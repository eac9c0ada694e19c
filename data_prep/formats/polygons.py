"""Polygons to triangles that cover them: the one triangulation of every format that has polygons.

A polygon of n corners becomes n - 2 triangles with its winding, whose corners are all of its own, so that
every side of it is a side of a triangle and neighbours stay joined. A fan serves most. Where one would fold
over a concave corner, the triangles of least total area are taken, which for a simple plane polygon are those
that tile it (dynamic programming over chords: Barequet and Sharir, "Filling gaps in the boundary of a
polyhedron", 1995); this needs no plane and puts up with doubled corners and bridges to holes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

_MAX_FOLD = 1e-4
"""Of its area: what a fan may lay doubly, since rounding moves corners off straight lines."""
_MAX_CORNERS = 64
"""Of what least area is sought for, which takes n^3 / 6 steps; larger polygons lose ears first."""
_CHORD_WEIGHT = 1e-10
"""Of squared lengths beside areas: among equal areas shorter chords win, not rounding."""


def triangulate(
    points: Float[ndarray, "corners 3"], counts: Int[ndarray, " polygons"]
) -> tuple[Int[ndarray, "triangles 3"], Int[ndarray, " triangles"]]:
    """Triangles as numbers of corners, and which polygon each is of, in the polygons' order.

    points: position of each corner, polygon after polygon; counts: corners of each, of which fewer than 3
    give no triangle. A square's corners 0 to 3 are (0, 1, 2), (0, 2, 3); those of a dart whose notch is at 1
    are (0, 1, 3), (1, 2, 3).
    """
    counts = np.asarray(counts, np.int64)
    starts = np.cumsum(counts) - counts
    num = np.maximum(counts - 2, 0)
    firsts = np.cumsum(num) - num
    triangles = np.empty((num.sum(), 3), np.int64)
    for count in np.unique(counts[counts > 2]).tolist():
        mine = np.flatnonzero(counts == count)
        local = np.broadcast_to(_fan(count), (len(mine), count - 2, 3))
        if count > 3:
            corners = starts[mine, None] + np.arange(count)
            folded = _folded(points[corners])
            local = local.copy()
            local[folded] = _tile(points[corners[folded]])
        triangles[firsts[mine, None] + np.arange(count - 2)] = local + starts[mine, None, None]
    return triangles, np.repeat(np.arange(len(counts)), num)


def _fan(count: int) -> Int[ndarray, "triangles 3"]:
    second = np.arange(1, count - 1)
    return np.stack([np.zeros_like(second), second, second + 1], axis=1)


def _folded(points: Float[ndarray, "polygons n 3"]) -> Bool[ndarray, " polygons"]:
    """Where a fan from the first corner would cover ground twice, or ground that isn't the polygon's."""
    with np.errstate(all="ignore"):  # absurd numbers are refused elsewhere
        arms = points[:, 1:] - points[:, :1]
        crosses = np.cross(arms[:, :-1], arms[:, 1:])
        whole = crosses.sum(axis=1)
        size = np.linalg.norm(whole, axis=1)
        along = np.einsum("pti,pi->pt", crosses, whole / np.where(size > 0, size, 1)[:, None])
        ample = np.abs(crosses).sum(axis=(1, 2))
        # A bow tie whose halves cancel has no side to face; what has no area at all may be a fan.
        turned = size <= 1e-9 * ample
        folded = np.where(turned, ample > 0, -np.minimum(along, 0).sum(axis=1) > _MAX_FOLD * size)
    return folded & np.isfinite(ample)


def _tile(points: Float[ndarray, "polygons n 3"]) -> Int[ndarray, "polygons triangles 3"]:
    """Triangles of least area of polygons that all have n corners."""
    count = points.shape[1]
    if count > _MAX_CORNERS:
        tiled = [_clip_and_tile(polygon) for polygon in points]
        return np.stack(tiled) if tiled else np.empty((0, count - 2, 3), np.int64)
    chunk = max((1 << 18) // count**2, 1)  # keeps the tables within the processor's cache
    chunks = [_least_area(points[at : at + chunk]) for at in range(0, len(points), chunk)]
    return np.concatenate(chunks) if chunks else np.empty((0, count - 2, 3), np.int64)


def _least_area(points: Float[ndarray, "polygons n 3"]) -> Int[ndarray, "polygons triangles 3"]:
    """cost[i, j] is that of the part between the chord from corner i to j and the corners between them."""
    num, count, _ = points.shape
    cost, split = np.zeros((num, count, count)), np.zeros((num, count, count), np.int64)
    for length in range(2, count):
        i = np.arange(count - length)
        j, k = i + length, i[:, None] + np.arange(1, length)
        to_j = (points[:, j] - points[:, i])[:, :, None]
        area = np.linalg.norm(np.cross(points[:, k] - points[:, i, None], to_j), axis=3)
        total = cost[:, i[:, None], k] + cost[:, k, j[:, None]] + area
        best = total.argmin(axis=2)
        least = np.take_along_axis(total, best[..., None], axis=2)[..., 0]
        cost[:, i, j] = least + _CHORD_WEIGHT * (to_j**2).sum(axis=(2, 3))
        split[:, i, j] = best + i + 1
    return _trace(split)


def _trace(split: Int[ndarray, "polygons n n"]) -> Int[ndarray, "polygons triangles 3"]:
    """The triangles (i, split[i, j], j) on both sides of every chord from (0, n - 1) down."""
    num, count, _ = split.shape
    rows = np.arange(num)
    chords, height = np.zeros((num, count, 2), np.int64), np.ones(num, np.int64)
    chords[:, 0, 1] = count - 1
    triangles = np.empty((num, count - 2, 3), np.int64)
    for step in range(count - 2):
        height -= 1
        i, j = chords[rows, height].T
        k = split[rows, i, j]
        triangles[:, step] = np.stack([i, k, j], axis=1)
        for a, b in ((i, k), (k, j)):
            chords[rows, height] = np.stack([a, b], axis=1)
            height += b - a >= 2
    return triangles


def _clip_and_tile(points: Float[ndarray, "n 3"]) -> Int[ndarray, "triangles 3"]:
    """One large polygon: ears are clipped until the rest is small enough for the better way."""
    flat, ring, ears = _flatten(points), np.arange(len(points)), []
    while len(ring) > _MAX_CORNERS:
        tip = _ear(flat[ring])
        ears.append(ring[[tip - 1, tip, (tip + 1) % len(ring)]])
        ring = np.delete(ring, tip)
    return np.concatenate([np.stack(ears), ring[_least_area(points[ring][None])[0]]])


def _ear(ring: Float[ndarray, "n 2"]) -> int:
    """The corner that can be cut off by the shortest chord with no other corner in its triangle."""
    before, after = np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0)
    turn = _cross(ring - before, after - ring)
    convex = np.flatnonzero(turn > 0)
    if len(convex):
        order = convex[np.argsort(((after - before)[convex] ** 2).sum(axis=1), kind="stable")]
        reflex = ring[turn <= 0]
        for some in np.array_split(order, range(16, len(order), 16)):
            corners = np.stack([before[some], ring[some], after[some]], axis=1)
            inside = np.ones((len(some), len(reflex)), bool)
            for a, b in ((0, 1), (1, 2), (2, 0)):
                side = (corners[:, b] - corners[:, a])[:, None]
                inside &= _cross(side, reflex - corners[:, a, None]) >= 0
            # A corner at the same place, as at bridges, doesn't stand in the way.
            for a in range(3):
                inside &= (reflex != corners[:, a, None]).any(axis=2)
            free = np.flatnonzero(~inside.any(axis=1))
            if len(free):
                return int(some[free[0]])
    return int(np.abs(turn).argmin())  # of a polygon that crosses itself


def _flatten(points: Float[ndarray, "n 3"]) -> Float[ndarray, "n 2"]:
    """Coordinates in the polygon's mean plane (Newell's normal), in which it runs counter-clockwise."""
    around = points - points[0]
    normal = np.cross(around, np.roll(around, -1, axis=0)).sum(axis=0)
    if not normal.any():
        normal = np.eye(3)[np.ptp(points, axis=0).argmin()]
    normal = normal / np.linalg.norm(normal)
    side = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    side /= np.linalg.norm(side)
    return around @ np.stack([side, np.cross(normal, side)], axis=1)


def _cross(a: ndarray, b: ndarray) -> ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def join_holes(rings: Sequence[Float[ndarray, "_ 3"]]) -> Int[ndarray, " corners"]:
    """One ring of corners around a polygon with holes: numbers into the rings' corners, one after another.

    rings: the outline, then each hole, which may run either way. Each hole is joined by a bridge to and fro
    between two corners that see each other, so that both of these come twice.
    """
    sizes = [len(ring) for ring in rings]
    flat = _flatten(np.concatenate(rings))
    own = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    if _area(flat[own[0]]) < 0:
        flat = flat * [1, -1]
    joined = own[0]
    holes = [hole if _area(flat[hole]) < 0 else hole[::-1] for hole in own[1:]]
    while holes:
        sides = np.concatenate([np.stack([r, np.roll(r, -1)], axis=1) for r in (joined, *holes)])
        bridges = [_bridge(flat, joined, hole, sides) for hole in holes]
        nearest = min(range(len(holes)), key=lambda n: bridges[n][0])
        _, at, start = bridges[nearest]
        hole = np.roll(holes.pop(nearest), -start)
        joined = np.concatenate([joined[: at + 1], hole, hole[:1], joined[at:]])
    return joined


def _bridge(flat: ndarray, joined: ndarray, hole: ndarray, sides: ndarray) -> tuple[float, int, int]:
    """Squared length and both ends of the shortest line from ring to hole that crosses no side."""
    squares = ((flat[joined][:, None] - flat[hole][None]) ** 2).sum(axis=2)
    a, b = flat[sides[:, 0]], flat[sides[:, 1]]
    order = np.argsort(squares, axis=None, kind="stable")
    for pair in order:
        at, start = divmod(int(pair), len(hole))
        p, q = flat[joined[at]], flat[hole[start]]
        apart = _cross(b - a, p - a) * _cross(b - a, q - a) < 0
        if not (apart & (_cross(q - p, a - p) * _cross(q - p, b - p) < 0)).any():
            break
    else:  # rings that cross each other
        at, start = divmod(int(order[0]), len(hole))
    return float(squares[at, start]), at, start


def _area(ring: Float[ndarray, "n 2"]) -> float:
    return float(_cross(ring, np.roll(ring, -1, axis=0)).sum()) / 2
