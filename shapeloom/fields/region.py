"""A field that is one asset's within a box and another's outside: what was changed there, and what stays.

From the box's faces inwards the other field takes over along a smooth ramp over a tenth of its smallest side,
so that surfaces stay whole. Outside, every value is the first field's, bit for bit.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shapeloom.fields.heads import Color, Directions, Field, Geometry
from shapeloom.fields.projection import FieldWeights

Region = tuple[tuple[float, float, float], tuple[float, float, float]]
"""The lowest and the highest corner of a box."""
RAMP = 0.1
"""Of the box's smallest side."""


class RegionField(nn.Module):
    """A `Field` of twice the weights: those of the asset as it was, then those that hold within the box."""

    def __init__(self, field: Field, region: Region) -> None:
        """Raises ValueError unless each side of the box has a length."""
        super().__init__()
        self.field, self.region = field, region
        sides = [high - low for low, high in zip(*region, strict=True)]
        if len(sides) != 3 or min(sides) <= 0:
            raise ValueError(f"a region is a box (low, high) with low < high along x, y and z, not {region}")
        self.ramp = RAMP * min(sides)

    def forward(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """See `Field`."""
        return self.geometry(weights, points), self.color(weights, points, directions)

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """See `Field`."""
        before, after = _halves(weights)
        share, outside = self._share(points)
        first, last = self.field.geometry(before, points), self.field.geometry(after, points)
        return Geometry(
            density=_mixed(first.density, last.density, share, outside),
            sdf=_mixed(first.sdf, last.sdf, share, outside),
        )

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """See `Field`."""
        before, after = _halves(weights)
        share, outside = (part[..., None] for part in self._share(points))
        first = self.field.color(before, points, directions)
        last = self.field.color(after, points, directions)
        return Color(
            rgb=_mixed(first.rgb, last.rgb, share, outside),
            texture=_mixed(first.texture, last.texture, share, outside),
        )

    def sdf_and_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """See `Field`; the ramp's own slope is part of the gradient."""
        before, after = _halves(weights)
        first, first_slope = self.field.sdf_and_gradient(before, points)
        last, last_slope = self.field.sdf_and_gradient(after, points)
        with torch.enable_grad():
            places = points.detach().requires_grad_()
            share, outside = self._share(places)
            (of_share,) = torch.autograd.grad(share.sum(), places)
        share = share.detach()
        slope = torch.lerp(first_slope, last_slope, share[..., None]) + (last - first)[..., None] * of_share
        return _mixed(first, last, share, outside), torch.where(outside[..., None], first_slope, slope)

    def _share(
        self, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Bool[Tensor, "batch points"]]:
        """Returns how much of the other field counts, 0 to 1, and which points lie outside or on a face."""
        low, high = (points.new_tensor(corner) for corner in self.region)
        depth = torch.minimum(points - low, high - points).amin(dim=-1)  # within the box, from its faces
        share = (depth / self.ramp).clamp(0, 1)
        return share**2 * (3 - 2 * share), depth <= 0


def _halves(weights: FieldWeights) -> tuple[FieldWeights, FieldWeights]:
    half = len(weights) // 2
    return weights[:half], weights[half:]


def _mixed(first: Tensor, last: Tensor, share: Tensor, outside: Tensor) -> Tensor:
    return torch.where(outside, first, torch.lerp(first, last, share))
