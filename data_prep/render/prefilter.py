"""Textures at the resolution at which pictures show them, so that few look-ups a pixel don't alias.

A view of 256 pixels shows a texture of 1024 several times smaller. A mip level for each texture, chosen once
for all views of an asset (they are taken from about the same distance), averages its texels in linear light.
"""

import functools
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image

from data_prep.mesh import Mesh
from shapeloom.color import SRGB_DECODE
from shapeloom.surfaces import face_crosses

_SHARP_SHARE = 0.25
"""Of a texture's surface, how much may be shown at less than its texels' resolution."""


def match_textures(mesh: Mesh, pixel: float) -> Mesh:
    """The mesh with its textures shrunk by powers of two to about a texel a pixel, never to less.

    pixel: its size on the object, in world units. Left alone: textures with cut-outs, whose edges must stay
    sharp, and those that are to be looked up by the nearest texel.
    """
    area = np.linalg.norm(face_crosses(mesh.triangles), axis=1)
    side_u, side_v = mesh.uv[:, 1] - mesh.uv[:, 0], mesh.uv[:, 2] - mesh.uv[:, 0]
    uv_area = np.abs(side_u[:, 0] * side_v[:, 1] - side_u[:, 1] * side_v[:, 0])
    textures = list(mesh.textures)
    for index, texture in enumerate(textures):
        faces = np.flatnonzero(mesh.texture == index)
        nearest = bool(mesh.samplers) and mesh.samplers[index].nearest
        if nearest or not len(faces) or (mesh.cutoff[faces] > 0).any():
            continue
        texels = uv_area[faces] * texture.shape[0] * texture.shape[1]
        density = np.sqrt(texels / np.maximum(area[faces], 1e-20)) * pixel
        order = np.argsort(density, kind="stable")
        share = np.cumsum(area[faces][order])
        texels_a_pixel = density[order[np.searchsorted(share, _SHARP_SHARE * share[-1])]]
        if texels_a_pixel >= 2:
            textures[index] = halve(texture, int(np.log2(texels_a_pixel)))
    return replace(mesh, textures=textures)


def halve(
    texture: UInt8[ndarray, "height width 4"], times: int
) -> Float32[ndarray, "small_height small_width 4"]:
    """Linear colours, box-filtered to 2^-times of the size (at least 1), weighted by alpha."""
    height, width = (max(size >> times, 1) for size in texture.shape[:2])
    alpha = texture[..., 3] / np.float32(255)
    small = np.empty((height, width, 4), np.float32)
    small[..., 3] = _box(alpha, height, width)
    visible = np.maximum(small[..., 3], 1e-6)  # nothing to be seen where alpha is 0
    linear = np.empty_like(alpha)  # one for all channels: fresh memory costs as much as what is done with it
    for channel in range(3):
        np.take(SRGB_DECODE, texture[..., channel], out=linear, mode="clip")  # clip: written in place
        linear *= alpha
        np.divide(_box(linear, height, width), visible, out=small[..., channel])
    return small


def _box(values: Float32[ndarray, "h w"], height: int, width: int) -> Float32[ndarray, "height width"]:
    if values.shape[0] % height == 0 and values.shape[1] % width == 0:
        tall, wide = values.shape[0] // height, values.shape[1] // width
        blocks = values.reshape(height, tall, width, wide)
        if width == 1 or wide >= 8:
            return blocks.mean(axis=(1, 3))
        # The same, as NumPy adds runs as short as this in order, without its cost of starting each of them.
        columns = functools.reduce(np.add, np.moveaxis(blocks, 3, 0))
        return columns.sum(axis=1) / np.float32(tall * wide)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))
