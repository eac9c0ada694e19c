"""The implicit MLP, applied with per-asset hidden matrices to a whole batch of assets at once.

x in [-1, 1]^3 -> positional encoding -> hidden layers (SiLU) -> heads. Matrices come per asset from the
projection; biases and heads are shared.
"""

import torch
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.config import Config
from shapeloom.fields.encoding import Axes, encode, encoding_matrix, encoding_width
from shapeloom.fields.heads import FieldValues, Heads
from shapeloom.fields.projection import FieldWeights


class FieldConfig(Config):
    """The implicit MLP's size."""

    width: int = Key(64, ge=4)
    num_layers: int = Key(4, ge=1)  # hidden layers
    axes: Axes = "icosahedron"
    num_octaves: int = Key(5, ge=0, le=15)


def hidden_shapes(config: FieldConfig) -> list[tuple[int, int]]:
    """Returns (out, in) of each hidden matrix."""
    first = encoding_width(config.axes, config.num_octaves)
    return [(config.width, first)] + [(config.width, config.width)] * (config.num_layers - 1)


class FieldMLP(nn.Module):
    """Evaluates the fields of a batch of assets."""

    frequencies: Tensor

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", encoding_matrix(config.axes, config.num_octaves), persistent=False
        )
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(out)) for out, _ in hidden_shapes(config)])
        self.heads = Heads(config.width)

    def forward(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> FieldValues:
        """Returns the fields' values. weights: one [batch, out, in] matrix a hidden layer."""
        features = encode(points.float(), self.frequencies)
        for matrix, bias in zip(weights, self.biases, strict=True):
            dtype = matrix.dtype
            if torch.is_autocast_enabled(points.device.type):
                dtype = torch.get_autocast_dtype(points.device.type)
            matrix, shift = matrix.to(dtype), bias.to(dtype).expand(features.shape[0], 1, -1)
            features = torch.baddbmm(shift, features.to(dtype), matrix.transpose(1, 2))
            features = nn.functional.silu(features)
        return self.heads(features)
