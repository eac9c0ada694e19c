"""Where a field may be seen: the cells of a grid over the box [-1, 1]^3 that rays need not skip."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shapeloom.box import LOW, SIDE
from shapeloom.rendering.isosurface import grid_values, may_hold_zero

# Optical depth over a cell's diagonal below which it counts as empty.
EMPTY = 0.01
# Logarithms of optical depth below this are all the same: nothing.
FAINTEST = -60.0


def occupancy_resolution(num_rays: int) -> int:
    """Returns how many cells a side pay off for so many rays of an asset, as the grid has a cost too."""
    if num_rays <= 1 << 12:
        return 16
    return 32 if num_rays <= 1 << 15 else 64


@torch.no_grad()
def occupied_cells(
    density: Callable[[Float[Tensor, "points 3"]], Float[Tensor, " points"]],
    *,
    resolution: int,
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "x y z"]:
    """Returns which cells may hold anything visible. density: a unit of length, at points in [-1, 1]^3.

    The logarithm of density falls off evenly outside a surface, so that the bound by its slope that finds
    surfaces (see isosurface) also finds where it crosses what can be seen; coarse to fine.
    """
    diagonal = 3**0.5 * SIDE / resolution

    def faintness(points: Tensor) -> Tensor:
        depth = density(points).float() * (diagonal / EMPTY)
        return -depth.log().clamp(min=FAINTEST)

    values = grid_values(faintness, resolution=resolution, coarsest=16, device=device)
    corner_seen = -torch.nn.functional.max_pool3d(-values[None, None], 2, 1)[0, 0] <= 0
    return corner_seen | may_hold_zero(values)


def in_occupied(
    occupied: Bool[Tensor, "batch x y z"], points: Float[Tensor, "batch points 3"]
) -> Bool[Tensor, "batch points"]:
    """Returns whether each asset's points lie in its occupied cells."""
    size = occupied.shape[1]
    cell = ((points - LOW) * (size / SIDE)).long().clamp(0, size - 1)
    flat = (cell[..., 0] * size + cell[..., 1]) * size + cell[..., 2]
    return occupied.flatten(1).gather(1, flat)
