"""Names of Zero-1-to-3's tensors: CompVis' single file, and diffusers' folders.

    CompVis                          here (diffusers)            what
    model.diffusion_model.*          unet.*                      UNet2DConditionModel
    first_stage_model.*              vae.*                       AutoencoderKL
    cond_stage_model.model.visual.*  image_encoder.*             CLIP's image tower, by open_clip's names
    cc_projection.*                  cc_projection.projection.*  CLIP's vector and pose to one token

diffusers' folders hold the image tower as transformers names it (`tower_to_transformers`).
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

PREFIXES = {
    "unet": "model.diffusion_model.", "vae": "first_stage_model.",
    "image_encoder": "cond_stage_model.model.visual.", "cc_projection": "cc_projection.",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_TOWER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip


def unet_modules(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    """Yields (diffusers, CompVis) prefixes of the UNet's modules.

    levels: resolutions, all but the coarsest with attention; layers: residual blocks at each.
    """
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    yield from ((f"mid_block.{name}", f"middle_block.{i}") for i, name in
                enumerate(("resnets.0", "attentions.0", "resnets.1")))  # fmt: skip
    number = 0
    for level in range(levels):
        for layer in range(layers):
            number += 1
            yield f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0"
            if level < levels - 1:
                yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{number}.1"
        if level < levels - 1:
            number += 1
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
    for level in range(levels):
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            yield f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0"
            if level > 0:
                yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{number}.1"
        if level < levels - 1:
            last = (level + 1) * (layers + 1) - 1
            yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{last}.{1 + (level > 0)}.conv"


def vae_modules(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    """Yields (diffusers, CompVis) prefixes of the autoencoder's modules."""
    for side in ("encoder", "decoder"):
        yield from ((f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out"))
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield from ((f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}") for i in range(2))
        yield f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    for level in range(levels):
        # CompVis counts the decoder's resolutions from the finest on, diffusers from the coarsest.
        for ours, theirs, blocks, moves in (
            (f"encoder.down_blocks.{level}", f"encoder.down.{level}", layers, ("downsamplers", "downsample")),
            (f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}", layers + 1,
             ("upsamplers", "upsample")),
        ):  # fmt: skip
            yield from ((f"{ours}.resnets.{i}", f"{theirs}.block.{i}") for i in range(blocks))
            if level < levels - 1:
                yield f"{ours}.{moves[0]}.0.conv", f"{theirs}.{moves[1]}.conv"


def renamer(part: str, levels: int, layers: int) -> "dict[str, str]":
    """Returns diffusers -> CompVis prefixes of a part's modules, "unet" or "vae"."""
    return dict(unet_modules(levels, layers) if part == "unet" else vae_modules(levels, layers))


def to_compvis(part: str, state: Mapping[str, Tensor], *, levels: int, layers: int) -> dict[str, Tensor]:
    """Returns a part's tensors as CompVis' file names them; KeyError for a name that it doesn't have."""
    if part == "cc_projection":
        return {f"cc_projection.{name.removeprefix('projection.')}": value for name, value in state.items()}
    if part == "image_encoder":
        return {PREFIXES[part] + name: value for name, value in state.items()}
    modules = renamer(part, levels, layers)
    out = {}
    for name, value in state.items():
        out[PREFIXES[part] + _compvis_name(part, name, modules)] = _as_convolution(part, name, value)
    return out


def _as_convolution(part: str, name: str, value: Tensor) -> Tensor:
    """The autoencoder's attention is of 1x1 convolutions there."""
    is_matrix = part == "vae" and ".attentions." in name and value.ndim == 2
    return value[:, :, None, None] if is_matrix else value


def _compvis_name(part: str, name: str, modules: Mapping[str, str]) -> str:
    module = next((m for m in _heads(name) if m in modules), None)
    if module is None:
        raise KeyError(name)
    rest = name.removeprefix(module).lstrip(".")
    inner, _, kind = rest.rpartition(".")
    if ".resnets." in module and part == "unet":
        inner = _RESNET[inner]
    elif ".resnets." in module:
        inner = {"conv_shortcut": "nin_shortcut"}.get(inner, inner)
    elif ".attentions." in module and part == "vae":
        inner = _VAE_ATTENTION[inner]
    return ".".join(each for each in (modules[module], inner, kind) if each)


def _heads(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1)]


def tower_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns CLIP's image tower, by open_clip's names, as transformers' CLIPVisionModelWithProjection."""
    own = {
        "class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    } | {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"))
        for kind in ("weight", "bias")
    }  # fmt: skip
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "proj":
            out["visual_projection.weight"] = value.T.contiguous()
        elif name in own:
            out[f"vision_model.{own[name]}"] = value
        else:
            out |= _block_to_transformers(name, value)
    return out


def _block_to_transformers(name: str, value: Tensor) -> dict[str, Tensor]:
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if match is None:
        raise KeyError(name)
    start = f"vision_model.encoder.layers.{match[1]}."
    if match[2].startswith("attn.in_proj_"):
        kind = match[2].removeprefix("attn.in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{start}self_attn.{letter}_proj.{kind}": part.contiguous() for letter, part in parts}
    inner, _, kind = match[2].rpartition(".")
    return {f"{start}{_TOWER[inner]}.{kind}": value}


def tower_from_transformers(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns such a tower by open_clip's names; like: what those are. KeyError for what is missing."""
    names = {name: list(tower_to_transformers({name: value})) for name, value in like.items()}
    found = {name: torch.cat([state[each] for each in theirs]) for name, theirs in names.items()}
    return found | {"proj": state["visual_projection.weight"].T.contiguous()}
