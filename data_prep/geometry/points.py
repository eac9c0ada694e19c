"""Coloured surface points with normals, in farthest-point order: every prefix covers the whole asset."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int8, UInt8
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.geometry.farthest import farthest_first
from data_prep.mesh import Mesh, base_color
from data_prep.render.views import Views
from shapeloom.color import linear_to_srgb
from shapeloom.surfaces import face_normals, sample_triangles

OVERSAMPLE = 3
"""Candidates a kept point: enough for an even spread, few enough for farthest-point thinning to be cheap."""
EXPOSED = 1.5
"""Thinned points a kept one: a fifth of a typical asset's surface lies hidden within other parts of it."""


def sample_surface(
    mesh: Mesh, num: int, rng: np.random.Generator
) -> tuple[Int[ndarray, " num"], Float64[ndarray, "num 3"]]:
    """Face and barycentric weights of points uniform by area, stratified for an even share a face."""
    return sample_triangles(mesh.triangles, num, rng)


def surface_points(
    mesh: Mesh,
    num: int,
    rng: np.random.Generator,
    *,
    hidden: Callable[
        [Float64[ndarray, "candidates 3"], Float64[ndarray, "candidates 3"]], Bool[ndarray, " candidates"]
    ],
) -> tuple[Float32[ndarray, "num 3"], UInt8[ndarray, "num 3"], Int8[ndarray, "num 3"]]:
    """Positions, unlit sRGB base colours and unit normals times 127 of `num` points.

    `hidden` tells which points, given with their normals, lie within another part: they are left out.
    Normals follow the faces' winding.
    Raises AssetError when the whole surface is cut out by its textures.
    """
    face, weights = sample_surface(mesh, OVERSAMPLE * num, rng)
    color, alpha = base_color(mesh, face, weights)
    solid = alpha > rng.random(len(alpha))  # as dense as the surface covers; opaque and cut-out ones exactly
    if not solid.any():
        raise AssetError("empty", "its whole surface is transparent")
    face, weights, color = face[solid], weights[solid], color[solid]
    positions = np.einsum("nc,ncd->nd", weights, mesh.triangles[face])
    normals = face_normals(mesh.triangles)[face]
    order = farthest_first(positions, int(EXPOSED * num))
    exposed = order[~hidden(positions[order], normals[order])]
    # Hidden altogether (one part just inside another's skin) or mostly cut out: repeat points then.
    order = np.resize(exposed if len(exposed) else order, num)
    srgb = np.rint(np.clip(linear_to_srgb(color[order]), 0, 1) * 255).astype(np.uint8)
    return positions[order].astype(np.float32), srgb, np.rint(normals[order] * 127).astype(np.int8)


def view_points(
    views: Views,
    cam_to_world: Float[ndarray, "views 4 4"],
    intrinsics: Float[ndarray, "views 3 3"],
    num: int,
) -> tuple[Float32[ndarray, "num 3"], UInt8[ndarray, "num 3"]]:
    """Positions and unlit sRGB colours of `num` points that the views see, in farthest-point order.

    As in the reference's clouds (Point-E, Shap-E), whose points come from depth maps: what no camera sees is
    not in it. Where fewer than `num` pixels have depth, points are repeated; AssetError where none has.
    """
    view, row, column = np.nonzero(views.depth)
    if not len(view):
        raise AssetError("invisible", "none of its views has a pixel with depth")
    depth = views.depth[view, row, column].astype(np.float64)
    pixels = np.stack([column + 0.5, row + 0.5], axis=1)
    matrix = intrinsics[view]
    xy = (pixels - matrix[:, :2, 2]) / matrix[:, (0, 1), (0, 1)]
    local = np.concatenate([xy, np.ones((len(xy), 1))], axis=1) * depth[:, None]
    pose = cam_to_world[view]
    world = (np.einsum("pij,pj->pi", pose[:, :3, :3], local) + pose[:, :3, 3]).astype(np.float32)
    order = np.resize(farthest_first(world, num), num)
    return world[order], views.albedo[view, row, column][order]
