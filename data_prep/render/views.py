"""Posed views of a mesh: RGBA, depth, and where asked for normals and albedo, as they are stored.

RGBA and albedo are means over a pixel's samples, taken premultiplied by alpha and in linear light, and stored
as straight-alpha sRGB: the colour at an edge is the object's own, without a dark or white fringe. Depth and
normal are those of the surface that contributes most to the ray through the pixel's centre.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor

from data_prep.mesh import Mesh
from data_prep.render.lighting import STUDIO, Lighting
from data_prep.render.prefilter import match_textures
from data_prep.render.raster import Rasterizer, can_draw
from data_prep.render.raycast import Painter, Samples
from shapeloom.color import linear_to_srgb

Backend = Literal["embree", "gl"]


@dataclass(frozen=True)
class Views:
    """Square pictures of one asset."""

    rgba: UInt8[ndarray, "views size size 4"]
    """Straight alpha, sRGB."""
    depth: Float32[ndarray, "views size size"]
    """Along the camera's z; 0 is background."""
    normal: UInt8[ndarray, "views size size 3"]
    """128 + 127 times the unit normal in world axes, on the viewer's side; (0, 0, 0) without depth."""
    albedo: UInt8[ndarray, "views size size 3"]
    """Unlit base colour, sRGB; its alpha is that of `rgba`."""


def render_views(
    mesh: Mesh,
    cam_to_world: Float[Tensor, "views 4 4"],
    intrinsics: Float[Tensor, "*views 3 3"],
    *,
    size: int,
    supersample: int,
    lighting: Lighting = STUDIO,
    backend: Backend = "embree",
) -> Views:
    """Every camera's view. intrinsics: one for all, or one for each. supersample: n x n samples at edges.

    backend: "gl" raises UserError where OpenGL isn't there.
    """
    poses = cam_to_world.double().numpy()
    matrices = np.broadcast_to(intrinsics.double().numpy(), (len(poses), 3, 3))
    pixel = float((np.linalg.norm(poses[:, :3, 3], axis=1) / matrices[:, 0, 0]).min())
    mesh = match_textures(mesh, pixel)
    painter: Painter | Rasterizer
    if backend == "gl" and can_draw(mesh):
        painter = Rasterizer(mesh, lighting, size=size, supersample=supersample)
    else:
        painter = Painter(mesh, lighting, size=size, supersample=supersample, pixel=pixel)
    views = [_store(painter.paint(pose, matrix)) for pose, matrix in zip(poses, matrices, strict=True)]
    return Views(*(np.stack(pictures) for pictures in zip(*views, strict=True)))


def _store(image: Samples) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    alpha = image.color[..., 3]
    seen = alpha > 0
    rgba, albedo = np.zeros((*alpha.shape, 4), np.uint8), np.zeros((*alpha.shape, 3), np.uint8)
    straight = image.color[seen] / alpha[seen, None]
    encoded = _to_8_bit(straight)
    rgba[seen, :3], albedo[seen] = encoded[:, :3], encoded[:, 4:]
    rgba[..., 3] = np.rint(np.minimum(alpha, 1) * 255)
    normal = np.zeros_like(albedo)
    solid = image.depth > 0
    normal[solid] = np.rint(128 + 127 * image.normal[solid])
    return rgba, image.depth, normal, albedo


def _to_8_bit(linear: Float32[ndarray, "pixels channels"]) -> UInt8[ndarray, "pixels channels"]:
    return _ENCODED[
        (np.sqrt(np.clip(linear, 0, 1)) * np.float32(len(_ENCODED) - 1) + np.float32(0.5)).astype(np.int32)
    ]


# 8-bit sRGB by the square root of linear colour, near enough to it that 16 entries share each 8-bit value.
_ENCODED = np.rint(255 * linear_to_srgb(np.linspace(0, 1, 4097) ** 2)).astype(np.uint8)


def is_covered(rgba: UInt8[ndarray, "views size size 4"]) -> Bool[ndarray, " views"]:
    """Which views show anything at all."""
    return rgba[..., 3].max(axis=(1, 2)) > 0
