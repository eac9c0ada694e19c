"""Bumps: functions of space that say where a point is, for what an asset has of its own at each place.

There is one around the centre of each cell of a grid over the box, a product of linear hats along the axes.
They are one in sum, and only the eight around a point aren't zero there, so that the sum of columns that they
weigh (trilinear interpolation, as of a volume in Peng et al. 2020, "Convolutional Occupancy Networks") costs
the same whatever the grid's size. Bump (z * num + y) * num + x is that of cell x, y, z.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from shapeloom.box import LOW, SIDE


def bumps_at(
    points: Float[Tensor, "batch points 3"], num: int
) -> tuple[Int64[Tensor, "batch points 8"], Float[Tensor, "batch points 8"]]:
    """Returns the numbers of the eight bumps around each point, and their values.

    num: bumps along each axis.
    """
    low, share = _cells(points, num)
    x, y, z = torch.stack([low, (low + 1).clamp(max=num - 1)], dim=-1).long().unbind(-2)
    index = (z[..., :, None, None] * num + y[..., None, :, None]) * num + x[..., None, None, :]
    return index.flatten(-3), _products(torch.stack([1 - share, share], dim=-1))


def bump_slopes(points: Float[Tensor, "batch points 3"], num: int) -> Float[Tensor, "batch points 3 8"]:
    """Returns the derivatives of the values of `bumps_at` by x, y and z."""
    _, share = _cells(points, num)
    # Beyond the outermost centres nothing changes.
    slope = num / SIDE * ((share > 0) & (share < 1)).to(share)
    values, slopes = torch.stack([1 - share, share], dim=-1), torch.stack([-slope, slope], dim=-1)
    turn = torch.eye(3, dtype=torch.bool, device=points.device)[:, :, None]
    return _products(torch.where(turn, slopes[..., None, :, :], values[..., None, :, :]))


def weigh_columns(
    columns: Float[Tensor, "batch out bumps"],
    index: Int64[Tensor, "#batch points 8"],
    weight: Float[Tensor, "#batch points 8"],
) -> Float[Tensor, "batch points out"]:
    """Returns each point's sum of its asset's columns `index`, weighed by `weight`."""
    batch, out, num = columns.shape
    first = num * torch.arange(batch, device=columns.device)[:, None, None]
    # Autocast would round to 8 bits what fine detail is the difference of.
    with torch.autocast(columns.device.type, enabled=False):
        sums = F.embedding_bag(
            (index + first).flatten(0, 1),
            columns.transpose(1, 2).reshape(-1, out),
            per_sample_weights=weight.to(columns.dtype).expand(batch, -1, -1).flatten(0, 1),
            mode="sum",
        )
    return sums.unflatten(0, (batch, -1))


def _cells(points: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Along each axis: the last centre before a point, and what share of the way to the next one it is."""
    place = (num / SIDE * (points.float() - LOW) - 0.5).clamp(0, num - 1)
    low = place.detach().floor().clamp(max=max(0, num - 2))
    return low, place - low


def _products(along: Float[Tensor, "*batch 3 2"]) -> Float[Tensor, "*batch 8"]:
    x, y, z = along.unbind(-2)
    return (z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]).flatten(-3)
