"""Coloured surface points with normals, in farthest-point order: every prefix covers the whole asset."""

import fpsample
import numpy as np
from jaxtyping import Float32, Float64, Int, Int8, UInt8
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.mesh import Mesh, base_color, face_crosses, linear_to_srgb, unit_normals

OVERSAMPLE = 3
"""Candidates a kept point: enough for an even spread, few enough for farthest-point thinning to be cheap."""


def sample_surface(
    mesh: Mesh, num: int, rng: np.random.Generator
) -> tuple[Int[ndarray, "num"], Float64[ndarray, "num 3"]]:
    """Face and barycentric weights of points uniform by area, stratified for an even share a face."""
    area = np.linalg.norm(face_crosses(mesh.triangles), axis=1)
    cumulative = np.cumsum(area)
    strata = (np.arange(num) + rng.random(num)) / num
    face = np.minimum(np.searchsorted(cumulative, strata * cumulative[-1], side="right"), len(area) - 1)
    root, v = np.sqrt(rng.random(num)), rng.random(num)
    return face, np.stack([1 - root, root * (1 - v), root * v], axis=1)


def surface_points(
    mesh: Mesh, num: int, rng: np.random.Generator
) -> tuple[Float32[ndarray, "num 3"], UInt8[ndarray, "num 3"], Int8[ndarray, "num 3"]]:
    """Positions, unlit sRGB base colours and unit normals times 127 of `num` points.

    Normals follow the faces' winding. Raises AssetError when the whole surface is cut out by its textures.
    """
    face, weights = sample_surface(mesh, OVERSAMPLE * num, rng)
    color, solid = base_color(mesh, face, weights)
    if not solid.any():
        raise AssetError("empty", "its textures cut its whole surface out")
    face, weights, color = face[solid], weights[solid], color[solid]
    positions = np.einsum("nc,ncd->nd", weights, mesh.triangles[face]).astype(np.float32)
    # Mostly cut-out surfaces: repeat points rather than return fewer.
    wanted = min(num, len(positions))
    order = fpsample.bucket_fps_kdline_sampling(positions, wanted, h=7, start_idx=0).astype(np.int64)
    order = np.resize(order, num)
    srgb = np.rint(np.clip(linear_to_srgb(color[order]), 0, 1) * 255).astype(np.uint8)
    normals = unit_normals(mesh.triangles)[face[order]]
    return positions[order], srgb, np.rint(normals * 127).astype(np.int8)
