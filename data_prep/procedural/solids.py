"""Closed solids from a few numbers, as plain arrays: what the procedural families are built of.

A solid is (vertices [V, 3] float64, faces [F, 3] int64): watertight, faces wound outward, +Z up. Every shape
is a loft: rings of K points each, stitched one to the next and closed by a fan at both ends (or back onto
the first ring). Caps are fans, so that a ring must be star-shaped as seen from its apex.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Solid = tuple[Floats, NDArray[np.int64]]
Coordinates = Sequence[Any] | NDArray[Any]
"""Numbers, or nested sequences of numbers."""
SEGMENTS = 24


def loft(
    rings: Coordinates,
    *,
    start: Coordinates | None = None,
    end: Coordinates | None = None,
    closed: bool = False,
) -> Solid:
    """Returns the solid through `rings` [R, K, 3].

    start, end: apex of the first and last cap (default: that ring's mean). closed: the last ring joins the
    first and there are no caps, as in a torus.
    """
    points = np.asarray(rings, dtype=np.float64)
    num_rings, size, _ = points.shape
    vertices = points.reshape(-1, 3)
    if not closed:
        apexes = [
            points[i].mean(axis=0) if apex is None else np.asarray(apex, dtype=np.float64)
            for i, apex in ((0, start), (-1, end))
        ]
        vertices = np.concatenate([vertices, np.stack(apexes)])
    faces = _loft_faces(num_rings, size, closed)
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    if np.einsum("ij,ij->", a, np.cross(b, c)) < 0:  # six times the signed volume
        faces = faces[:, ::-1]
    return vertices, faces


@lru_cache(maxsize=256)
def _loft_faces(num_rings: int, size: int, closed: bool) -> NDArray[np.int64]:
    here = np.arange(size)
    following = (here + 1) % size
    faces = []
    for ring in range(num_rings if closed else num_rings - 1):
        low, high = ring * size, (ring + 1) % num_rings * size
        faces.append(np.stack([low + here, low + following, high + following], axis=1))
        faces.append(np.stack([low + here, high + following, high + here], axis=1))
    if not closed:
        first, last = num_rings * size, num_rings * size + 1
        faces.append(np.stack([np.full(size, first), following, here], axis=1))
        top = (num_rings - 1) * size
        faces.append(np.stack([np.full(size, last), top + here, top + following], axis=1))
    return np.concatenate(faces)


def join(solids: Sequence[Solid]) -> Solid:
    """Returns several solids as one pair of arrays; they may overlap."""
    offsets = np.cumsum([0] + [len(vertices) for vertices, _ in solids[:-1]])
    faces = [faces + offset for (_, faces), offset in zip(solids, offsets, strict=True)]
    return np.concatenate([vertices for vertices, _ in solids]), np.concatenate(faces)


def moved(solid: Solid, offset: Coordinates) -> Solid:
    """Returns the solid shifted by `offset` [3]."""
    return solid[0] + np.asarray(offset, dtype=np.float64), solid[1]


def turned(solid: Solid, degrees: float, *, axis: str) -> Solid:
    """Returns the solid turned about the axis "x", "y" or "z" through the origin (right-hand rule)."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    vertices = solid[0].copy()
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    vertices[:, i] = cosine * solid[0][:, i] - sine * solid[0][:, j]
    vertices[:, j] = sine * solid[0][:, i] + cosine * solid[0][:, j]
    return vertices, solid[1]


def circle(segments: int = SEGMENTS) -> Floats:
    """Returns the unit circle [segments, 2], half a step off the x axis so that 4 segments make a square."""
    angle = (np.arange(segments) + 0.5) * (2 * math.pi / segments)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def box(
    size: Coordinates, centre: Coordinates, *, bevel: float = 0.02, taper: tuple[float, float] = (1.0, 1.0)
) -> Solid:
    """Returns a box with chamfered edges.

    size, centre: [3]. bevel: chamfer width, same units. taper: factor on x and y of the top face.
    """
    half = np.asarray(size, dtype=np.float64) / 2
    cut = min(bevel, 0.45 * float(half.min()))
    x, y = half[0], half[1]
    outline = [(x, y - cut), (x - cut, y), (cut - x, y), (-x, y - cut)]
    outline += [(-px, -py) for px, py in outline]
    corner = np.array(outline)
    inset = corner * ((half[:2] - cut) / half[:2])
    levels = [
        (inset, -half[2], 0.0),
        (corner, cut - half[2], 0.0),
        (corner, half[2] - cut, 1.0),
        (inset, half[2], 1.0),
    ]
    rings = [
        np.column_stack([flat * (1 + top * (np.array(taper) - 1)), np.full(8, height)])
        for flat, height, top in levels
    ]
    return moved(loft(rings), centre)


def lathe(profile: Coordinates, *, segments: int = SEGMENTS, rib: float = 0.0) -> Solid:
    """Returns the solid of revolution about z.

    profile: [P, 2] pairs (radius, height) from one end to the other; a radius of 0 at either end is the apex
    of the cap there. rib: fraction by which every second point is pulled in, for a fluted surface.
    """
    pairs = np.asarray(profile, dtype=np.float64)
    start = end = None
    if pairs[0, 0] == 0:
        start, pairs = (0.0, 0.0, pairs[0, 1]), pairs[1:]
    if pairs[-1, 0] == 0:
        end, pairs = (0.0, 0.0, pairs[-1, 1]), pairs[:-1]
    unit = circle(segments)
    unit[1::2] *= 1 - rib
    flat = pairs[:, None, :1] * unit[None]
    height = np.broadcast_to(pairs[:, None, 1:], (len(pairs), segments, 1))
    return loft(np.concatenate([flat, height], axis=2), start=start, end=end)


def ball(radii: Coordinates, centre: Coordinates, *, segments: int = 20, stacks: int = 10) -> Solid:
    """Returns an ellipsoid; radii, centre: [3]."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, stacks + 1)
    profile = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    profile[[0, -1], 0] = 0.0
    vertices, faces = lathe(profile, segments=segments)
    return vertices * np.asarray(radii, dtype=np.float64) + np.asarray(centre, dtype=np.float64), faces


def rod(
    start: Coordinates,
    end: Coordinates,
    radius: float,
    end_radius: float | None = None,
    *,
    segments: int = 16,
) -> Solid:
    """Returns a cylinder, or a truncated cone with `end_radius`, between two points [3]."""
    low, high = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    direction = (high - low) / np.linalg.norm(high - low)
    helper = np.eye(3)[int(np.argmin(np.abs(direction)))]
    across = np.cross(direction, helper)
    across /= np.linalg.norm(across)
    offsets = circle(segments) @ np.stack([across, np.cross(direction, across)])
    return loft([low + radius * offsets, high + (radius if end_radius is None else end_radius) * offsets])


def tube(
    path: Coordinates, radius: float, *, normal: Coordinates, closed: bool = False, segments: int = 10
) -> Solid:
    """Returns a round tube along a plane curve; path: [P, 3], normal: [3] unit normal of its plane."""
    points, up = np.asarray(path, dtype=np.float64), np.asarray(normal, dtype=np.float64)
    if closed:
        tangent = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    else:
        tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent, up)
    unit = circle(segments) * radius
    rings = points[:, None] + unit[None, :, :1] * up + unit[None, :, 1:] * side[:, None]
    return loft(rings, closed=closed)


def extrude(outline: Coordinates, thickness: float, *, axis: str = "y") -> Solid:
    """Returns a plate: the star-shaped outline [K, 2] drawn out symmetrically along `axis`.

    The outline's two coordinates are (x, z) for axis "y", (y, z) for "x" and (x, y) for "z".
    """
    flat = np.asarray(outline, dtype=np.float64)
    column = {"x": 0, "y": 1, "z": 2}[axis]
    return loft([np.insert(flat, column, side * thickness / 2, axis=1) for side in (-1.0, 1.0)])


def arc(centre: Coordinates, radius: float, degrees: Coordinates, num: int) -> Floats:
    """Returns `num` points [num, 2] of a circular arc about `centre` [2] between two angles `degrees` [2]."""
    angle = np.radians(np.linspace(degrees[0], degrees[1], num))
    return np.array(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
