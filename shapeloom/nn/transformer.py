"""Attention over token sets, and the pre-norm transformer block that encoder and prior are built from.

Tokens are `[batch, tokens, width]`. Masks are boolean over the context, True where a token may be looked at.
Queries and keys are normalised per head (QK-norm; Dehghani et al. 2023, "Scaling Vision Transformers to 22
Billion Parameters"), which bounds the logits and keeps bf16 training stable at any width.

A block is self-attention, then optional cross-attention, then an MLP, each a residual branch behind a
normalisation. With `adaptive_width` the self-attention and MLP branches are shifted, scaled and gated by a
vector per sample (AdaLN-zero; Peebles & Xie 2023, section 3.2), and the block starts as the identity.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Activation = Literal["gelu", "swiglu"]


class RMSNorm(nn.Module):
    """Divides the last axis by its root mean square, times a learned gain (Zhang & Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        # The gain takes x's type: under autocast x is bf16, and mixed types leave the fused kernel.
        return F.rms_norm(x, (x.shape[-1],), self.gain.to(x.dtype), eps=1e-6)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention; self-attention unless a `context_width` is given.

    Args:
        width: channels of the queries and of the output; a multiple of `heads`.
        heads: number of heads.
        context_width: channels of the context for cross-attention; None for self-attention.
        qk_norm: normalise queries and keys per head before the dot product.
    """

    def __init__(
        self, width: int, heads: int, *, context_width: int | None = None, qk_norm: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"attention width must be a positive multiple of heads, got {width} and {heads}")
        self.heads = heads
        self.is_cross = context_width is not None
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if context_width is None else context_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch context context_width"] | None = None,
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Every token of `x` gathers from `context` (from `x` itself for self-attention).

        `mask` is True where a context token may be attended to; a sample with no such token gathers zeros.
        Raises ValueError when a context is missing or not expected.
        """
        if self.is_cross != (context is not None):
            expected = "needs a context" if self.is_cross else "takes no context"
            raise ValueError(f"this attention {expected}: its context_width decides, set when it was made")
        source = x if context is None else context
        query = self.query_norm(self._split(self.query(x)))
        key, value = (self._split(part) for part in self.key_value(source).chunk(2, dim=-1))
        key = self.key_norm(key)
        bias = None if mask is None else mask[:, None, None, :]
        return self.out(_attend(query, key, value, bias).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, heads, tokens, width / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention; of bfloat16 numbers on a CPU by float32's kernel, unless there are many.

    The way back through their own takes seven times as long for 25 keys, and as long for 256.
    """
    if value.device.type != "cpu" or value.dtype != torch.bfloat16 or key.shape[-2] >= 256:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    with torch.autocast("cpu", enabled=False):
        whole = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=bias)
        return whole.to(value.dtype)


class Mlp(nn.Module):
    """Two linear layers around a GELU, or SwiGLU (Shazeer 2020) at the same number of parameters."""

    def __init__(self, width: int, *, ratio: float = 4.0, activation: Activation = "gelu") -> None:
        super().__init__()
        self.gated = activation == "swiglu"
        # SwiGLU has three matrices to GELU's two: 2/3 of the hidden width, rounded up to a multiple of 8.
        hidden = -(-int(width * ratio * 2 / 3) // 8) * 8 if self.gated else int(width * ratio)
        self.inner = nn.Linear(width, 2 * hidden if self.gated else hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        hidden = self.inner(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            return self.outer(F.silu(gate) * hidden)
        return self.outer(F.gelu(hidden))


class TransformerBlock(nn.Module):
    """Self-attention, optional cross-attention and an MLP over tokens `[batch, tokens, width]`.

    Args:
        width: channels of a token.
        heads: attention heads; divides `width`.
        cross_width: channels of a context token; None leaves cross-attention out.
        adaptive_width: channels of the modulation vector; None for plain layer norms with learned gains.
        mlp_ratio: hidden channels of the MLP over `width`.
        activation: "gelu" or "swiglu".
        qk_norm: normalise queries and keys per head.
    """

    def __init__(
        self, width: int, heads: int, cross_width: int | None = None, adaptive_width: int | None = None, *,
        mlp_ratio: float = 4.0, activation: Activation = "gelu", qk_norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        adaptive = adaptive_width is not None
        self.self_norm = nn.LayerNorm(width, elementwise_affine=not adaptive)
        self.self_attention = Attention(width, heads, qk_norm=qk_norm)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=not adaptive)
        self.mlp = Mlp(width, ratio=mlp_ratio, activation=activation)
        self.cross_norm: nn.LayerNorm | None = None
        self.cross_attention: Attention | None = None
        if cross_width is not None:
            self.cross_norm = nn.LayerNorm(width)
            self.cross_attention = Attention(width, heads, context_width=cross_width, qk_norm=qk_norm)
        self.modulate: nn.Linear | None = None
        if adaptive_width is not None:
            self.modulate = nn.Linear(adaptive_width, 6 * width)
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)
            if self.cross_attention is not None:  # has no gate of its own, so that its output starts at zero
                nn.init.zeros_(self.cross_attention.out.weight)
                nn.init.zeros_(self.cross_attention.out.bias)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch context cross_width"] | None = None,
        context_mask: Bool[Tensor, "batch context"] | None = None,
        modulation: Float[Tensor, "batch adaptive_width"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Transforms tokens; context and modulation must be given exactly when the block was made for them.

        Raises ValueError when one of them is missing or not expected.
        """
        if (self.modulate is None) != (modulation is None) or (self.cross_attention is None) != (
            context is None
        ):
            raise ValueError(
                f"this block expects {'a' if self.cross_attention else 'no'} context and "
                f"{'a' if self.modulate else 'no'} modulation; it was called with "
                f"{'a' if context is not None else 'no'} context and "
                f"{'a' if modulation is not None else 'no'} modulation"
            )
        if self.modulate is None or modulation is None:
            x = x + self.self_attention(self.self_norm(x))
            x = self._cross(x, context, context_mask)
            return x + self.mlp(self.mlp_norm(x))
        parts = self.modulate(F.silu(modulation))[:, None, :].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self.self_attention(self.self_norm(x) * (1 + scale) + shift)
        x = self._cross(x, context, context_mask)
        return x + mlp_gate * self.mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)

    def _cross(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.cross_attention is None or self.cross_norm is None:
            return x
        return x + self.cross_attention(self.cross_norm(x), context, mask)
