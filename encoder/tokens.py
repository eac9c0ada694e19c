"""An asset's points and views as tokens.

Points carry position, colour and normal. Views are cut into patches; every pixel carries its premultiplied
colour, alpha, the surface point it sees (zero where none), and its ray's Pluecker coordinates.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapeloom.fields.encoding import encode, encoding_matrix, encoding_width

POINT_OCTAVES = 6
PIXEL_NUMBERS = 13  # premultiplied rgb 3, alpha 1, surface point 3, ray direction 3, moment 3


class PointTokens(nn.Module):
    """One token a surface point."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = encoding_matrix("cartesian", POINT_OCTAVES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.inner = nn.Linear(encoding_width("cartesian", POINT_OCTAVES) + 6, width)
        self.outer = nn.Linear(width, width)

    def forward(
        self,
        points: Float[Tensor, "batch points 3"],
        rgb: Float[Tensor, "batch points 3"],
        normals: Float[Tensor, "batch points 3"],
    ) -> Float[Tensor, "batch points width"]:
        """Returns tokens. points in [-1, 1]^3, rgb in [0, 1], unit normals."""
        features = torch.cat([encode(points, self.frequencies), 2 * rgb - 1, normals], dim=-1)
        tokens: Tensor = self.outer(nn.functional.silu(self.inner(features)))
        return tokens


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
