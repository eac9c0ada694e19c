"""What a field says of a point: density and signed distance, NeRF colour and texture colour.

Density is derived from the signed distance with a learned offset and sharpness (VolSDF, eq. 2-3, with a
logistic in place of the Laplace distribution): density = sigmoid((offset - sdf) / beta) / beta. So volume
renders and meshes agree by construction, and samples of signed distance shape both. For the same reason the
NeRF colour is the texture colour with a learned difference (its shading), added before the sigmoid.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


class ColorHead(nn.Module):
    """Features to colours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6)

    def forward(self, features: Float[Tensor, "batch points width"]) -> Color:
        """Returns colours in float32."""
        shading, texture = self.linear(features).float().split(3, dim=-1)
        return Color(rgb=torch.sigmoid(texture + shading), texture=torch.sigmoid(texture))
