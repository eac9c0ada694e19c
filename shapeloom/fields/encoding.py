"""Positional encoding of points: sines and cosines of fixed frequencies.

Octaves (NeRF, eq. 4) reach from the whole box to fine detail, but say the same of every place half a period
apart; the six axes of an icosahedron (as in mip-NeRF 360, section 3.2) spread them over directions. Random
frequencies (Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions") span smooth
functions of space evenly, so that a single matrix makes of them any pattern of that smoothness. Bumps are
products of quadratic B-splines around the centres of a grid's cells: smooth, one in sum, each zero outside
3 x 3 x 3 cells. A matrix's columns for them are a feature of each place, between which the field interpolates
(as Peng et al. 2020, "Convolutional Occupancy Networks", does in a volume).
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

    axes: Literal["cartesian", "icosahedron"] = "icosahedron"
    num_octaves: int = Key(4, ge=0, le=15)  # along each axis
    num_random: int = Key(64, ge=0)
    random_scale: float = Key(4.0, gt=0)  # their standard deviation, radians a unit
    bumps: int = Key(0, ge=0)  # along each axis of a grid over the box

    @property
    def width(self) -> int:
        """How many numbers `encode` makes of a point."""
        num_axes = 3 if self.axes == "cartesian" else 6
        return 4 + 2 * (self.num_octaves * num_axes + self.num_random) + self.bumps**3


def encoding_axes(axes: Literal["cartesian", "icosahedron"]) -> Float[Tensor, "num_axes 3"]:
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


def encoding_matrix(config: EncodingConfig) -> Float[Tensor, "num_frequencies 3"]:
    """Returns angular frequencies: octave k turns by pi/2 * 2^k a unit along its axis; then the random ones.

    The lowest octave has a period of 4, so that it is one-to-one on the box [-1, 1]^3.
    """
    octaves = 0.5 * math.pi * 2.0 ** torch.arange(config.num_octaves)
    regular = (octaves[:, None, None] * encoding_axes(config.axes)).reshape(-1, 3)
    normal = torch.randn(config.num_random, 3, generator=torch.Generator().manual_seed(0))
    return torch.cat([regular, config.random_scale * normal])


def _splines(
    points: Float[Tensor, "*batch 3"], num: int
) -> tuple[Float[Tensor, "*batch 3 num"], Float[Tensor, "*batch 3 num"]]:
    """Returns the quadratic B-splines around the centres of `num` cells along each axis, and their slopes.

    Those around the centres just outside are added to the outermost ones, so that they sum to one everywhere.
    """
    centres = torch.arange(-1, num + 1, device=points.device) + 0.5
    place = 0.5 * num * (points[..., None] + 1) - centres
    size = place.abs()
    tail = (1.5 - size).clamp(min=0)
    value = torch.where(size < 0.5, 0.75 - place**2, 0.5 * tail**2)
    slope = torch.where(size < 0.5, -2 * place, -tail * place.sign())
    return _fold_ends(value), 0.5 * num * _fold_ends(slope)


def _fold_ends(values: Float[Tensor, "*batch num_and_two"]) -> Float[Tensor, "*batch num"]:
    inner = values[..., 1:-1].clone()
    inner[..., 0] += values[..., 0]
    inner[..., -1] += values[..., -1]
    return inner


def _products(x: Tensor, y: Tensor, z: Tensor) -> Float[Tensor, "*batch bumps"]:
    """Returns all products of one factor an axis, x fastest."""
    plane = (z[..., :, None] * y[..., None, :]).flatten(-2)
    return (plane[..., :, None] * x[..., None, :]).flatten(-2)


def encode(
    points: Float[Tensor, "*batch 3"], frequencies: Float[Tensor, "num_frequencies 3"], bumps: int
) -> Float[Tensor, "*batch encoded"]:
    """Returns [1, x, y, z, sines, cosines, bumps]; the constant gives an asset's own matrix a bias too."""
    # Autocast would round positions to 8 bits.
    with torch.autocast(points.device.type, enabled=False):
        angles = points.float() @ frequencies.transpose(0, 1)
        parts = [torch.ones_like(points[..., :1]), points, angles.sin(), angles.cos()]
        if bumps:
            parts.append(_products(*_splines(points.float(), bumps)[0].unbind(-2)))
    return torch.cat(parts, dim=-1)


def encoding_gradient(
    gradient: Float[Tensor, "*batch encoded"],
    points: Float[Tensor, "*batch 3"],
    frequencies: Float[Tensor, "num_frequencies 3"],
    bumps: int,
) -> Float[Tensor, "*batch 3"]:
    """Returns the gradient by position of what has `gradient` by the encoded position."""
    num = len(frequencies)
    _, direct, of_sines, of_cosines, of_bumps = gradient.float().split([1, 3, num, num, bumps**3], dim=-1)
    angles = points.float() @ frequencies.transpose(0, 1)
    total = direct + (of_sines * angles.cos() - of_cosines * angles.sin()) @ frequencies
    if not bumps:
        return total
    values, slopes = _splines(points.float(), bumps)
    axes = []
    for axis in range(3):
        factors = [(slopes if i == axis else values)[..., i, :] for i in range(3)]
        axes.append((of_bumps * _products(*factors)).sum(dim=-1))
    return total + torch.stack(axes, dim=-1)
