"""What Shap-E's tensors are called: officially (as in the published files), by us, and by diffusers.

The official names are the middle: everything is renamed to or from them. A prior has them here too; diffusers
has its queries, keys and values as matrices of their own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shapeloom.shap_e.prior import ShapEPriorConfig

OURS = {"params_proj.": "decoder.projection.", "renderer.": "decoder.field."}
"""Of vector_decoder.pt, in an encoder run."""
TRANSMITTER = {"params_proj.": "encoder.params_proj.", "renderer.": "renderer."}
"""Of vector_decoder.pt, in transmitter.pt."""
DIFFUSERS = {"params_proj.": "params_proj.", "renderer.nerstf.": "mlp.", "renderer.void.": "void."}
"""Of vector_decoder.pt, in a ShapERenderer."""


def renamed(
    state: dict[str, Tensor], prefixes: Mapping[str, str], *, back: bool = False
) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with one of the prefixes, with the other one in its place.

    back: from the values of `prefixes` to its keys.
    """
    pairs = [(new, old) if back else (old, new) for old, new in prefixes.items()]
    return {
        new + name.removeprefix(old): value
        for old, new in pairs for name, value in state.items() if name.startswith(old)
    }  # fmt: skip


_PLAIN = {
    "time_embed.c_fc": "time_embedding.linear_1", "time_embed.c_proj": "time_embedding.linear_2",
    "input_proj": "proj_in", "output_proj": "proj_to_clip_embeddings", "ln_pre": "norm_in",
    "ln_post": "norm_out", "clip_embed.0": "embedding_proj_norm", "clip_embed.1": "embedding_proj",
}  # fmt: skip
_TEXT = {"clip_embed": "embedding_proj"}
_BLOCK = {"ln_1": "norm1", "ln_2": "norm3", "attn.c_proj": "attn1.to_out.0", "mlp.c_fc": "ff.net.0.proj",
          "mlp.c_proj": "ff.net.2"}  # fmt: skip


def _names(size: ShapEPriorConfig) -> dict[str, str]:
    """Official name -> diffusers', of every layer but the packed queries, keys and values."""
    plain = {k: v for k, v in _PLAIN.items() if not k.startswith("clip_embed")} | _TEXT
    layers = plain if size.reads == "text" else _PLAIN
    names = {f"wrapped.{official}": theirs for official, theirs in layers.items()}
    for block in range(size.depth):
        for official, theirs in _BLOCK.items():
            names[f"wrapped.backbone.resblocks.{block}.{official}"] = f"transformer_blocks.{block}.{theirs}"
    return names


def _packed(block: int, kind: str) -> tuple[str, list[str]]:
    theirs = [f"transformer_blocks.{block}.attn1.to_{part}.{kind}" for part in "qkv"]
    return f"wrapped.backbone.resblocks.{block}.attn.c_qkv.{kind}", theirs


def prior_to_diffusers(state: dict[str, Tensor], size: ShapEPriorConfig) -> dict[str, Tensor]:
    """Returns the state dict of diffusers' PriorTransformer; state: official."""
    out = {"positional_embedding": state["wrapped.pos_emb"][None]}
    channels = state["wrapped.output_proj.bias"].shape[0]
    for name in ("clip_mean", "clip_std"):  # of other models
        out[name] = torch.zeros(1, channels)
    for kind in ("weight", "bias"):
        out |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for ours, theirs in _names(size).items()}
        for block in range(size.depth):
            packed, parts = _packed(block, kind)
            # Head by head: its query, its key, its value.
            split = state[packed].unflatten(0, (size.heads, 3, -1)).unbind(1)
            out |= {name: part.flatten(0, 1) for name, part in zip(parts, split, strict=True)}
    return {name: value.contiguous() for name, value in out.items()}


def prior_from_diffusers(state: dict[str, Tensor], size: ShapEPriorConfig) -> dict[str, Tensor]:
    """Returns the official state dict of a PriorTransformer's; raises KeyError for a tensor it hasn't."""
    out = {"wrapped.pos_emb": state["positional_embedding"][0]}
    for kind in ("weight", "bias"):
        out |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs in _names(size).items()}
        for block in range(size.depth):
            packed, names = _packed(block, kind)
            parts = [state[name].unflatten(0, (size.heads, -1)) for name in names]
            out[packed] = torch.stack(parts, dim=1).flatten(0, 2)
    return out
