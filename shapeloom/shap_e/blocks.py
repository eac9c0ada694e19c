"""Shap-E's transformer blocks, under the names of its published checkpoints.

Pre-norm blocks without QK-norm; queries, keys and values are packed head by head: each head's share of
`c_qkv` is its query, its key, its value. Jun & Nichol 2023, "Shap-E"; after GPT-2 (Radford et al. 2019).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

INIT_SCALE = 0.25


class Mlp(nn.Module):
    """Two linear layers around an exact GELU; `width` numbers in, `out` out."""

    def __init__(self, width: int, out: int | None = None) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, out or width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        return self.c_proj(F.gelu(self.c_fc(x)))


class SelfAttention(nn.Module):
    """Every token gathers from all of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        query, key, value = _per_head(self.c_qkv(x), self.heads).chunk(3, dim=-1)
        return self.c_proj(_joined(F.scaled_dot_product_attention(query, key, value)))


class CrossAttention(nn.Module):
    """Every token gathers from `data`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_q = nn.Linear(width, width)
        self.c_kv = nn.Linear(width, 2 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], data: Float[Tensor, "batch data width"]
    ) -> Float[Tensor, "batch tokens width"]:
        key, value = _per_head(self.c_kv(data), self.heads).chunk(2, dim=-1)
        return self.c_proj(
            _joined(F.scaled_dot_product_attention(_per_head(self.c_q(x), self.heads), key, value))
        )


def _per_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class SelfBlock(nn.Module):
    """x + attention, then x + MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CrossBlock(nn.Module):
    """x + attention to data, then x + MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = CrossAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.ln_3 = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], data: Float[Tensor, "batch data width"]
    ) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.ln_1(x), self.ln_2(data))
        return x + self.mlp(self.ln_3(x))


class SelfTransformer(nn.Module):
    """A stack of SelfBlocks."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(SelfBlock(width, heads) for _ in range(depth))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], *, checkpointing: bool = False
    ) -> Float[Tensor, "batch tokens width"]:
        """checkpointing: activations are computed again in the backward pass."""
        for block in self.resblocks:
            recomputed = checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recomputed else block(x)
        return x


class CrossTransformer(nn.Module):
    """A stack of CrossBlocks; the published encoder has one a source of data."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([CrossBlock(width, heads)])

    def forward(
        self, x: Float[Tensor, "batch tokens width"], data: Float[Tensor, "batch data width"]
    ) -> Float[Tensor, "batch tokens width"]:
        for block in self.resblocks:
            x = block(x, data)
        return x


@torch.no_grad()
def initialise(module: nn.Module, width: int) -> None:
    """Draws the linear layers of `module` as Shap-E's blocks start: N(0, 0.25^2 / width), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=INIT_SCALE / math.sqrt(width))
            nn.init.zeros_(layer.bias)
