"""Positional encoding of points: sines and cosines of octaves along fixed axes (NeRF, eq. 4).

Plain octaves along x, y and z leave axis-aligned streaks in what a small network learns; the six axes of
an icosahedron (as in mip-NeRF 360, section 3.2) spread them over directions at twice the numbers.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Axes = Literal["cartesian", "icosahedron"]


def encoding_axes(axes: Axes) -> Float[Tensor, "num_axes 3"]:
    """Returns the unit directions along which octaves are taken."""
    if axes == "cartesian":
        return torch.eye(3)
    golden = (1 + math.sqrt(5)) / 2
    corners = [
        [0, 1, golden],
        [0, -1, golden],
        [1, golden, 0],
        [-1, golden, 0],
        [golden, 0, 1],
        [golden, 0, -1],
    ]
    return torch.nn.functional.normalize(torch.tensor(corners, dtype=torch.float32), dim=-1)


def encoding_matrix(axes: Axes, num_octaves: int) -> Float[Tensor, "num_frequencies 3"]:
    """Returns angular frequencies: octave k turns by pi/2 * 2^k a unit along its axis.

    The lowest has a period of 4, so that it is one-to-one on the box [-1, 1]^3.
    """
    octaves = 0.5 * math.pi * 2.0 ** torch.arange(num_octaves)
    return (octaves[:, None, None] * encoding_axes(axes)).reshape(-1, 3)


def encoding_width(axes: Axes, num_octaves: int) -> int:
    """Returns how many numbers `encode` makes of a point."""
    return 4 + 2 * num_octaves * (3 if axes == "cartesian" else 6)


def encode(
    points: Float[Tensor, "*batch 3"], frequencies: Float[Tensor, "num_frequencies 3"]
) -> Float[Tensor, "*batch encoded"]:
    """Returns [1, x, y, z, sines, cosines]; the constant lets a layer without per-asset biases have one."""
    # Autocast would round positions to 8 bits.
    with torch.autocast(points.device.type, enabled=False):
        angles = points.float() @ frequencies.transpose(0, 1)
    return torch.cat([torch.ones_like(points[..., :1]), points, angles.sin(), angles.cos()], dim=-1)
