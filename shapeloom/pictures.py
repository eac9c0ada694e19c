"""Pictures of assets as they are compared: on white, at any size that divides the stored one.

Pictures are sRGB [*, height, width, 3], float32 in [0, 1] or uint8, with alpha [*, height, width].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray

from shapeloom.config import UserError
from shapeloom.shards import AssetShards


@dataclass(frozen=True)
class Views:
    """Posed pictures of one asset."""

    rgb: Float32[ndarray, "views height width 3"]
    alpha: Float32[ndarray, "views height width"]
    cam_to_world: Float32[ndarray, "views 4 4"]
    intrinsics: Float32[ndarray, "views 3 3"]


def read_views(shards: AssetShards, index: int, views: Sequence[int], *, size: int) -> Views:
    """Returns stored views on white at `size` pixels a side, each pixel the mean of those that it covers.

    Raises UserError unless `size` divides the stored resolution.
    """
    factor, rest = divmod(shards.resolution, size)
    if rest:
        raise UserError(
            f"size={size} doesn't divide the data's resolution of {shards.resolution} pixels. Evaluate at "
            f"{shards.resolution} or {shards.resolution // 2}."
        )
    sample = shards.read(index, views=views)
    assert sample.rgba is not None  # views were asked for
    rgba = sample.rgba.astype(np.float32) / 255
    alpha = rgba[..., 3:]
    stacked = np.concatenate([rgba[..., :3] * alpha + (1 - alpha), alpha], axis=-1)
    small = stacked.reshape(len(views), size, factor, size, factor, 4).mean(axis=(2, 4))
    matrices = sample.intrinsics.copy()
    matrices[:, :2] /= factor  # pixel centres are at +0.5, so every entry scales alike
    return Views(small[..., :3], small[..., 3], sample.cam_to_world, matrices)


def to_uint8(picture: Float[ndarray, " *shape"]) -> UInt8[ndarray, " *shape"]:
    """Returns 8-bit values of a picture in [0, 1]."""
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def on_white(rgba: UInt8[ndarray, "*views height width 4"]) -> UInt8[ndarray, "*views height width 3"]:
    """Returns straight-alpha pictures on white."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def scaled_intrinsics(shards: AssetShards, *, size: int) -> Float32[ndarray, "3 3"]:
    """Returns the matrix of the data's own cameras for pictures of `size` pixels a side."""
    matrix = shards.read(0, views=[0]).intrinsics[0].copy()
    matrix[:2] *= size / shards.resolution
    return matrix
