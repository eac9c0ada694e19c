"""Signed distances of real meshes: open, inside out, double, intersecting.

1. Faces are joined into components by coinciding positions. Faces wound against their neighbours are turned
   to the majority of their patch; then a component of negative volume is inside out and is turned.
2. A point is inside where the generalised winding number of the turned mesh (Jacobson 2013) exceeds 1/2.
3. Components that enclose nothing (open ones, and closed ones thinner than a sheet, such as a face with
   its reverse) are sheets: they get a thickness, so that leaves and sails exist in the field.

    sdf = min(sign * distance to all, distance to sheets - thickness / 2)

Solid assets have no sheets and keep their exact distance.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from numpy import ndarray

from data_prep.geometry.points import sample_surface
from data_prep.geometry.queries import CompiledQueries, LibraryQueries, Queries
from data_prep.geometry.topology import against_majority, close_up, topology, weld
from data_prep.mesh import Mesh

NEAR = ((0.45, 0.01), (0.35, 0.05))
"""Share of the samples and standard deviation of their offset from the surface; the rest fill [-1, 1]^3."""

HIDDEN_OFFSET = 3e-3
"""How far to either side of a surface point to look for what hides it."""


@dataclass(frozen=True)
class SignedDistance:
    """Signed distance function of one mesh; make it with `signed_distance`."""

    queries: Queries
    """Of the mesh turned outwards."""
    low: Float64[ndarray, "3"]
    high: Float64[ndarray, "3"]
    """Corners of the mesh's box."""
    turned: Bool[ndarray, " faces"]
    """Faces of the original that were inside out."""
    watertight: bool
    thickness: float

    def __call__(self, points: Float64[ndarray, "points 3"]) -> Float32[ndarray, " points"]:
        """Signed distances, negative inside."""
        points = np.ascontiguousarray(points, np.float64)
        distance, to_sheets = self.queries.distances(points)
        sdf = np.where(self._inside(points), -distance, distance)
        return np.minimum(sdf, to_sheets - self.thickness / 2).astype(np.float32)

    def hidden(
        self, points: Float64[ndarray, "points 3"], normals: Float64[ndarray, "points 3"]
    ) -> Bool[ndarray, " points"]:
        """Whether surface points have the solid on both of their sides, as where parts overlap."""
        points = np.ascontiguousarray(points, np.float64)
        hidden = self._inside(points + HIDDEN_OFFSET * normals)
        hidden[hidden] = self._inside(points[hidden] - HIDDEN_OFFSET * normals[hidden])
        return hidden

    def _inside(self, points: Float64[ndarray, "points 3"]) -> Bool[ndarray, " points"]:
        boxed = ((points > self.low) & (points < self.high)).all(axis=1)
        inside = np.zeros(len(points), bool)
        inside[boxed] = self.queries.winding(points[boxed]) > 0.5
        return inside


def signed_distance(mesh: Mesh, *, thickness: float, compiled: bool = False) -> SignedDistance:
    """The function that is negative inside `mesh`; sheets count as `thickness` thick.

    compiled: see `queries`; raises NotBuilt where it can't be.
    """
    vertices, faces = np.ascontiguousarray(mesh.vertices, np.float64), mesh.faces.astype(np.int64)
    positions, welded = weld(vertices, faces)
    odd = against_majority(positions, welded)
    welded = _turn(welded, odd)
    parts = topology(positions, welded)
    inverted = (parts.volume < 0)[parts.component]
    faces = _turn(faces, odd ^ inverted)
    # Twice volume over area is the thickness of a plate.
    sheet = ~parts.closed | (2 * np.abs(parts.volume) < thickness * parts.area)
    is_sheet = sheet[parts.component]
    triangles = vertices[faces]
    queries: Queries
    if compiled:
        closing = close_up(positions, _turn(welded, inverted), parts.component)
        queries = CompiledQueries(triangles, is_sheet, closing)
    else:
        queries = LibraryQueries(vertices, faces, is_sheet)
    low, high = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
    return SignedDistance(queries, low, high, odd ^ inverted, bool(parts.closed.all()), thickness)


def _turn(faces: Int[ndarray, "faces 3"], turned: Bool[ndarray, " faces"]) -> Int[ndarray, "faces 3"]:
    """The faces with some of them reversed."""
    return np.ascontiguousarray(np.where(turned[:, None], faces[:, [0, 2, 1]], faces))


def sdf_samples(
    mesh: Mesh, distance: SignedDistance, num: int, rng: np.random.Generator
) -> tuple[Float32[ndarray, "num 3"], Float32[ndarray, " num"]]:
    """Points of [-1, 1]^3, most of them near the surface, shuffled, and their signed distances."""
    points = [rng.uniform(-1, 1, (num - sum(int(share * num) for share, _ in NEAR), 3))]
    for share, sigma in NEAR:
        face, weights = sample_surface(mesh, int(share * num), rng)
        surface = np.einsum("nc,ncd->nd", weights, mesh.triangles[face])
        points.append(surface + sigma * rng.standard_normal(surface.shape))
    stacked = np.clip(np.concatenate(points), -1, 1)[rng.permutation(num)].astype(np.float32)
    return stacked, distance(stacked.astype(np.float64))
