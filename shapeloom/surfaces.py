"""Surfaces as they are measured: triangles, and points on them with normals.

World units in the field's box [-1, 1]^3 (2 wide). Normals follow the faces' winding, counter-clockwise seen
from outside, where there is one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.spatial import cKDTree

from shapeloom.seed import numpy_rng
from shapeloom.shards import AssetSample, AssetShards

NUM_POINTS = 16_384
"""Sampled on a surface: the F-score at 0.01 then varies by about 0.001 with the seed (docs/evaluation.md)."""
MESH_MEMBERS = {"mesh_vertices.npy", "mesh_faces.npy"}
SURFEL_OVERLAP = 2**0.5
"""Side of a point's square over the points' spacing: its corners reach the neighbours, so no gap is left.

Drawn like this, an asset's own 4,096 points score 28 to 33 dB and an IoU of 0.92 to 0.96 against its views.
"""


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles, and points on them with unit normals. Make it with `of_mesh` or `of_points`."""

    vertices: Float[ndarray, "vertices 3"]
    faces: Int[ndarray, "faces 3"]
    points: Float[ndarray, "points 3"]
    normals: Float[ndarray, "points 3"]
    is_exact: bool = True
    """False: the triangles are no more than squares around the points."""

    @classmethod
    def of_mesh(cls, vertices: ndarray, faces: ndarray, *, num: int = NUM_POINTS, seed: int = 0) -> "Surface":
        """The surface of a mesh and `num` points on it, even by area."""
        vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
        if not len(faces):
            return cls(np.zeros((3, 3)), np.zeros((1, 3), np.int64), np.zeros((1, 3)), np.zeros((1, 3)))
        triangles = vertices[faces]
        face, weights = sample_triangles(triangles, num, numpy_rng("surface points", seed))
        points = np.einsum("nc,ncd->nd", weights, triangles[face])
        return cls(vertices, faces, points, face_normals(triangles)[face])

    @classmethod
    def of_points(cls, points: Float[ndarray, "points 3"], normals: Float[ndarray, "points 3"]) -> "Surface":
        """Evenly spread points, each standing for a square across its normal.

        For where nothing else is known of a surface. Squares reach over edges by up to the points' spacing,
        so distances below that say little, and silhouettes in normal maps are as coarse.
        """
        normals = _unit(np.asarray(normals, np.float64))
        corners, faces = surfel_triangles(points, normals, spacing=spacing(points))
        return cls(corners, faces, np.asarray(points, np.float64), normals, is_exact=False)

    @property
    def is_empty(self) -> bool:
        """Whether it stands for no surface at all."""
        return len(self.points) == 1 and not self.normals.any()

    @cached_property
    def face_normals(self) -> Float[ndarray, "faces 3"]:
        """Unit, by the winding; 0 for a face without an area."""
        return face_normals(self.vertices[self.faces])


def read_surface(shards: AssetShards, index: int) -> Surface:
    """Returns the true surface of asset `index`: its stored mesh and points, or its points alone.

    Points that lie within another part are left out of the stored ones, faces that do are still there.
    """
    has_mesh = shards.rows[index].members.keys() >= MESH_MEMBERS
    return stored_surface(shards.read(index, points=True, mesh=has_mesh))


def stored_surface(sample: AssetSample) -> Surface:
    """Returns the true surface of an asset read with its points and, where it has one, its mesh."""
    assert sample.points is not None and sample.points_normal is not None
    points, normals = sample.points.astype(np.float64), _unit(sample.points_normal.astype(np.float64))
    if sample.mesh_vertices is None or sample.mesh_faces is None:
        return Surface.of_points(points, normals)
    return Surface(
        sample.mesh_vertices.astype(np.float64), sample.mesh_faces.astype(np.int64), points, normals
    )


def sample_triangles(
    triangles: Float[ndarray, "faces 3 3"], num: int, rng: np.random.Generator
) -> tuple[Int[ndarray, " num"], Float[ndarray, "num 3"]]:
    """Returns face and barycentric weights of points uniform by area, stratified for an even share a face."""
    area = np.linalg.norm(face_crosses(triangles), axis=1)
    cumulative = np.cumsum(area)
    strata = (np.arange(num) + rng.random(num)) / num
    face = np.minimum(np.searchsorted(cumulative, strata * cumulative[-1], side="right"), len(area) - 1)
    root, v = np.sqrt(rng.random(num)), rng.random(num)
    return face, np.stack([1 - root, root * (1 - v), root * v], axis=1)


def face_crosses(triangles: Float[ndarray, "faces 3 3"]) -> Float[ndarray, "faces 3"]:
    """Cross products of two edges: along the normal of a counter-clockwise face, twice its area long."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def face_normals(triangles: Float[ndarray, "faces 3 3"]) -> Float[ndarray, "faces 3"]:
    """Unit normals of counter-clockwise faces; 0 for a face without an area."""
    return _unit(face_crosses(triangles))


def _unit(vectors: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def spacing(points: Float[ndarray, "points 3"]) -> float:
    """Returns the median distance of points to their nearest neighbours; 0.1 for a single one."""
    if len(points) < 2:
        return 0.1
    return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def surfel_triangles(
    points: Float[ndarray, "points 3"], normals: Float[ndarray, "points 3"], *, spacing: float
) -> tuple[Float[ndarray, "corners 3"], Int[ndarray, "faces 3"]]:
    """Returns squares across points' normals, for points `spacing` apart; four corners a point in a row."""
    normals = np.asarray(normals, np.float64)
    helper = np.eye(3)[np.abs(normals).argmin(axis=1)]
    u = _unit(np.cross(normals, helper))
    v = np.cross(normals, u)
    half = SURFEL_OVERLAP * spacing / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    corners = np.stack([points + half * (a * u + b * v) for a, b in signs], axis=1)
    quads = np.arange(4 * len(points)).reshape(-1, 4)
    return corners.reshape(-1, 3), np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
