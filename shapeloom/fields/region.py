"""A field that is one asset's within a region and another's outside: what was changed, and what stays.

A region is a box, or shares on an even grid over [-1, 1]^3. From a box's faces inwards the other field takes
over along a smooth ramp over a tenth of its smallest side; between the nodes of a grid shares are
trilinear, so that surfaces stay whole. Outside, where the share is 0, every value is the first field's, bit
for bit.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from shapeloom.fields.heads import Color, Directions, Field, Geometry
from shapeloom.fields.projection import FieldWeights

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""The lowest and the highest corner."""
Region = Box | UInt8[Tensor, "side side side"]
"""A grid has its shares times 255 at [x, y, z]; its outer nodes lie on the faces of [-1, 1]^3."""
RAMP = 0.1
"""Of the box's smallest side."""


class RegionField(nn.Module):
    """A `Field` of twice the weights: those of the asset as it was, then those that hold in the region."""

    grid: Tensor | None

    def __init__(self, field: Field, region: Region) -> None:
        """Raises ValueError for a region that isn't one, see `check_region`."""
        super().__init__()
        check_region(region)
        self.field = field
        self.box = None if isinstance(region, Tensor) else region
        self.register_buffer("grid", region.clone() if isinstance(region, Tensor) else None, persistent=False)

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
        region = self.box if self.box is not None else self.grid
        assert region is not None
        return share_of(region, points)


def check_region(region: Region) -> None:
    """Raises ValueError unless a box's sides all have a length, and a grid is a cube of 2 nodes or more."""
    if isinstance(region, Tensor):
        if region.ndim != 3 or len(set(region.shape)) != 1 or len(region) < 2 or region.dtype != torch.uint8:
            raise ValueError(
                f"a region's grid is a cube of uint8, not {list(region.shape)} of {region.dtype}"
            )
        return
    if len(region[0]) != 3 or min(high - low for low, high in zip(*region, strict=True)) <= 0:
        raise ValueError(f"a region is a box (low, high) with low < high along x, y and z, not {region}")


def share_of(
    region: Region, points: Float[Tensor, "*batch 3"]
) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Returns how much may change at points, 0 to 1, and which lie outside: exactly nothing does there."""
    if isinstance(region, Tensor):
        # Their last axis is x, whose nodes come last of all.
        nodes = region.to(points).permute(2, 1, 0)[None, None] / 255
        share = F.grid_sample(
            nodes, points.reshape(1, 1, 1, -1, 3), padding_mode="border", align_corners=True
        ).reshape(points.shape[:-1])
        return share, share <= 0
    low, high = (points.new_tensor(corner) for corner in region)
    depth = torch.minimum(points - low, high - points).amin(dim=-1)  # within the box, from its faces
    ramp = RAMP * min(top - bottom for bottom, top in zip(*region, strict=True))
    share = (depth / ramp).clamp(0, 1)
    return share**2 * (3 - 2 * share), depth <= 0


def _halves(weights: FieldWeights) -> tuple[FieldWeights, FieldWeights]:
    half = len(weights) // 2
    return weights[:half], weights[half:]


def _mixed(first: Tensor, last: Tensor, share: Tensor, outside: Tensor) -> Tensor:
    return torch.where(outside, first, torch.lerp(first, last, share))
