"""An asset's points and views as tokens.

Points carry position, colour and normal, and are gathered where they lie. Views are cut into patches; every
pixel carries its premultiplied colour, alpha, the surface point it sees (zero where none), and its ray's
Pluecker coordinates.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from shapeloom.box import LOW, SIDE
from shapeloom.rendering.rays import camera_rays

COARSE = 4  # cells a side of the grid that tokens stand for
CELL_NUMBERS = 32  # of a cell: count 1, any 1, place 3, rgb 3, normal 3, their products 6 + 6 + 9
PIXEL_NUMBERS = 13  # premultiplied rgb 3, alpha 1, surface point 3, ray direction 3, moment 3


class GridTokens(nn.Module):
    """Points to one token for each cell of a 4 x 4 x 4 grid over the box.

    The points of each cell of a finer grid are summed up by their moments; a token is made of the finer
    cells within its own. Attention over points starts from averages over the whole asset and takes long to
    find out about places; here they are where they are from the first step. Convolutions that lead from
    the finer grid to the coarse one (Peng et al. 2020, "Convolutional Occupancy Networks") measured worse
    and took three quarters of the encoder's time.
    """

    def __init__(self, width: int, resolution: int, hidden: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.first = nn.Linear(CELL_NUMBERS * (resolution // COARSE) ** 3, hidden)
        self.second = nn.Linear(hidden, width)
        # Spreads that keep SiLU's outputs at one size. torch's shrink what assets differ in with each layer,
        # to a hundredth of the latent's noise: colours then stay grey for hundreds of steps.
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=1.68 / layer.in_features**0.5)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        points: Float[Tensor, "batch points 3"],
        rgb: Float[Tensor, "batch points 3"],
        normals: Float[Tensor, "batch points 3"],
    ) -> Float[Tensor, "batch cells width"]:
        """Returns 64 tokens. points in [-1, 1]^3, rgb in [0, 1], unit normals."""
        each = self.resolution // COARSE
        cells = cell_moments(points, rgb, normals, self.resolution)
        cells = cells.reshape(-1, COARSE, each, COARSE, each, COARSE, each, CELL_NUMBERS)
        cells = cells.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)
        tokens: Tensor = self.second(F.silu(self.first(cells)))
        return tokens


def cell_moments(
    points: Float[Tensor, "batch points 3"],
    rgb: Float[Tensor, "batch points 3"],
    normals: Float[Tensor, "batch points 3"],
    resolution: int,
) -> Float[Tensor, "batch cells cells cells numbers"]:
    """Returns what lies in each cell, axes z, y, x: the number of points (as log(1 + n)), whether there is
    any, and means of their places u in the cell (within 1 of its centre), colours, normals n, and products.

    The products n n^T and u u^T (upper triangles) and u n^T know what means lose: opposite sides of a
    thin part cancel in the mean of n, while u n^T says how far apart they are.
    """
    batch = points.shape[0]
    place = (points - LOW) * (resolution / SIDE)
    cell = place.floor().long().clamp(0, resolution - 1)
    asset = torch.arange(batch, device=points.device)[:, None]
    index = ((asset * resolution + cell[..., 2]) * resolution + cell[..., 1]) * resolution + cell[..., 0]
    u, n = 2 * (place - cell) - 1, normals
    across = (u[..., :, None] * n[..., None, :]).flatten(-2)
    one, squares = (
        torch.ones_like(u[..., :1]),
        [v[..., i : i + 1] * v[..., i:] for v in (n, u) for i in range(3)],
    )
    stacked = torch.cat([one, one, u, 2 * rgb - 1, n, *squares, across], dim=-1).flatten(0, 1)
    # In place, as the grid is many times as large as the points and mostly empty.
    means = points.new_zeros(batch * resolution**3, CELL_NUMBERS).index_add_(0, index.flatten(), stacked)
    count = means[:, :1].clone()
    means.div_(count.clamp(min=1))
    means[:, :1] = count.log1p()
    return means.unflatten(0, (batch, resolution, resolution, resolution))


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
    rgba: UInt8[Tensor, "*batch height width 4"],
    depth: Float[Tensor, "*batch height width"],
    cam_to_world: Float[Tensor, "*batch 4 4"],
    intrinsics: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch height width numbers"]:
    """Returns what ViewTokens reads of each pixel. rgba: straight alpha; depth: 0 where empty.

    cam_to_world may stretch and mirror. Made on the tensors' device: 52 bytes a pixel of 8.
    """
    origins, directions, cosine = camera_rays(cam_to_world, intrinsics, *depth.shape[-2:])
    length = directions.norm(dim=-1)  # 1, unless stretched
    directions, cosine = directions / length[..., None], cosine / length
    color = rgba.float() / 255
    alpha = color[..., 3:]
    seen = (depth > 0)[..., None]
    position = torch.where(
        seen, origins + directions * (depth / cosine)[..., None], torch.zeros_like(origins)
    )
    moment = torch.linalg.cross(origins, directions)
    return torch.cat([color[..., :3] * alpha, alpha, position, directions, moment], dim=-1)
