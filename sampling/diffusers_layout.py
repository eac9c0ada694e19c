"""Shap-E as diffusers keeps it: prior/, shap_e_renderer/, scheduler/, each a config and safetensors.

The prior is a PriorTransformer, whose queries, keys and values are matrices of their own; the renderer's
tensors have their official names. Only safetensors are read, never diffusers' older .bin files.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from skimage.measure import marching_cubes
from torch import Tensor

from prior.denoiser import NetworkConfig
from sampling.published import CLIP_DIM, GRID_WIDTH, Sizes, check_state, skeleton
from shapeloom.config import UserError
from shapeloom.fields.shap_e import ShapEFieldConfig
from shapeloom.storage import put_file, scratch_file, write_atomic

WEIGHTS = "diffusion_pytorch_model.safetensors"
_PLAIN = {
    "time_embed.c_fc": "time_embedding.linear_1", "time_embed.c_proj": "time_embedding.linear_2",
    "input_proj": "proj_in", "output_proj": "proj_to_clip_embeddings", "ln_pre": "norm_in",
    "ln_post": "norm_out", "clip_embed.0": "embedding_proj_norm", "clip_embed.1": "embedding_proj",
}  # fmt: skip
_TEXT = {"clip_embed": "embedding_proj"}
_BLOCK = {"ln_1": "norm1", "ln_2": "norm3", "attn.c_proj": "attn1.to_out.0", "mlp.c_fc": "ff.net.0.proj",
          "mlp.c_proj": "ff.net.2"}  # fmt: skip


def _names(network: NetworkConfig) -> dict[str, str]:
    """Official name -> diffusers', of every layer but the packed queries, keys and values."""
    plain = {k: v for k, v in _PLAIN.items() if not k.startswith("clip_embed")} | _TEXT
    layers = plain if network.kind == "shap_e_text" else _PLAIN
    names = {f"wrapped.{official}": theirs for official, theirs in layers.items()}
    for block in range(network.depth):
        for official, theirs in _BLOCK.items():
            names[f"wrapped.backbone.resblocks.{block}.{official}"] = f"transformer_blocks.{block}.{theirs}"
    return names


def _packed(block: int, kind: str) -> tuple[str, list[str]]:
    theirs = [f"transformer_blocks.{block}.attn1.to_{part}.{kind}" for part in "qkv"]
    return f"wrapped.backbone.resblocks.{block}.attn.c_qkv.{kind}", theirs


def prior_to_diffusers(state: dict[str, Tensor], network: NetworkConfig) -> dict[str, Tensor]:
    """Returns a PriorTransformer's state dict."""
    out = {"positional_embedding": state["wrapped.pos_emb"][None]}
    channels = state["wrapped.output_proj.bias"].shape[0]
    for name in ("clip_mean", "clip_std"):  # of other models
        out[name] = torch.zeros(1, channels)
    for kind in ("weight", "bias"):
        out |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for ours, theirs in _names(network).items()}
        for block in range(network.depth):
            packed, parts = _packed(block, kind)
            # Head by head: its query, its key, its value.
            split = state[packed].unflatten(0, (network.heads, 3, -1)).unbind(1)
            out |= {name: part.flatten(0, 1) for name, part in zip(parts, split, strict=True)}
    return {name: value.contiguous() for name, value in out.items()}


def prior_from_diffusers(state: dict[str, Tensor], network: NetworkConfig) -> dict[str, Tensor]:
    """Returns the official state dict of a PriorTransformer's; raises KeyError for a tensor it hasn't."""
    out = {"wrapped.pos_emb": state["positional_embedding"][0]}
    for kind in ("weight", "bias"):
        out |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs in _names(network).items()}
        for block in range(network.depth):
            packed, names = _packed(block, kind)
            parts = [state[name].unflatten(0, (network.heads, -1)) for name in names]
            out[packed] = torch.stack(parts, dim=1).flatten(0, 2)
    return out


def read_diffusers(folder: Path) -> tuple[Sizes, NetworkConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Returns sizes, the prior's, its tensors and the decoder's under their official names.

    Raises UserError for a folder that isn't a Shap-E pipeline of diffusers', or is incomplete.
    """
    prior, renderer = _config(folder / "prior"), _config(folder / "shap_e_renderer")
    try:
        image = prior["embedding_proj_norm_type"] is not None
        heads, per_head = prior["num_attention_heads"], prior["attention_head_dim"]
        network = NetworkConfig(
            kind="shap_e_image" if image else "shap_e_text",
            width=heads * per_head, depth=prior["num_layers"], heads=heads,
        )  # fmt: skip
        field = ShapEFieldConfig(width=renderer["d_hidden"], channels=renderer["d_latent"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder} has no configs of a Shap-E pipeline ({error!r}).") from error
    sizes = Sizes(field=field, text300M=network, image300M=network)
    tensors = _tensors(folder / "prior")
    path = folder / "prior" / WEIGHTS
    try:
        official = prior_from_diffusers(tensors, network)
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]}: it is another model's file.") from error
    part = "image300M" if image else "text300M"
    check_state(official, _shapes_of(part, sizes), path)
    path = folder / "shap_e_renderer" / WEIGHTS
    decoder = {}
    for name, value in _tensors(folder / "shap_e_renderer").items():
        if name.startswith(("params_proj.", "void.")):
            decoder[name if name[0] == "p" else f"renderer.{name}"] = value
        elif name.startswith("mlp."):
            decoder[f"renderer.nerstf.{name.removeprefix('mlp.')}"] = value
    check_state(decoder, _shapes_of("decoder", sizes), path)
    return sizes, network, official, decoder


def _shapes_of(part: Any, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in skeleton(part, sizes).state_dict().items()}


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json can't be read ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder}/config.json holds no settings.")
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS} can't be read ({error}). Older .bin files are pickles, which aren't read: "
            "download the safetensors."
        ) from error


def write_prior(
    folder: Path, network: NetworkConfig, shapes: dict[str, Any], state: dict[str, Tensor]
) -> None:
    """Writes a PriorTransformer: PriorTransformer.from_pretrained(folder)."""
    image = network.kind == "shap_e_image"
    config = {
        "_class_name": "PriorTransformer", "num_attention_heads": network.heads,
        "attention_head_dim": network.width // network.heads, "num_layers": network.depth,
        "embedding_dim": shapes["channels"], "num_embeddings": shapes["tokens"], "additional_embeddings": 0,
        "dropout": 0.0, "time_embed_act_fn": "gelu", "norm_in_type": "layer",
        "embedding_proj_norm_type": "layer" if image else None, "encoder_hid_proj_type": None,
        "added_emb_type": None, "time_embed_dim": 4 * network.width,
        "embedding_proj_dim": GRID_WIDTH if image else CLIP_DIM, "clip_embed_dim": 2 * shapes["channels"],
    }  # fmt: skip
    _write(folder, config, prior_to_diffusers(state, network))


def write_renderer(folder: Path, field: ShapEFieldConfig, state: dict[str, Tensor]) -> None:
    """Writes a ShapERenderer. state: `projection.*` and `field.*` of a decoder."""
    rows = [[field.width, columns] for columns in field.row_lengths]
    config = {
        "_class_name": "ShapERenderer", "param_names": [f"nerstf.mlp.{i}.weight" for i in range(len(rows))],
        "param_shapes": rows, "d_latent": field.channels, "d_hidden": field.width, "n_output": 12,
        "n_hidden_layers": 6, "act_fn": "swish", "insert_direction_at": 4,
    }  # fmt: skip
    names = {"projection.": "params_proj.", "field.nerstf.": "mlp.", "field.void.": "void."}
    out: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        out |= {theirs + k.removeprefix(ours): v for k, v in state.items() if k.startswith(ours)}
    # diffusers counts the void's colour from 0 to 1 as well, but draws on white.
    out["void.background"] = torch.ones(3)
    cases, masks = triangle_table()
    out |= {"mesh_decoder.cases": cases, "mesh_decoder.masks": masks}
    _write(folder, config, out)


def write_scheduler(folder: Path) -> None:
    """Writes a HeunDiscreteScheduler with Shap-E's noise levels."""
    config = {
        "_class_name": "HeunDiscreteScheduler", "num_train_timesteps": 1024, "beta_schedule": "exp",
        "prediction_type": "sample", "use_karras_sigmas": True, "clip_sample": True, "clip_sample_range": 1.0,
    }  # fmt: skip
    write_atomic(folder / "scheduler_config.json", json.dumps(config, indent=1))


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    write_atomic(folder / "config.json", json.dumps(config, indent=1))
    with scratch_file(folder / WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"format": "pt"})
        put_file(temporary, folder / WEIGHTS)


@lru_cache(1)
def triangle_table() -> tuple[Tensor, Tensor]:
    """Returns marching cubes' triangles [256, 5, 3] by their edges, and which of them exist [256, 5].

    Case: bit x + 2 y + 4 z is set where that corner is inside. Edges: four along x, at (y, z) = (0, 0),
    (1, 0), (0, 1), (1, 1), then four along y, at (x, z), then four along z, at (x, y).
    """
    cases, masks = torch.zeros(256, 5, 3, dtype=torch.long), torch.zeros(256, 5, dtype=torch.bool)
    corners = np.arange(256)[:, None] >> np.arange(8) & 1
    for case in range(1, 255):
        # Corner number is x + 2 y + 4 z, so reshaping gives [z, y, x].
        cell = np.where(corners[case], 1.0, -1.0).reshape(2, 2, 2).transpose(2, 1, 0).astype(np.float32)
        vertices, faces, _, _ = marching_cubes(
            np.ascontiguousarray(cell), 0.0, method="lorensen", gradient_direction="ascent"
        )
        middle = np.abs(vertices - 0.5) < 0.25
        axis = middle.argmax(axis=1)
        ends = np.rint(vertices).astype(np.int64)
        others = np.array([[1, 2], [0, 2], [0, 1]])[axis]
        first, second = np.take_along_axis(ends, others, axis=1).T
        edges = 4 * axis + first + 2 * second
        cases[case, : len(faces)] = torch.from_numpy(edges[faces])
        masks[case, : len(faces)] = True
    return cases, masks
