"""Pinhole cameras in the OpenCV convention: x right, y down, z forward; square pixels, centres at +0.5.

`cam_to_world` is a 4x4 rigid transform, `intrinsics` a 3x3 matrix in pixels. The world is right-handed,
+Z up.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shapeloom.box import ASSET_HALF_SIZE
from shapeloom.seed import torch_generator

NEAR = 1e-3
"""What comes nearer than this to the camera's plane has no place on a picture."""
RING_START_DEGREES = 30.0
BAND_DEGREES = (-35.0, 75.0)
"""Elevations between which `sphere` puts cameras."""


@dataclass(frozen=True)
class Cameras:
    """Several cameras of each asset and their pictures' size."""

    cam_to_world: Float[Tensor, "batch views 4 4"]
    intrinsics: Float[Tensor, "batch views 3 3"]
    height: int
    width: int

    def local(self, points: Float[Tensor, "points 3"], asset: int) -> Float[Tensor, "views points 3"]:
        """Returns points in the frames of an asset's cameras."""
        pose = self.cam_to_world[asset].to(points.dtype)
        # Autocast would round places to 8 bits.
        with torch.autocast(points.device.type, enabled=False):
            return (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]

    def pixels(self, slopes: Float[Tensor, "views points 2"], asset: int) -> Float[Tensor, "views points 2"]:
        """Returns where x / z and y / z in the cameras' frames are on the pictures."""
        matrix = self.intrinsics[asset].to(slopes.dtype)
        focal = torch.stack([matrix[:, 0, 0], matrix[:, 1, 1]], dim=-1)
        return slopes * focal[:, None] + matrix[:, None, :2, 2]


def look_at(eye: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4 4"]:
    """Returns cam_to_world of cameras at `eye` that look at `target`, upright with respect to +Z.

    A camera that looks straight up or down takes +Y as its up direction.
    """
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    up = torch.zeros_like(forward)
    vertical = forward[..., 2].abs() > 0.9999
    up[..., 2] = (~vertical).to(up.dtype)
    up[..., 1] = vertical.to(up.dtype)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    pose = torch.zeros(*eye.shape[:-1], 4, 4, dtype=eye.dtype)
    pose[..., :3, :] = torch.stack([right, down, forward, eye], dim=-1)
    pose[..., 3, 3] = 1.0
    return pose


def intrinsics(fov_y: float, height: int, width: int) -> Float[Tensor, "3 3"]:
    """Returns the matrix of a camera with a vertical field of view of `fov_y` radians."""
    focal = 0.5 * height / math.tan(0.5 * fov_y)
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def spherical(
    azimuth: Float[Tensor, " num"], elevation: Float[Tensor, " num"], distance: Float[Tensor, " num"] | float
) -> Float[Tensor, "num 4 4"]:
    """Returns cameras that look at the origin from angles in radians; azimuth 0 is +X, turning to +Y."""
    direction = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )
    eye = direction * (distance[:, None] if isinstance(distance, Tensor) else distance)
    return look_at(eye, torch.zeros_like(eye))


def ring(num: int, *, elevation_degrees: float = 20.0, distance: float) -> Float[Tensor, "num 4 4"]:
    """Returns `num` cameras at even azimuths around +Z: turntables and fixed evaluation views."""
    azimuth = math.radians(RING_START_DEGREES) + torch.arange(num) * (2 * math.pi / num)
    elevation = torch.full((num,), math.radians(elevation_degrees))
    return spherical(azimuth, elevation, distance)


def sphere(num: int, *, seed: int, distance: Float[Tensor, " num"] | float) -> Float[Tensor, "num 4 4"]:
    """Returns `num` cameras spread evenly over a band of the sphere (Fibonacci lattice, turned by `seed`)."""
    offset = torch.rand(2, generator=torch_generator("cameras", seed)).tolist()
    low, high = (math.sin(math.radians(angle)) for angle in BAND_DEGREES)
    index = torch.arange(num, dtype=torch.float64)
    height = low + (high - low) * ((index + offset[0]) / num)
    golden_angle = math.pi * (3 - math.sqrt(5))
    azimuth = index * golden_angle + 2 * math.pi * offset[1]
    return spherical(azimuth.float(), torch.asin(height).float(), distance)


def spread(num: int, low: float, high: float, *, seed: int, stride: float) -> Float[Tensor, " num"]:
    """Returns `num` values that fill [low, high] evenly, each prefix of them too (Kronecker sequence).

    stride: an irrational number; sequences that are used together need different ones.
    """
    offset = torch.rand((), generator=torch_generator("spread", seed), dtype=torch.float64)
    return (low + (high - low) * torch.frac(offset + torch.arange(num) * stride)).float()


def fitting_distance(fov_y: float) -> float:
    """Returns the camera distance at which the sphere around an asset's cube fills a square picture."""
    return ASSET_HALF_SIZE * math.sqrt(3) / math.sin(0.5 * fov_y)
