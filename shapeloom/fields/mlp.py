"""The implicit MLP, applied with per-asset hidden matrices to a whole batch of assets at once.

x in [-1, 1]^3 -> positional encoding -> two trunks of hidden layers (SiLU), one for geometry and one for
colour -> heads. The first layers of a trunk have matrices of each asset's own, from the projection; later
layers, biases and heads are shared. What is specific to an asset is then which patterns of space its first
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
from shapeloom.fields.encoding import EncodingConfig, encode, encoding_gradient, encoding_matrix
from shapeloom.fields.heads import Color, ColorHead, Geometry, GeometryHead
from shapeloom.fields.projection import FieldWeights

Directions = Float[Tensor, "batch points 3"] | None


class TrunkConfig(Config):
    """Hidden layers of one trunk."""

    width: int = Key(64, ge=4)
    num_layers: int = Key(4, ge=1)
    own_layers: int = Key(1, ge=1)  # how many of them, from the first, have matrices of each asset's own


class FieldConfig(Config):
    """The implicit MLP's size."""

    encoding: EncodingConfig = EncodingConfig()
    geometry: TrunkConfig = TrunkConfig()
    color: TrunkConfig = TrunkConfig(num_layers=3)
    directional: bool = False  # NeRF colours depend on the direction of view; textures never do


def own_shapes(config: FieldConfig) -> list[tuple[int, int]]:
    """Returns (out, in) of each matrix that an asset has of its own: the geometry's, then the colour's."""
    first = config.encoding.width
    return [
        (trunk.width, trunk.width if layer else first)
        for trunk in (config.geometry, config.color)
        for layer in range(min(trunk.own_layers, trunk.num_layers))
    ]


class Trunk(nn.Module):
    """Hidden layers: the first ones with an asset's own matrices, the others shared."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        own = min(config.own_layers, config.num_layers)
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(config.width)) for _ in range(own)])
        self.shared = nn.ModuleList([_linear(config.width) for _ in range(config.num_layers - own)])

    def forward(
        self, weights: FieldWeights, features: Float[Tensor, "#batch points encoded"]
    ) -> Float[Tensor, "batch points width"]:
        """Returns the last layer's features. weights: one [batch, out, in] matrix a layer of its own.

        Features of a batch of one serve all assets: the same points for each.
        """
        features = features.expand(weights[0].shape[0], -1, -1)
        for matrix, bias in zip(weights, self.biases, strict=True):
            features = F.silu(_own_layer(features, matrix, bias))
        for layer in self.shared:
            features = F.silu(layer(features))
        return features

    def gradient(
        self,
        weights: FieldWeights,
        features: Float[Tensor, "batch points encoded"],
        of_output: Float[Tensor, " width"],
    ) -> Float[Tensor, "batch points encoded"]:
        """Returns the gradient by the input of `of_output` times the last layer's features, in closed form.

        One pass forward, one back, and no graph; autograd can go through it again.
        """
        sums, matrices = [], list(weights)
        for matrix, bias in zip(weights, self.biases, strict=True):
            sums.append(_own_layer(features, matrix, bias))
            features = F.silu(sums[-1])
        for layer in self.shared:
            assert isinstance(layer, nn.Linear)
            matrices.append(layer.weight)
            sums.append(layer(features))
            features = F.silu(sums[-1])
        gradient = of_output.expand_as(features)
        while sums:
            gradient = _silu_gradient(gradient, sums.pop()) @ matrices.pop()
        return gradient


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
        self.bumps = config.encoding.bumps
        self.num_geometry = min(config.geometry.own_layers, config.geometry.num_layers)
        self.geometry_trunk, self.color_trunk = Trunk(config.geometry), Trunk(config.color)
        self.geometry_head = GeometryHead(config.geometry.width)
        self.color_head = ColorHead(config.color.width, directional=config.directional)

    def forward(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """Returns everything. weights: a [batch, out, in] matrix for each of own_shapes.

        directions: unit vectors from the camera, one a point.
        """
        encoded = encode(points.float(), self.frequencies, self.bumps)
        return self._geometry(weights, encoded), self._color(weights, encoded, directions)

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """Returns density and signed distance alone."""
        return self._geometry(weights, encode(points.float(), self.frequencies, self.bumps))

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """Returns the colours alone."""
        return self._color(weights, encode(points.float(), self.frequencies, self.bumps), directions)

    def sdf_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> Float[Tensor, "batch points 3"]:
        """Returns the signed distance's gradient by position, in closed form."""
        encoded = encode(points.float(), self.frequencies, self.bumps)
        of_sdf = self.geometry_head.linear.weight[1]
        own = weights[: self.num_geometry]
        gradient = self.geometry_trunk.gradient(own, encoded, of_sdf)
        return encoding_gradient(gradient, points, self.frequencies, self.bumps)

    def _geometry(self, weights: FieldWeights, encoded: Tensor) -> Geometry:
        values: Geometry = self.geometry_head(self.geometry_trunk(weights[: self.num_geometry], encoded))
        return values

    def _color(self, weights: FieldWeights, encoded: Tensor, directions: Directions) -> Color:
        values: Color = self.color_head(self.color_trunk(weights[self.num_geometry :], encoded), directions)
        return values
