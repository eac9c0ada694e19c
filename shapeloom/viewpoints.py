"""Where cameras stand: pinhole cameras in the OpenCV convention (`shapeloom.rendering.cameras`), as arrays.

Data preparation, whose processes do without torch, takes them as they are; `rendering.cameras` gives the same
cameras as tensors.
"""

import math

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt32
from numpy import ndarray

from shapeloom.box import ASSET_HALF_SIZE
from shapeloom.seed import derive_seed

RING_START_DEGREES = 30.0
BAND_DEGREES = (-35.0, 75.0)
"""Elevations between which `sphere` puts cameras."""


def look_at(
    eye: Float[ndarray, "*batch 3"], target: Float[ndarray, "*batch 3"]
) -> Float32[ndarray, "*batch 4 4"]:
    """Returns cam_to_world of cameras at `eye` that look at `target`, upright with respect to +Z.

    A camera that looks straight up or down takes +Y as its up direction.
    """
    forward = _unit(np.asarray(target, np.float64) - eye)
    vertical = np.abs(forward[..., 2:]) > 0.9999
    right = _unit(np.cross(forward, np.where(vertical, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))))
    pose = np.zeros((*np.shape(eye)[:-1], 4, 4), np.float32)
    pose[..., :3, :] = np.stack([right, np.cross(forward, right), forward, eye], axis=-1)
    pose[..., 3, 3] = 1.0
    return pose


def _unit(vectors: Float64[ndarray, "*batch 3"]) -> Float64[ndarray, "*batch 3"]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def intrinsics(fov_y: float, height: int, width: int) -> Float32[ndarray, "3 3"]:
    """Returns the matrix of a camera with a vertical field of view of `fov_y` radians."""
    focal = 0.5 * height / math.tan(0.5 * fov_y)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]], np.float32)


def spherical(
    azimuth: Float[ndarray, " num"],
    elevation: Float[ndarray, " num"],
    distance: Float[ndarray, " num"] | float,
) -> Float32[ndarray, "num 4 4"]:
    """Returns cameras that look at the origin from angles in radians; azimuth 0 is +X, turning to +Y."""
    azimuth, elevation, distance = (np.asarray(each, np.float64) for each in (azimuth, elevation, distance))
    level = np.cos(elevation)
    direction = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], axis=-1)
    eye = direction * distance[..., None]
    return look_at(eye, np.zeros_like(eye))


def ring(num: int, *, elevation_degrees: float = 20.0, distance: float) -> Float32[ndarray, "num 4 4"]:
    """Returns `num` cameras at even azimuths around +Z: turntables and fixed evaluation views."""
    azimuth = math.radians(RING_START_DEGREES) + np.arange(num) * (2 * math.pi / num)
    return spherical(azimuth, np.full(num, math.radians(elevation_degrees)), distance)


def sphere(num: int, *, seed: int, distance: Float[ndarray, " num"] | float) -> Float32[ndarray, "num 4 4"]:
    """Returns `num` cameras spread evenly over a band of the sphere (Fibonacci lattice, turned by `seed`)."""
    draws = _draws(2, "cameras", seed)
    offsets = (draws & (1 << 24) - 1) / (1 << 24)
    low, high = (math.sin(math.radians(angle)) for angle in BAND_DEGREES)
    index = np.arange(num)
    height = low + (high - low) * ((index + offsets[0]) / num)
    golden_angle = math.pi * (3 - math.sqrt(5))
    return spherical(index * golden_angle + 2 * math.pi * offsets[1], np.arcsin(height), distance)


def spread(num: int, low: float, high: float, *, seed: int, stride: float) -> Float32[ndarray, " num"]:
    """Returns `num` values that fill [low, high] evenly, each prefix of them too (Kronecker sequence).

    stride: an irrational number; sequences that are used together need different ones.
    """
    first, second = _draws(2, "spread", seed).tolist()
    offset = ((first << 32 | second) & (1 << 53) - 1) / (1 << 53)
    return (low + (high - low) * ((offset + np.arange(num) * stride) % 1)).astype(np.float32)


def _draws(num: int, *parts: int | str) -> UInt32[ndarray, " num"]:
    """Returns the Mersenne twister's numbers as torch seeds it: data sets made by it keep their cameras."""
    twister = np.random.RandomState(derive_seed(*parts) & 0xFFFFFFFF)
    return twister.randint(0, 1 << 32, num, dtype=np.uint32)


def fitting_distance(fov_y: float) -> float:
    """Returns the camera distance at which the sphere around an asset's cube fills a square picture."""
    return ASSET_HALF_SIZE * math.sqrt(3) / math.sin(0.5 * fov_y)
