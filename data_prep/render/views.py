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

from data_prep.mesh import Mesh
from data_prep.render.lighting import STUDIO, Lighting
from data_prep.render.prefilter import match_textures
from data_prep.render.raster import Rasterizer, can_draw
from data_prep.render.raycast import Painter, Samples
from data_prep.render.zbuffer import ENCODED, ZBuffer, reason_against

Backend = Literal["auto", "zbuffer", "embree", "gl"]
"""auto: `zbuffer` where a C++ compiler has been found, or else `embree`."""


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
    cam_to_world: Float[ndarray, "views 4 4"],
    intrinsics: Float[ndarray, "*views 3 3"],
    *,
    size: int,
    supersample: int,
    lighting: Lighting = STUDIO,
    backend: Backend = "auto",
) -> Views:
    """Every camera's view. intrinsics: one for all, or one for each. supersample: n x n samples at edges.

    backend: "gl" raises UserError where OpenGL isn't there, "zbuffer" NotBuilt where it can't be compiled.
    """
    poses = np.asarray(cam_to_world, np.float64)
    matrices = np.broadcast_to(np.asarray(intrinsics, np.float64), (len(poses), 3, 3))
    pixel = float((np.linalg.norm(poses[:, :3, 3], axis=1) / matrices[:, 0, 0]).min())
    mesh = match_textures(mesh, pixel)
    backend = resolve(backend)
    if backend == "zbuffer":
        zbuffer = ZBuffer(mesh, lighting, size=size, supersample=supersample, pixel=pixel)
        return _draw(zbuffer, poses, matrices)
    painter: Painter | Rasterizer
    if backend == "gl" and can_draw(mesh):
        painter = Rasterizer(mesh, lighting, size=size, supersample=supersample)
    else:
        painter = Painter(mesh, lighting, size=size, supersample=supersample, pixel=pixel)
    views = [_store(painter.paint(pose, matrix)) for pose, matrix in zip(poses, matrices, strict=True)]
    return Views(*(np.stack(pictures) for pictures in zip(*views, strict=True)))


def resolve(backend: Backend) -> Backend:
    """Which renderer "auto" is on this machine."""
    if backend != "auto":
        return backend
    return "embree" if reason_against() else "zbuffer"


def _draw(zbuffer: ZBuffer, poses: ndarray, matrices: ndarray) -> Views:
    num, size = len(poses), zbuffer.size
    views = Views(
        np.zeros((num, size, size, 4), np.uint8), np.zeros((num, size, size), np.float32),
        np.zeros((num, size, size, 3), np.uint8), np.zeros((num, size, size, 3), np.uint8),
    )  # fmt: skip
    for view in range(num):
        planes = views.rgba[view], views.depth[view], views.normal[view], views.albedo[view]
        zbuffer.draw(poses[view], matrices[view], planes)
    return views


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
    return ENCODED[
        (np.sqrt(np.clip(linear, 0, 1)) * np.float32(len(ENCODED) - 1) + np.float32(0.5)).astype(np.int32)
    ]


def is_covered(rgba: UInt8[ndarray, "views size size 4"]) -> Bool[ndarray, " views"]:
    """Which views show anything at all."""
    return rgba[..., 3].max(axis=(1, 2)) > 0
