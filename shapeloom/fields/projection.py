"""Latent tokens to the hidden matrices of an asset's field.

`rows` (Shap-E, section 4.2): token i becomes row i of the stacked matrices, normalised, with a learned gain,
plus a shared base: every token says something of the whole box. `columns`: a layer's tokens are a grid over
the box; token i becomes the columns of the bumps in cell i, so that it speaks of its own place, and what is
asked of the waves is shared. `low_rank`: layer l is base + U diag(c) V with shared U and V, where c are the
numbers of that layer's tokens, or linear in them. Nowhere are two per-asset factors multiplied, so latents
have no sign ambiguity and their noise stays what it is.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.config import Config

FieldWeights = list[Float[Tensor, "_ _ _"]]
"""What an asset's field has of its own; here one [batch, out, in] matrix a hidden layer."""


@dataclass(frozen=True)
class LatentLayout:
    """How a latent's tokens are shared out among what a field has of an asset's own.

    layers: tokens of each matrix, in their order. num_geometry: how many of these matrices, the first ones,
    say where the asset is and the others how it looks; None: each says both. by_place: a layer's tokens are a
    grid over the box. is_set: the tokens have no order: they are points, say.
    """

    layers: tuple[int, ...]
    channels: int
    num_geometry: int | None = None
    by_place: bool = False
    is_set: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, channels) of a latent."""
        return sum(self.layers), self.channels


@runtime_checkable
class Projection(Protocol):
    """Latents to what their fields have of their own; a module."""

    def __call__(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights: ...


class ProjectionConfig(Config):
    """How a latent becomes weights."""

    kind: Literal["rows", "columns", "low_rank"] = Key(
        "low_rank",
        description="what a token makes: rows or columns of a layer's matrix, or coefficients of bases",
    )
    num_tokens: int = Key(
        64,
        ge=1,
        le=16384,
        description="latent tokens. rows: those of all matrices; columns: a layer's grid times "
        "layers; low_rank: a multiple of the layers",
    )
    channels: int = Key(16, ge=1, le=16384, description="of a latent token")
    rank: int = Key(
        0,
        ge=0,
        le=16384,
        description="coefficients per layer (low_rank); 0: as many as the layer's tokens have channels",
    )


def layer_tokens(config: ProjectionConfig, shapes: list[tuple[int, int]]) -> list[int]:
    """Returns how many latent tokens each hidden matrix has; shapes: their (out, in)."""
    if config.kind == "rows":
        return [out for out, _ in shapes]
    return [config.num_tokens // len(shapes)] * len(shapes)


class RowProjection(nn.Module):
    """Token i -> row i. shapes: (out, in) of each hidden matrix. layers: the tokens of each."""

    def __init__(self, config: ProjectionConfig, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = layer_tokens(config, shapes)
        self.base = nn.ParameterList([_initial_matrix(*shape) for shape in shapes])
        self.linear = nn.ModuleList([nn.Linear(config.channels, width) for _, width in shapes])
        # Rows start at a sixteenth of unit size, so that the shared base leads at first (Shap-E's gain).
        self.gain = nn.ParameterList([nn.Parameter(torch.full((width,), 0.0625)) for _, width in shapes])

    def forward(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights:
        """Returns one [batch, out, in] matrix a layer."""
        weights = []
        for tokens, base, linear, gain in zip(
            latent.split(self.layers, dim=1), self.base, self.linear, self.gain, strict=True
        ):
            rows = linear(tokens)
            weights.append(base + nn.functional.layer_norm(rows, rows.shape[-1:], weight=gain))
        return weights


class ColumnProjection(nn.Module):
    """Token i of a layer -> the columns of the bumps in cell i of a grid, x fastest: its matrix's last."""

    def __init__(self, config: ProjectionConfig, shapes: list[tuple[int, int]], bumps: list[int]) -> None:
        super().__init__()
        self.layers = layer_tokens(config, shapes)
        self.side = _side(self.layers[0])
        self.each = [_side(num) // self.side for num in bumps]
        self.base = nn.ParameterList(
            [_initial_matrix(out, width - num) for (out, width), num in zip(shapes, bumps, strict=True)]
        )
        self.linear = nn.ModuleList(
            [
                nn.Linear(config.channels, out * each**3, bias=False)
                for (out, _), each in zip(shapes, self.each, strict=True)
            ]
        )
        for weight in self.linear.parameters():
            # Sums of order one for latents of half their range.
            nn.init.normal_(weight, std=2 / math.sqrt(config.channels))

    def forward(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights:
        """Returns one [batch, out, in] matrix a layer."""
        weights = []
        for tokens, base, linear, each in zip(
            latent.split(self.layers, dim=1), self.base, self.linear, self.each, strict=True
        ):
            columns = linear(tokens).unflatten(1, (self.side,) * 3).unflatten(-1, (-1, each, each, each))
            # [batch, out, z of cell, z in cell, y, y, x, x]
            columns = columns.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(2)
            weights.append(torch.cat([base.expand(len(latent), -1, -1), columns], dim=-1))
        return weights


class _Twice(nn.Module):
    """Coefficients of order one from latents of half their range."""

    def forward(self, numbers: Tensor) -> Tensor:
        return 2 * numbers


class LowRankProjection(nn.Module):
    """Layer l = base + U diag(c) V, c linear in the layer's share of the tokens: `layers` says how many."""

    def __init__(self, config: ProjectionConfig, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = layer_tokens(config, shapes)
        numbers = self.layers[0] * config.channels
        self.base = nn.ParameterList([_initial_matrix(*shape) for shape in shapes])
        rank = config.rank or numbers
        self.coefficients = nn.ModuleList(
            [nn.Linear(numbers, rank, bias=False) if config.rank else _Twice() for _ in shapes]
        )
        for weight in self.coefficients.parameters():
            # c of order one for latents of half their range: torch's default would make it 0.3.
            nn.init.normal_(weight, std=2 / math.sqrt(numbers))
        # With c of order one, U diag(c) V then has entries of the same size as the base's.
        scale = rank**-0.25
        self.left = nn.ParameterList([nn.Parameter(torch.randn(out, rank) * scale) for out, _ in shapes])
        self.right = nn.ParameterList(
            [nn.Parameter(torch.randn(rank, width) * scale / math.sqrt(width)) for _, width in shapes]
        )

    def forward(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights:
        """Returns one [batch, out, in] matrix a layer."""
        weights = []
        layers = latent.split(self.layers, dim=1)
        for tokens, base, linear, left, right in zip(
            layers, self.base, self.coefficients, self.left, self.right, strict=True
        ):
            coefficients = linear(tokens.flatten(1))
            weights.append(base + (left * coefficients[:, None, :]) @ right)
        return weights


def _initial_matrix(out: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(out, width) * math.sqrt(2.0 / width))


def _side(num: int) -> int:
    """The side of a cubic grid of `num` cells."""
    return round(num ** (1 / 3))


def make_projection(config: ProjectionConfig, shapes: list[tuple[int, int]], bumps: list[int]) -> nn.Module:
    """Returns the projection for hidden matrices of `shapes`, whose last `bumps` columns are bumps'.

    Raises ValueError if the tokens don't fit.
    """
    if config.kind == "rows":
        rows = sum(out for out, _ in shapes)
        if config.num_tokens != rows:
            raise ValueError(
                f"projection.kind=rows needs one token a row: num_tokens must be {rows} for this field, "
                f"not {config.num_tokens}."
            )
        return RowProjection(config, shapes)
    if config.num_tokens % len(shapes):
        raise ValueError(
            f"projection.num_tokens must be a multiple of the field's {len(shapes)} layers, "
            f"but is {config.num_tokens}."
        )
    if config.kind == "columns":
        each = config.num_tokens // len(shapes)
        sides = [_side(num) for num in (each, *bumps)]
        if sides[0] ** 3 != each or any(side == 0 or side % sides[0] for side in sides[1:]):
            raise ValueError(
                "projection.kind=columns needs own_layers=1 and a grid of tokens a layer, whose side divides "
                f"that of the trunk's bumps: num_tokens=128 with bumps 4 or 8, say. Here are {each} tokens a "
                f"layer, with bumps {sides[1:]} a side."
            )
        return ColumnProjection(config, shapes, bumps)
    return LowRankProjection(config, shapes)
