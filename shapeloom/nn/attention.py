"""Multi-head attention over token sets, to themselves or to a context.

Tokens are `[batch, tokens, width]`. Masks are boolean over the context, True where a token may be looked at.
Queries and keys are normalised per head (QK-norm; Dehghani et al. 2023, "Scaling Vision Transformers to 22
Billion Parameters"), which bounds the logits and keeps bf16 training stable at any width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


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
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(gathered.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, heads, tokens, width / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
