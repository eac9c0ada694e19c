"""Latent tokens to the hidden matrices of an asset's field.

`rows` (Shap-E, section 4.2): token i becomes row i of the stacked matrices, normalised, with a learned gain,
plus a shared base: every token says something of the whole box. `columns`: token i becomes column i of a
matrix, which weighs bump i of the positional encoding, so that it speaks of its own place; what is asked of
the periodic features is shared. `low_rank`: layer l is base + U diag(c) V with shared U and V, where c is
linear in that layer's tokens. Nowhere are two per-asset factors multiplied, so latents have no sign ambiguity
and their noise stays what it is.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.config import Config

FieldWeights = list[Float[Tensor, "_ _ _"]]
"""One [batch, out, in] matrix a hidden layer."""


class ProjectionConfig(Config):
    """How a latent becomes weights."""

    kind: Literal["rows", "columns", "low_rank"] = "low_rank"
    # rows: those of all matrices; columns: a layer's bumps, times layers; low_rank: a multiple of the layers.
    num_tokens: int = Key(64, ge=1)
    channels: int = Key(16, ge=1)
    rank: int = Key(256, ge=1)  # coefficients a layer (low_rank)


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
    """Token i of a layer -> the column of bump i, the last ones of its matrix."""

    def __init__(self, config: ProjectionConfig, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = layer_tokens(config, shapes)
        self.base = nn.ParameterList([_initial_matrix(*shape) for shape in shapes])
        self.linear = nn.ModuleList([nn.Linear(config.channels, out, bias=False) for out, _ in shapes])
        for weight in self.linear.parameters():
            # Sums of order one for latents of half their range.
            nn.init.normal_(weight, std=2 / math.sqrt(config.channels))

    def forward(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights:
        """Returns one [batch, out, in] matrix a layer."""
        weights = []
        for tokens, base, linear in zip(
            latent.split(self.layers, dim=1), self.base, self.linear, strict=True
        ):
            columns = linear(tokens).transpose(1, 2)
            weights.append(base + nn.functional.pad(columns, (base.shape[1] - columns.shape[2], 0)))
        return weights


class LowRankProjection(nn.Module):
    """Layer l = base + U diag(c) V, c linear in the layer's share of the tokens: `layers` says how many."""

    def __init__(self, config: ProjectionConfig, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = layer_tokens(config, shapes)
        numbers = self.layers[0] * config.channels
        self.base = nn.ParameterList([_initial_matrix(*shape) for shape in shapes])
        self.coefficients = nn.ModuleList([nn.Linear(numbers, config.rank, bias=False) for _ in shapes])
        for weight in self.coefficients.parameters():
            # c of order one for latents of half their range: torch's default would make it 0.3.
            nn.init.normal_(weight, std=2 / math.sqrt(numbers))
        # With c of order one, U diag(c) V then has entries of the same size as the base's.
        scale = config.rank**-0.25
        self.left = nn.ParameterList(
            [nn.Parameter(torch.randn(out, config.rank) * scale) for out, _ in shapes]
        )
        self.right = nn.ParameterList(
            [nn.Parameter(torch.randn(config.rank, width) * scale / math.sqrt(width)) for _, width in shapes]
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


def make_projection(config: ProjectionConfig, shapes: list[tuple[int, int]], num_bumps: int) -> nn.Module:
    """Returns the projection for hidden matrices of `shapes`; raises ValueError if the tokens don't fit."""
    if config.kind == "rows":
        rows = sum(out for out, _ in shapes)
        if config.num_tokens != rows:
            raise ValueError(
                f"projection.kind=rows needs one token a row: num_tokens must be {rows} for this field, "
                f"not {config.num_tokens}."
            )
        return RowProjection(config, shapes)
    if config.kind == "columns":
        if any(width != shapes[0][1] for _, width in shapes):
            raise ValueError("projection.kind=columns is for first layers: own_layers must be 1.")
        if not num_bumps or config.num_tokens != len(shapes) * num_bumps:
            raise ValueError(
                f"projection.kind=columns needs one token a bump of the positional encoding in each of "
                f"{len(shapes)} layers: num_tokens must be {len(shapes)} x bumps^3, and not "
                f"{config.num_tokens} with {num_bumps} bumps."
            )
        return ColumnProjection(config, shapes)
    if config.num_tokens % len(shapes):
        raise ValueError(
            f"projection.num_tokens must be a multiple of the field's {len(shapes)} layers, "
            f"but is {config.num_tokens}."
        )
    return LowRankProjection(config, shapes)
