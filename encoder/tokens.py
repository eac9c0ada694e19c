"""An asset's points and views as tokens.

Points carry position, colour and normal, and are gathered where they lie. Views are cut into patches; every
pixel carries its premultiplied colour, alpha, the surface point it sees (zero where none), and its ray's
Pluecker coordinates.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

COARSE = 4  # cells a side of the grid that tokens stand for
CELL_NUMBERS = 11  # of a cell: count 1, any 1, place 3, rgb 3, normal 3
PIXEL_NUMBERS = 13  # premultiplied rgb 3, alpha 1, surface point 3, ray direction 3, moment 3


class GridTokens(nn.Module):
    """Points to one token for each cell of a 4 x 4 x 4 grid over the box.

    The points of a cell of a finer grid are averaged, and convolutions of stride 2 lead to the coarse one
    (Peng et al. 2020, "Convolutional Occupancy Networks"). Attention over points starts from averages over
    the whole asset and takes long to find out about places; here they are where they are from the first step.
    """

    def __init__(self, width: int, resolution: int, channels: int) -> None:
        super().__init__()
        levels = resolution.bit_length() - COARSE.bit_length()
        self.resolution = resolution
        self.first = nn.Conv3d(CELL_NUMBERS, channels, 3, padding=1)
        self.halve, self.mix = nn.ModuleList(), nn.ModuleList()
        for _ in range(levels):
            wider = min(2 * channels, width)
            self.halve.append(nn.Conv3d(channels, wider, 2, stride=2))
            self.mix.append(nn.Conv3d(wider, wider, 3, padding=1))
            channels = wider
        self.linear = nn.Linear(channels, width)
        # Spreads that keep SiLU's outputs at one size. torch's shrink what assets differ in with each layer,
        # to a hundredth of the latent's noise: colours then stay grey for hundreds of steps.
        for layer in (self.first, *self.halve, *self.mix, self.linear):
            nn.init.normal_(layer.weight, std=1.68 / layer.weight[0].numel() ** 0.5)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        points: Float[Tensor, "batch points 3"],
        rgb: Float[Tensor, "batch points 3"],
        normals: Float[Tensor, "batch points 3"],
    ) -> Float[Tensor, "batch cells width"]:
        """Returns 64 tokens. points in [-1, 1]^3, rgb in [0, 1], unit normals."""
        x = F.silu(self.first(cell_means(points, rgb, normals, self.resolution)))
        for halve, mix in zip(self.halve, self.mix, strict=True):
            x = F.silu(mix(F.silu(halve(x))))
        tokens: Tensor = self.linear(x.flatten(2).transpose(1, 2))
        return tokens


def cell_means(
    points: Float[Tensor, "batch points 3"],
    rgb: Float[Tensor, "batch points 3"],
    normals: Float[Tensor, "batch points 3"],
    resolution: int,
) -> Float[Tensor, "batch numbers cells cells cells"]:
    """Returns what lies in each cell, axes z, y, x: the number of points (as log(1 + n)), whether there is
    any, and the means of their places in the cell (within 0.5 of its centre), colours and normals."""
    batch = points.shape[0]
    place = (points + 1) * (0.5 * resolution)
    cell = place.floor().long().clamp(0, resolution - 1)
    asset = torch.arange(batch, device=points.device)[:, None]
    index = ((asset * resolution + cell[..., 2]) * resolution + cell[..., 1]) * resolution + cell[..., 0]
    one = torch.ones_like(points[..., :1])
    values = torch.cat([one, place - cell - 0.5, 2 * rgb - 1, normals], dim=-1)
    sums = points.new_zeros(batch * resolution**3, values.shape[-1])
    sums.index_add_(0, index.flatten(), values.flatten(0, 1))
    count = sums[:, :1]
    means = torch.cat([count.log1p(), (count > 0).float(), sums[:, 1:] / count.clamp(min=1)], dim=-1)
    return means.reshape(batch, resolution, resolution, resolution, -1).permute(0, 4, 1, 2, 3)


class ViewTokens(nn.Module):
    """One token a square patch of a view."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(PIXEL_NUMBERS * patch * patch, width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, pixels: Float[Tensor, "batch views height width numbers"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Returns views x patches tokens; raises ValueError unless patches fit the picture."""
        batch, views, height, width, numbers = pixels.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"views of {height}x{width} pixels can't be cut into patches of {self.patch}.")
        rows, columns = height // self.patch, width // self.patch
        patches = pixels.reshape(batch, views, rows, self.patch, columns, self.patch, numbers)
        patches = patches.permute(0, 1, 2, 4, 3, 5, 6).reshape(batch, views * rows * columns, -1)
        tokens: Tensor = self.norm(self.linear(patches))
        return tokens


def pixel_features(
    rgba: Float[Tensor, "*batch height width 4"],
    depth: Float[Tensor, "*batch height width"],
    origins: Float[Tensor, "*batch height width 3"],
    directions: Float[Tensor, "*batch height width 3"],
    cosine: Float[Tensor, "*batch height width"],
) -> Float[Tensor, "*batch height width numbers"]:
    """Returns what ViewTokens reads of each pixel. rgba in [0, 1], straight alpha; depth 0 where empty."""
    alpha = rgba[..., 3:]
    seen = (depth > 0)[..., None]
    position = torch.where(
        seen, origins + directions * (depth / cosine)[..., None], torch.zeros_like(origins)
    )
    moment = torch.linalg.cross(origins, directions)
    return torch.cat([rgba[..., :3] * alpha, alpha, position, directions, moment], dim=-1)
