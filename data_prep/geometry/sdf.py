"""Signed distances of real meshes: open, inside out, double, intersecting.

1. Faces are joined into components by coinciding positions. Faces wound against their neighbours are turned
   to the majority of their patch; then a component of negative volume is inside out and is turned.
2. A point is inside where the generalised winding number of the turned mesh (Jacobson 2013) exceeds 1/2.
3. Components that enclose nothing (open ones, and closed ones thinner than a sheet, such as a face with
   its reverse) are sheets: they get a thickness, so that leaves and sails exist in the field.

    sdf = min(sign * distance to all, distance to sheets - thickness / 2)

Solid assets have no sheets and keep their exact distance.
"""

import functools
from dataclasses import dataclass

import igl
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from numpy import ndarray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from data_prep.geometry.points import sample_surface
from data_prep.mesh import Mesh
from shapeloom.surfaces import face_crosses

WELD = 1e-5
"""Positions closer than about this are one vertex; assets are 1.9 across."""
NEAR = ((0.45, 0.01), (0.35, 0.05))
"""Share of the samples and standard deviation of their offset from the surface; the rest fill [-1, 1]^3."""

HIDDEN_OFFSET = 3e-3
"""How far to either side of a surface point to look for what hides it."""


@dataclass(frozen=True)
class Topology:
    """How a mesh's faces hang together."""

    component: Int[ndarray, " faces"]
    closed: Bool[ndarray, " components"]
    """Whether every edge is passed as often forwards as backwards: the component has no boundary."""
    volume: Float64[ndarray, " components"]
    """Signed; about the component's own middle, so that it means something for open ones too."""
    area: Float64[ndarray, " components"]


def weld(vertices: Float64[ndarray, "vertices 3"], faces: Int[ndarray, "faces 3"]) -> Int[ndarray, "faces 3"]:
    """Faces over vertex numbers that coinciding positions share."""
    _, number = np.unique(np.rint(vertices / WELD).astype(np.int64), axis=0, return_inverse=True)
    return number.reshape(-1)[faces]


def topology(vertices: Float64[ndarray, "vertices 3"], faces: Int[ndarray, "faces 3"]) -> Topology:
    """Components, their closedness, signed volume and area."""
    welded = weld(vertices, faces)
    num = int(welded.max()) + 1
    start, end = welded.reshape(-1), welded[:, [1, 2, 0]].reshape(-1)
    graph = coo_matrix((np.ones(len(start), bool), (start, end)), shape=(num, num))
    count, of_vertex = connected_components(graph, directed=False)
    component = of_vertex[welded[:, 0]]
    balance = (
        coo_matrix(
            (np.where(start < end, 1, -1), (np.minimum(start, end), np.maximum(start, end))), shape=(num, num)
        )
        .tocsr()
        .tocoo()
    )
    loose = (balance.data != 0) & (balance.row != balance.col)
    closed = np.bincount(of_vertex[balance.row[loose]], minlength=count) == 0
    triangles = vertices[faces]
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
    vertices: Float64[ndarray, "vertices 3"], faces: Int[ndarray, "faces 3"]
) -> Bool[ndarray, " faces"]:
    """Faces that are wound against the greater part, by area, of the manifold patch that they belong to."""
    welded = weld(vertices, faces)
    num = int(welded.max()) + 1
    start, end = welded.reshape(-1), welded[:, [1, 2, 0]].reshape(-1)
    _, edge, passes = np.unique(start * num + end, return_inverse=True, return_counts=True)
    twice = (passes[edge] > 1).reshape(-1, 3).any(axis=1)  # an edge is passed twice in one direction
    against = np.zeros(len(faces), bool)
    if not twice.any():
        return against
    _, of_vertex = connected_components(
        coo_matrix((np.ones(len(start), bool), (start, end)), shape=(num, num)), directed=False
    )
    component = of_vertex[welded[:, 0]]
    odd = np.flatnonzero(np.isin(component, component[twice]))  # the others are consistent as they are
    oriented, patch = igl.bfs_orient(np.ascontiguousarray(welded[odd], np.int64))
    turned = (oriented != welded[odd]).any(axis=1)
    area = np.linalg.norm(face_crosses(vertices[faces[odd]]), axis=1)
    minority = np.bincount(patch, np.where(turned, area, -area)) <= 0
    against[odd] = turned == minority[patch]
    return against


@dataclass(frozen=True)
class SignedDistance:
    """Signed distance function of one mesh; make it with `signed_distance`."""

    vertices: Float64[ndarray, "vertices 3"]
    faces: Int[ndarray, "faces 3"]
    """Turned outwards."""
    is_sheet: Bool[ndarray, " faces"]
    """Faces that enclose nothing."""
    turned: Bool[ndarray, " faces"]
    """Faces of the original that were inside out."""
    watertight: bool
    thickness: float

    def __call__(self, points: Float64[ndarray, "points 3"]) -> Float32[ndarray, " points"]:
        """Signed distances, negative inside."""
        points = np.ascontiguousarray(points, np.float64)
        distance, nearest = _distance(points, self.vertices, self.faces)
        sdf = np.where(self._inside(points), -distance, distance)
        if self.is_sheet.any():
            to_sheet = np.where(self.is_sheet[nearest], distance, np.inf)
            # Deeper inside a solid than that, a sheet can't be nearer than the solid's own surface.
            unknown = np.flatnonzero(~self.is_sheet[nearest] & (sdf > -self.thickness / 2))
            sheets = np.ascontiguousarray(self.faces[self.is_sheet])
            to_sheet[unknown] = _distance(points[unknown], self.vertices, sheets)[0]
            sdf = np.minimum(sdf, to_sheet - self.thickness / 2)
        return sdf.astype(np.float32)

    def hidden(
        self, points: Float64[ndarray, "points 3"], normals: Float64[ndarray, "points 3"]
    ) -> Bool[ndarray, " points"]:
        """Whether surface points have the solid on both of their sides, as where parts overlap."""
        points = np.ascontiguousarray(points, np.float64)
        hidden = self._inside(points + HIDDEN_OFFSET * normals)
        hidden[hidden] = self._inside(points[hidden] - HIDDEN_OFFSET * normals[hidden])
        return hidden

    def _inside(self, points: Float64[ndarray, "points 3"]) -> Bool[ndarray, " points"]:
        corners = self.vertices[self.faces].reshape(-1, 3)
        boxed = ((points > corners.min(axis=0)) & (points < corners.max(axis=0))).all(axis=1)
        inside = np.zeros(len(points), bool)
        inside[boxed] = self._winding.winding_number(points[boxed]) > 0.5
        return inside

    @functools.cached_property
    def _winding(self) -> igl.FastWindingNumberBVH:
        """The tree that every query shares."""
        tree = igl.FastWindingNumberBVH()
        tree.init(self.vertices, self.faces)
        return tree


def _distance(points: ndarray, vertices: ndarray, faces: ndarray) -> tuple[ndarray, ndarray]:
    """Unsigned distance to the triangles, and the nearest of them."""
    squared, nearest, _ = igl.point_mesh_squared_distance(points, vertices, faces)
    return np.sqrt(squared), nearest


def signed_distance(mesh: Mesh, *, thickness: float) -> SignedDistance:
    """The function that is negative inside `mesh`; sheets count as `thickness` thick."""
    vertices, faces = np.ascontiguousarray(mesh.vertices, np.float64), mesh.faces.astype(np.int64)
    odd = against_majority(vertices, faces)
    outward = np.where(odd[:, None], faces[:, [0, 2, 1]], faces)
    parts = topology(vertices, outward)
    inverted = (parts.volume < 0)[parts.component]
    outward = np.where(inverted[:, None], outward[:, [0, 2, 1]], outward)
    turned = odd ^ inverted
    # Twice volume over area is the thickness of a plate.
    sheet = ~parts.closed | (2 * np.abs(parts.volume) < thickness * parts.area)
    is_sheet = sheet[parts.component]
    return SignedDistance(
        vertices, np.ascontiguousarray(outward), is_sheet, turned, bool(parts.closed.all()), thickness
    )


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
