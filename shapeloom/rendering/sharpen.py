"""Marching cubes' vertices moved onto the field's own surface, edges and corners.

Marching cubes cuts edges and corners off, since its vertices lie on the grid's edges. Each is moved here to
where the field's tangent planes at the faces around it meet (least squares; Ohtake & Belyaev 2002,
"Dual/primal mesh optimization for polygonized implicit surfaces"). Which vertices make a face stays as it is:
a closed surface stays closed.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from shapeloom.box import SIDE
from shapeloom.rendering.isosurface import WALL, Field, Gradient

# Directions in which the planes around a vertex agree to this share of the largest eigenvalue are left alone:
# what the planes say of them is rounding, and flat places would slide. Ohtake & Belyaev's own.
SINGULAR = 0.1
# A vertex is asked about where the mean of its faces' unit normals is shorter than this, 6 degrees off each.
# The bevels of a right angle leave 0.92. It spares boxes three quarters of the field's evaluations and more.
FLAT = 0.995
# Marching cubes errs by less than a cell's side; what would move further has no edge of its own there.
FURTHEST_CELLS = 1.0


def sharpen(
    sdf: Field,
    gradient: Gradient,
    vertices: Float[np.ndarray, "vertices 3"],
    faces: Int[np.ndarray, "faces 3"],
    *,
    resolution: int,
    rounds: int = 2,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "vertices 3"]:
    """Returns new places (float32) for the vertices of `extract_surface` at the same `resolution`.

    gradient: points [n, 3] -> the field's gradients [n, 3]; the field needn't have a slope of 1.
    rounds: at 96^3 two reach a turned box's edges to 0.3% of a cell, one to 3% (docs/LOG.md).
    """
    if not len(faces):
        return vertices
    cell = SIDE / resolution
    start = vertices.astype(np.float64)
    asked = _bent(start, faces)[faces].any(axis=1)
    places = start
    for _ in range(rounds):
        # Where the surface is flat the faces' own planes do, and spread the vertices evenly.
        points, normals, _ = _own_planes(places, faces)
        points[asked], normals[asked] = _tangent_planes(sdf, gradient, points[asked], cell, device)
        moved = _meeting_places(len(places), faces, points, normals) - start
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        places = start + moved * np.minimum(1, FURTHEST_CELLS * cell / np.maximum(length, 1e-12))
        places = places.clip(-1, 1)
    return places.astype(np.float32)


def _own_planes(places: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the faces' middles, unit normals (0 without area) and doubled areas."""
    a, b, c = (places[faces[:, i]] for i in range(3))
    cross = np.cross(b - a, c - a)
    area = np.linalg.norm(cross, axis=1, keepdims=True)
    return (a + b + c) / 3, cross / np.maximum(area, 1e-20), area[:, 0]


def _bent(places: np.ndarray, faces: np.ndarray) -> Bool[np.ndarray, " vertices"]:
    """Returns the vertices around which faces turn: their mean normal is shorter than 1."""
    _, normals, area = _own_planes(places, faces)
    corner = faces.ravel()
    total = np.bincount(corner, np.repeat(area, 3), len(places))
    sums = [np.bincount(corner, np.repeat(area * normals[:, i], 3), len(places)) for i in range(3)]
    return np.linalg.norm(sums, axis=0) < FLAT * total


def _tangent_planes(
    sdf: Field, gradient: Gradient, points: np.ndarray, cell: float, device: torch.device | str
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points 3"]]:
    """Returns where a Newton step from each point leads (half a cell away at most), and unit normals."""
    at = torch.from_numpy(points.astype(np.float32)).to(device)
    value, slope = sdf(at).double(), gradient(at).double()
    # The surface is closed at the box, as `extract_surface` closes it.
    outside, axis = at.double().abs().max(dim=-1)
    wall = outside - (1 - WALL * cell)
    of_wall = torch.zeros_like(slope).scatter_(1, axis[:, None], at.double().gather(1, axis[:, None]).sign())
    slope = torch.where((wall > value)[:, None], of_wall, slope)
    value = torch.maximum(value, wall)
    size = slope.norm(dim=-1).clamp(min=1e-12)
    normal = slope / size[:, None]
    step = (value / size).clamp(-cell / 2, cell / 2)
    return (at.double() - step[:, None] * normal).cpu().numpy(), normal.cpu().numpy()


def _meeting_places(
    num: int, faces: np.ndarray, points: np.ndarray, normals: np.ndarray
) -> Float[np.ndarray, "vertices 3"]:
    """Returns, for each vertex, the place nearest to its faces' planes and, of many, to their mean."""
    corner = faces.ravel()

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(corner, np.repeat(values, 3), num)

    count = np.maximum(np.bincount(corner, minlength=num), 1)
    mean = np.stack([total(points[:, i]) for i in range(3)], axis=1) / count[:, None]
    # n n^T x = n n^T p, summed over the faces, around the mean point.
    matrix = np.stack([[total(normals[:, i] * normals[:, j]) for j in range(3)] for i in range(3)])
    matrix = matrix.transpose(2, 0, 1)
    offset = (normals * points).sum(axis=1)
    right = np.stack([total(normals[:, i] * offset) for i in range(3)], axis=1)
    right -= (matrix @ mean[..., None])[..., 0]
    values, vectors = np.linalg.eigh(matrix)
    kept = values > SINGULAR * values[:, -1:]
    inverse = np.where(kept, 1 / np.where(kept, values, 1), 0)
    along = (vectors.transpose(0, 2, 1) @ right[..., None])[..., 0] * inverse
    return mean + (vectors @ along[..., None])[..., 0]
