"""Positional encoding of points: sines and cosines of fixed frequencies.

Octaves (NeRF, eq. 4) reach from the whole box to fine detail, but say the same of every place half a period
apart; the six axes of an icosahedron (as in mip-NeRF 360, section 3.2) spread them over directions. Random
frequencies (Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions") span smooth
functions of space evenly, so that a single matrix makes of them any pattern of that smoothness.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor

from shapeloom.config import Config


class EncodingConfig(Config):
    """Which frequencies."""

    axes: Literal["cartesian", "icosahedron"] = Key(
        "icosahedron", description="directions along which frequencies lie: 3 or 6"
    )
    num_octaves: int = Key(4, ge=0, le=15, description="octaves along each axis")
    num_random: int = Key(64, ge=0, le=4096, description="random frequencies")
    random_scale: float = Key(4.0, gt=0, description="their standard deviation, radians per unit")

    @property
    def width(self) -> int:
        """How many numbers `encode` makes of a point."""
        num_axes = 3 if self.axes == "cartesian" else 6
        return 4 + 2 * (self.num_octaves * num_axes + self.num_random)


def encoding_axes(axes: Literal["cartesian", "icosahedron"]) -> Float[Tensor, "num_axes 3"]:
    """Returns the unit directions along which octaves are taken."""
    if axes == "cartesian":
        return torch.eye(3, device="cpu")
    golden = (1 + math.sqrt(5)) / 2
    corners = [
        [0, 1, golden],
        [0, -1, golden],
        [1, golden, 0],
        [-1, golden, 0],
        [golden, 0, 1],
        [golden, 0, -1],
    ]
    return torch.nn.functional.normalize(torch.tensor(corners, dtype=torch.float32, device="cpu"), dim=-1)


def encoding_matrix(config: EncodingConfig) -> Float[Tensor, "num_frequencies 3"]:
    """Returns, on the CPU, angular frequencies: those of octaves, then the random ones.

    Octave k turns by pi/2 * 2^k a unit along its axis.

    The lowest octave has a period of 4, so that it is one-to-one on the box [-1, 1]^3.
    """
    octaves = 0.5 * math.pi * 2.0 ** torch.arange(config.num_octaves, device="cpu")
    regular = (octaves[:, None, None] * encoding_axes(config.axes)).reshape(-1, 3)
    generator = torch.Generator("cpu").manual_seed(0)
    normal = torch.randn(config.num_random, 3, generator=generator, device="cpu")
    return torch.cat([regular, config.random_scale * normal])


def encode(
    points: Float[Tensor, "*batch 3"], frequencies: Float[Tensor, "num_frequencies 3"]
) -> Float[Tensor, "*batch encoded"]:
    """Returns [1, x, y, z, sines, cosines]; the constant gives an asset's own matrix a bias too."""
    # Autocast would round positions to 8 bits.
    with torch.autocast(points.device.type, enabled=False):
        angles = points.float() @ frequencies.transpose(0, 1)
        return torch.cat([torch.ones_like(points[..., :1]), points, angles.sin(), angles.cos()], dim=-1)


def encoding_gradient(
    gradient: Float[Tensor, "*batch encoded"],
    points: Float[Tensor, "*batch 3"],
    frequencies: Float[Tensor, "num_frequencies 3"],
) -> Float[Tensor, "*batch 3"]:
    """Returns the gradient by position of what has `gradient` by the encoded position."""
    num = len(frequencies)
    _, direct, of_sines, of_cosines = gradient.float().split([1, 3, num, num], dim=-1)
    angles = points.float() @ frequencies.transpose(0, 1)
    return direct + (of_sines * angles.cos() - of_cosines * angles.sin()) @ frequencies
