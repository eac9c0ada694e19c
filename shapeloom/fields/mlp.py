"""The implicit MLP, applied with per-asset hidden matrices to a whole batch of assets at once.

x in [-1, 1]^3 -> positional encoding -> two trunks of hidden layers (SiLU), one for geometry and one for
colour -> heads. The first layers of a trunk have matrices of each asset's own, from the projection; later
layers, biases and heads are shared. A first layer may have a column for each of a grid of places too
(`bumps`). What is specific to an asset is then which patterns of space its first
layer responds to, and the shared layers compose them (Kim et al. 2023, "Generalizable Implicit Neural
Representations via Instance Pattern Composers").
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.config import Config
from shapeloom.fields.bumps import bump_slopes, bumps_at, weigh_columns
from shapeloom.fields.encoding import EncodingConfig, encode, encoding_gradient, encoding_matrix
from shapeloom.fields.heads import Color, ColorHead, Directions, Geometry, GeometryHead
from shapeloom.fields.projection import FieldWeights


class TrunkConfig(Config):
    """Hidden layers of one trunk."""

    width: int = Key(64, ge=4, le=4096, description="channels of a hidden layer")
    num_layers: int = Key(4, ge=1, le=128, description="hidden layers")
    own_layers: int = Key(
        1, ge=1, description="how many of them, from the first, have matrices of each asset's own"
    )
    bumps: int = Key(
        0,
        ge=0,
        le=64,
        description="cells a side of the feature grid over the box that the first layer reads too; 0: none",
    )


class ColorTrunkConfig(TrunkConfig):
    """The colour's, which is the simpler one."""

    num_layers: int = Key(3, ge=1, le=128, description="hidden layers")


class FieldConfig(Config):
    """The implicit MLP's size."""

    encoding: EncodingConfig = EncodingConfig()
    geometry: TrunkConfig = TrunkConfig()
    color: ColorTrunkConfig = ColorTrunkConfig()
    directional: bool = Key(
        False, description="NeRF colours depend on the direction of view; textures never do"
    )


def own_shapes(config: FieldConfig) -> list[tuple[int, int]]:
    """Returns (out, in) of each matrix that an asset has of its own: the geometry's, then the colour's.

    Those of bumps are the last columns.
    """
    return [
        (trunk.width, trunk.width if layer else config.encoding.width + trunk.bumps**3)
        for trunk in (config.geometry, config.color)
        for layer in range(min(trunk.own_layers, trunk.num_layers))
    ]


def own_bumps(config: FieldConfig) -> list[int]:
    """Returns how many columns of each of those matrices are bumps'."""
    return [
        0 if layer else trunk.bumps**3
        for trunk in (config.geometry, config.color)
        for layer in range(min(trunk.own_layers, trunk.num_layers))
    ]


class Trunk(nn.Module):
    """Hidden layers: the first ones with an asset's own matrices, the others shared."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.bumps = config.bumps
        own = min(config.own_layers, config.num_layers)
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(config.width)) for _ in range(own)])
        self.shared = nn.ModuleList([_linear(config.width) for _ in range(config.num_layers - own)])

    def forward(
        self,
        weights: FieldWeights,
        points: Float[Tensor, "#batch points 3"],
        encoded: Float[Tensor, "#batch points encoded"],
    ) -> Float[Tensor, "batch points width"]:
        """Returns the last layer's features. weights: one [batch, out, in] matrix a layer of its own.

        Points of a batch of one serve all assets: the same points for each.
        """
        features = F.silu(self._first_sums(weights[0], points, encoded))
        for matrix, bias in zip(weights[1:], list(self.biases)[1:], strict=True):
            features = F.silu(_own_layer(features, matrix, bias))
        for layer in self.shared:
            features = F.silu(layer(features))
        return features

    def gradient(
        self,
        weights: FieldWeights,
        points: Float[Tensor, "batch points 3"],
        encoded: Float[Tensor, "batch points encoded"],
        of_output: Float[Tensor, " width"],
    ) -> tuple[
        Float[Tensor, "batch points width"],
        Float[Tensor, "batch points encoded"],
        Float[Tensor, "batch points 3"],
    ]:
        """Returns the last layer's features, and the gradients of `of_output` times them in closed form.

        By the encoded points, and by the points through the bumps.
        One pass forward, one back, and no graph; autograd can go through it again.
        """
        sums, matrices = [self._first_sums(weights[0], points, encoded)], list(weights[1:])
        for matrix, bias in zip(weights[1:], list(self.biases)[1:], strict=True):
            sums.append(_own_layer(F.silu(sums[-1]), matrix, bias))
        for layer in self.shared:
            assert isinstance(layer, nn.Linear)
            matrices.append(layer.weight)
            sums.append(layer(F.silu(sums[-1])))
        features = F.silu(sums[-1])
        gradient = _silu_gradient(of_output.expand_as(sums[-1]), sums.pop())
        while sums:
            gradient = _silu_gradient(gradient @ matrices.pop(), sums.pop())
        waves, columns = self._split(weights[0])
        by_points = torch.zeros_like(points)
        if self.bumps:
            index, _ = bumps_at(points, self.bumps)
            slopes = bump_slopes(points, self.bumps).unbind(-2)
            changes = [(gradient * weigh_columns(columns, index, slope)).sum(dim=-1) for slope in slopes]
            by_points = torch.stack(changes, dim=-1)
        return features, gradient @ waves, by_points

    def _first_sums(
        self, matrix: Tensor, points: Tensor, encoded: Tensor
    ) -> Float[Tensor, "batch points out"]:
        """The first layer before its activation."""
        waves, columns = self._split(matrix)
        sums = _own_layer(encoded.expand(matrix.shape[0], -1, -1), waves, self.biases[0])
        return sums + weigh_columns(columns, *bumps_at(points, self.bumps)) if self.bumps else sums

    def _split(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        num_bumps = self.bumps**3
        waves, columns = matrix.split([matrix.shape[-1] - num_bumps, num_bumps], dim=-1)
        return waves, columns


def _own_layer(features: Tensor, matrix: Tensor, bias: Tensor) -> Float[Tensor, "batch points out"]:
    """An asset's own layer before its activation."""
    dtype = matrix.dtype
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
    shift = bias.to(dtype).expand(features.shape[0], 1, -1)
    return torch.baddbmm(shift, features.to(dtype), matrix.to(dtype).transpose(1, 2))


def _silu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Returns `gradient` times the derivative of x sigmoid(x)."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(gradient, x)  # one pass, but without a derivative of its own
    gate = torch.sigmoid(x)
    return gradient * torch.addcmul(gate, x * gate, 1 - gate)


def _linear(width: int) -> nn.Linear:
    """A hidden layer that keeps the size of its input's features, which torch's default shrinks."""
    layer = nn.Linear(width, width)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / width))
    nn.init.zeros_(layer.bias)
    return layer


class FieldMLP(nn.Module):
    """Evaluates the fields of a batch of assets."""

    frequencies: Tensor

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()
        # Kept with the weights: another release of torch may draw other random numbers.
        self.register_buffer("frequencies", encoding_matrix(config.encoding))
        self.num_geometry = min(config.geometry.own_layers, config.geometry.num_layers)
        self.geometry_trunk, self.color_trunk = Trunk(config.geometry), Trunk(config.color)
        self.geometry_head = GeometryHead(config.geometry.width)
        self.color_head = ColorHead(config.color.width, directional=config.directional)

    def forward(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """Returns everything. weights: a [batch, out, in] matrix for each of own_shapes."""
        encoded = encode(points.float(), self.frequencies)
        return self._geometry(weights, points, encoded), self._color(weights, points, encoded, directions)

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """See `Field`."""
        return self._geometry(weights, points, encode(points.float(), self.frequencies))

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """See `Field`."""
        return self._color(weights, points, encode(points.float(), self.frequencies), directions)

    def sdf_and_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """Returns the signed distance and its gradient by position, in closed form."""
        own, of_sdf = weights[: self.num_geometry], self.geometry_head.linear.weight[1]
        encoded = encode(points.float(), self.frequencies)
        features, by_encoded, by_points = self.geometry_trunk.gradient(own, points, encoded, of_sdf)
        gradient = by_points + encoding_gradient(by_encoded, points, self.frequencies)
        return self.geometry_head(features).sdf, gradient

    def _geometry(self, weights: FieldWeights, points: Tensor, encoded: Tensor) -> Geometry:
        trunk = self.geometry_trunk(weights[: self.num_geometry], points, encoded)
        values: Geometry = self.geometry_head(trunk)
        return values

    def _color(self, weights: FieldWeights, points: Tensor, encoded: Tensor, directions: Directions) -> Color:
        trunk = self.color_trunk(weights[self.num_geometry :], points, encoded)
        values: Color = self.color_head(trunk, directions)
        return values
