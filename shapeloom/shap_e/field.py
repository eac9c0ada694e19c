"""Shap-E's field and its projection from latents, under the names of its published checkpoints.

The official frame is the box [-1, 1]^3, which an asset touches, +Z up; signed distance is positive inside and
goes through a tanh. Ours keeps assets within 0.95 (ours = 0.95 official) and has it negative inside:
`geometry` and `color`, which the decoder calls, speak our frame, `raw` the official one. This is the border;
nothing else converts fields.

raw's 12 outputs: signed distance; density coarse, fine; texture rgb; NeRF rgb coarse, fine.
Jun & Nichol 2023, "Shap-E", sections 3.1, 4.2.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.box import ASSET_HALF_SIZE
from shapeloom.config import Config
from shapeloom.fields.heads import Color, Directions, Geometry
from shapeloom.fields.projection import FieldWeights, LatentLayout

POINT_OCTAVES, DIRECTION_OCTAVES = 15, 8
POINT_NUMBERS, DIRECTION_NUMBERS = 3 + 6 * POINT_OCTAVES, 3 + 6 * DIRECTION_OCTAVES
OWN_LAYERS, DIRECTION_LAYER, NUM_LAYERS = 4, 4, 7
GEOMETRY, TEXTURE, COARSE_RGB, FINE_RGB = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)
# A chunk's activations stay in a CPU's cache.
POINTS_IN_CACHE = 1 << 11


class ShapEFieldConfig(Config):
    """Sizes of the field and of the latents that it comes from; the defaults are the published ones."""

    width: int = Key(256, ge=4, le=4096, description="channels of a hidden layer")
    channels: int = Key(1024, ge=1, le=16384, description="of a latent token")

    @property
    def layout(self) -> LatentLayout:
        """Of its latents: a token a row of each layer of an asset's own."""
        return LatentLayout((self.width,) * OWN_LAYERS, self.channels)

    @property
    def row_lengths(self) -> list[int]:
        """Columns of each matrix of an asset's own."""
        return [POINT_NUMBERS, *[self.width] * (OWN_LAYERS - 1)]


def encode_octaves(x: Float[Tensor, "*batch values"], octaves: int) -> Float[Tensor, "*batch encoded"]:
    """Returns [x, sin(2^k x), cos(2^k x)], octave k outer and coordinate inner, always in float32.

    Cosines are sines of 2^k x + pi/2 rounded to float32, as in the reference: a cosine proper differs by up
    to 5e-4 at the highest octave, and weights have learnt the rounding.
    """
    with torch.autocast(x.device.type, enabled=False):
        powers = (1 << torch.arange(octaves, device=x.device)).float()  # exact, which a GPU's pow needn't be
        angles = (x.float()[..., None, :] * powers[:, None]).flatten(-2)
        return torch.cat([x.float(), angles.sin(), (angles + math.pi / 2).sin()], dim=-1)


class _Rows(nn.Module):
    """Token i to row i of one matrix: a linear map a row, a norm over the row, then its bias."""

    def __init__(self, channels: int, rows: int, columns: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, rows * columns)
        self.norm = nn.LayerNorm(columns)

    def forward(self, tokens: Float[Tensor, "batch rows channels"]) -> Float[Tensor, "batch rows columns"]:
        rows = tokens.shape[1]
        matrix = self.proj.weight.unflatten(0, (rows, -1))
        return self.norm(torch.einsum("bvd,vcd->bvc", tokens, matrix)) + self.proj.bias.unflatten(
            0, (rows, -1)
        )


class ShapEProjection(nn.Module):
    """Latent tokens to an asset's own matrices."""

    def __init__(self, config: ShapEFieldConfig) -> None:
        super().__init__()
        self.layers = config.layout.layers
        self.projections = nn.ModuleDict(
            {
                f"nerstf__mlp__{layer}__weight": _Rows(config.channels, config.width, columns)
                for layer, columns in enumerate(config.row_lengths)
            }
        )
        for rows in self.projections.values():
            assert isinstance(rows, _Rows)
            nn.init.normal_(rows.proj.weight, std=1 / math.sqrt(config.channels))
            nn.init.zeros_(rows.proj.bias)
            nn.init.constant_(rows.norm.weight, 0.0625)

    def forward(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights:
        """Returns one [batch, out, in] matrix for each of the first four layers."""
        shares = latent.split(self.layers, dim=1)
        return [rows(tokens) for rows, tokens in zip(self.projections.values(), shares, strict=True)]


class _OwnLinear(nn.Module):
    """The shared bias of a layer whose matrix is an asset's own; the checkpoint's `weight` is never used."""

    weight: Tensor

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(rows))
        self.register_buffer("weight", torch.zeros(rows, columns))


class _Nerstf(nn.Module):
    def __init__(self, width: int, row_lengths: list[int]) -> None:
        super().__init__()
        own = [_OwnLinear(columns, width) for columns in row_lengths]
        sizes = ((width + DIRECTION_NUMBERS, width), (width, width), (width, 12))
        shared = [nn.Linear(columns, rows) for columns, rows in sizes]
        for layer in shared:
            nn.init.normal_(layer.weight, std=0.25 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            shared[-1].bias[:2] = torch.tensor([-0.1, 0.1])
        self.mlp = nn.ModuleList([*own, *shared])

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        layer = self.mlp[number]
        assert isinstance(layer, nn.Linear | _OwnLinear)
        return layer.weight, layer.bias


class _Void(nn.Module):
    background: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("background", torch.zeros(3))


class ShapEField(nn.Module):
    """The field MLP: `renderer.*` of the published checkpoints."""

    def __init__(self, config: ShapEFieldConfig) -> None:
        super().__init__()
        self.nerstf = _Nerstf(config.width, config.row_lengths)
        self.void = _Void()

    def raw(
        self,
        weights: FieldWeights,
        points: Float[Tensor, "#batch points 3"],
        directions: Float[Tensor, "#batch points 3"] | None = None,
        *,
        outputs: slice = slice(0, 12),
    ) -> Float[Tensor, "batch points outputs"]:
        """Returns the last layer's numbers, before any activation, at points of the official box.

        directions: unit, away from the camera; None: 51 zeros in place of their encoding.
        """
        hidden = encode_octaves(points, POINT_OCTAVES).expand(weights[0].shape[0], -1, -1)
        for layer in range(NUM_LAYERS):
            matrix, bias = self.nerstf.layer(layer)
            if layer < OWN_LAYERS:
                hidden = torch.baddbmm(
                    bias.expand(len(hidden), 1, -1), hidden, weights[layer].transpose(1, 2)
                )
            elif layer == DIRECTION_LAYER and directions is None:
                hidden = F.linear(hidden, matrix[:, : hidden.shape[-1]], bias)
            elif layer == DIRECTION_LAYER:
                assert directions is not None
                encoded = encode_octaves(directions, DIRECTION_OCTAVES).expand(len(hidden), -1, -1)
                hidden = F.linear(torch.cat([hidden, encoded], dim=-1), matrix, bias)
            elif layer == NUM_LAYERS - 1:
                return F.linear(hidden, matrix[outputs], bias[outputs])
            else:
                hidden = F.linear(hidden, matrix, bias)
            hidden = F.silu(hidden, inplace=not torch.is_grad_enabled())
        raise AssertionError("the last layer returns")

    def forward(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """Returns everything at points of our frame, from one pass."""
        raw = self._chunked(weights, points, slice(0, 12))
        return _geometry(raw, points), _color(raw)

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """Returns density (the fine one) and signed distance at points of our frame.

        Beyond the official box, where the field was never trained, there is nothing.
        """
        return _geometry(self._chunked(weights, points, GEOMETRY), points)

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """Returns colours (the fine NeRF's, the texture's) at points of our frame.

        Directions make no difference: the reference's pictures are drawn without, and so are these.
        """
        return _color(self._chunked(weights, points, slice(0, 12)))

    def sdf_and_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """Returns the signed distance and its gradient at points of our frame, by autograd."""
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            places = points if points.requires_grad else points.detach().requires_grad_()
            sdf = self.geometry(weights, places).sdf
            gradient = torch.autograd.grad(sdf.sum(), places, create_graph=further)[0]
        return sdf if further else sdf.detach(), gradient

    def _chunked(self, weights: FieldWeights, points: Tensor, outputs: slice) -> Tensor:
        official = (points / ASSET_HALF_SIZE).clamp(-1, 1)
        if torch.is_grad_enabled() or points.device.type != "cpu":
            return self.raw(weights, official, outputs=outputs).float()
        parts = [
            self.raw(weights, part, outputs=outputs).float() for part in official.split(POINTS_IN_CACHE, 1)
        ]
        return torch.cat(parts, dim=1)


def _geometry(raw: Tensor, points: Tensor) -> Geometry:
    beyond = points.abs().amax(dim=-1) - ASSET_HALF_SIZE
    density = raw[..., 2].relu() / ASSET_HALF_SIZE * (beyond <= 0)
    return Geometry(density=density, sdf=torch.maximum(-ASSET_HALF_SIZE * raw[..., 0].tanh(), beyond))


def _color(raw: Tensor) -> Color:
    return Color(rgb=raw[..., FINE_RGB].sigmoid(), texture=raw[..., TEXTURE].sigmoid())
