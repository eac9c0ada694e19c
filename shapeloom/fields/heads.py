"""What a field says of a point: density and signed distance, NeRF colour and texture colour.

Density is derived from the signed distance with a learned offset and sharpness (VolSDF, eq. 2-3, with a
logistic in place of the Laplace distribution): density = sigmoid((offset - sdf) / beta) / beta. So volume
renders and meshes agree by construction, and samples of signed distance shape both. For the same reason the
NeRF colour is the texture colour with a learned difference (its shading), added before the sigmoid. Where
colours depend on the direction of view, the shading has a part of spherical harmonics of it (Yu et al. 2021,
"PlenOctrees", section 4.1). Its mean over all directions is zero before the sigmoid, not after it.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapeloom.fields.projection import FieldWeights

# The sharpest and the softest surface that beta may learn, as lengths in the box [-1, 1]^3. A tenth of a
# 64-pixel view's pixel is not resolved by any sampling used; a fifth of the box is fog.
MIN_BETA, MAX_BETA = 0.003, 0.2


@dataclass(frozen=True)
class Geometry:
    """Where an asset is. density >= 0 a unit of length; sdf negative inside."""

    density: Float[Tensor, "batch points"]
    sdf: Float[Tensor, "batch points"]


@dataclass(frozen=True)
class Color:
    """How it looks, sRGB in [0, 1]: lit, as in the views, and bare, as in a texture."""

    rgb: Float[Tensor, "batch points 3"]
    texture: Float[Tensor, "batch points 3"]


Directions = Float[Tensor, "batch points 3"] | None
"""Unit vectors from the camera, one a point; none: colours as they are from all sides."""


@runtime_checkable
class Field(Protocol):
    """The fields of a batch of assets at points of the box [-1, 1]^3; a module. `FieldMLP` is ours.

    weights: what a projection says of each asset.
    """

    def __call__(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """Returns everything, from one pass."""

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """Returns density and signed distance alone."""

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """Returns the colours alone."""

    def sdf_and_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """Returns the signed distance and its gradient by position."""


class GeometryHead(nn.Module):
    """Features to density and signed distance."""

    def __init__(self, width: int, *, initial_beta: float = 0.02) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        # One axis, not none: DeepSpeed can't broadcast a scalar.
        self.log_beta = nn.Parameter(torch.tensor([math.log(initial_beta)]))
        with torch.no_grad():
            self.linear.bias[0] = 0.0  # offset
            self.linear.bias[1] = 0.3  # far from any surface at first: empty space costs no gradient

    def forward(self, features: Float[Tensor, "batch points width"]) -> Geometry:
        """Returns the activated values, in float32: densities don't survive bfloat16's 8 bits."""
        raw = self.linear(features).float()
        offset, sdf = 0.1 * raw[..., 0], raw[..., 1]
        beta = self.log_beta.exp().clamp(MIN_BETA, MAX_BETA)
        return Geometry(density=torch.sigmoid((offset - sdf) / beta) / beta, sdf=sdf)


NUM_HARMONICS = 8


def harmonics(directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 8"]:
    """Returns the real spherical harmonics of degrees 1 and 2 of unit vectors; mean 0, mean square 1."""
    x, y, z = directions.unbind(-1)
    first = [math.sqrt(3) * value for value in (x, y, z)]
    second = [math.sqrt(15) * value for value in (x * y, y * z, x * z, 0.5 * (x**2 - y**2))]
    return torch.stack([*first, *second, math.sqrt(5) / 2 * (3 * z**2 - 1)], dim=-1)


class ColorHead(nn.Module):
    """Features to colours."""

    def __init__(self, width: int, *, directional: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6)
        self.shine = nn.Linear(width, 3 * NUM_HARMONICS, bias=False) if directional else None
        if self.shine is not None:
            nn.init.zeros_(self.shine.weight)

    def forward(
        self,
        features: Float[Tensor, "batch points width"],
        directions: Directions = None,
    ) -> Color:
        """Returns colours in float32; without directions, without harmonics."""
        shading, texture = self.linear(features).float().split(3, dim=-1)
        if self.shine is not None and directions is not None:
            shine = self.shine(features).float().unflatten(-1, (3, NUM_HARMONICS))
            shading = shading + (shine @ harmonics(directions.float())[..., None])[..., 0]
        return Color(rgb=torch.sigmoid(texture + shading), texture=torch.sigmoid(texture))
