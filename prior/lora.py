"""Low-rank adaptation: W + (1 / rank) B A with the pretrained W frozen (Hu et al. 2022, section 4.1).

A starts at random and B at zero, so that training starts from the pretrained network. `merge_lora` gives
plain weights again, so that nothing that loads a prior needs to know how it was trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

_ORIGINAL, _PARTS = ".parametrizations.weight.original", ".parametrizations.weight.0."


class LowRank(nn.Module):
    """A matrix plus a product of two low ones."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.off = False

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        if self.off:
            return weight
        return weight + (self.b @ self.a / self.a.shape[0]).to(weight.dtype)


def add_lora(blocks: nn.Module, rank: int) -> None:
    """Gives every linear layer of `blocks` a low-rank change; the caller freezes the rest."""
    for layer in [module for module in blocks.modules() if isinstance(module, nn.Linear)]:
        change = LowRank(layer.out_features, layer.in_features, rank).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", change)


@contextmanager
def without_lora(blocks: nn.Module) -> Iterator[None]:
    """Within it the layers are the pretrained ones, bit for bit."""
    changes = [module for module in blocks.modules() if isinstance(module, LowRank)]
    for change in changes:
        change.off = True
    try:
        yield
    finally:
        for change in changes:
            change.off = False


def merge_lora(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict with every low-rank change added to its matrix, under the plain layers' names."""
    merged = {name: value for name, value in weights.items() if ".parametrizations." not in name}
    for name, value in weights.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            a, b = weights[f"{layer}{_PARTS}a"], weights[f"{layer}{_PARTS}b"]
            merged[f"{layer}.weight"] = value + b @ a / a.shape[0]
    return merged
