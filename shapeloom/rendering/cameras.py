"""Pinhole cameras in the OpenCV convention: x right, y down, z forward; square pixels, centres at +0.5.

`cam_to_world` is a 4x4 rigid transform, `intrinsics` a 3x3 matrix in pixels. The world is right-handed,
+Z up.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from shapeloom import viewpoints

NEAR = 1e-3
"""What comes nearer than this to the camera's plane has no place on a picture."""


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


def _plain(distance: Tensor | float) -> ndarray | float:
    return distance.numpy() if isinstance(distance, Tensor) else distance


def look_at(eye: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4 4"]:
    """Returns `viewpoints.look_at` as a tensor, and so the others below."""
    return torch.from_numpy(viewpoints.look_at(eye.numpy(), target.numpy()))


def intrinsics(fov_y: float, height: int, width: int) -> Float[Tensor, "3 3"]:
    return torch.from_numpy(viewpoints.intrinsics(fov_y, height, width))


def spherical(
    azimuth: Float[Tensor, " num"], elevation: Float[Tensor, " num"], distance: Float[Tensor, " num"] | float
) -> Float[Tensor, "num 4 4"]:
    return torch.from_numpy(viewpoints.spherical(azimuth.numpy(), elevation.numpy(), _plain(distance)))


def ring(num: int, *, elevation_degrees: float = 20.0, distance: float) -> Float[Tensor, "num 4 4"]:
    return torch.from_numpy(viewpoints.ring(num, elevation_degrees=elevation_degrees, distance=distance))


def sphere(num: int, *, seed: int, distance: Float[Tensor, " num"] | float) -> Float[Tensor, "num 4 4"]:
    return torch.from_numpy(viewpoints.sphere(num, seed=seed, distance=_plain(distance)))
