"""Shap-E as diffusers keeps it: prior/, shap_e_renderer/, scheduler/, each a config and safetensors.

Only safetensors are read, never diffusers' older .bin files.
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

from shapeloom.config import UserError
from shapeloom.denoising import Shapes
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shap_e.names import DIFFUSERS, prior_from_diffusers, prior_to_diffusers, renamed
from shapeloom.shap_e.prior import ShapEPriorConfig
from shapeloom.shap_e.published import CLIP_DIM, GRID_WIDTH, Part, Sizes, check_state, shapes_of
from shapeloom.storage import put_file, scratch_file, write_atomic

WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_diffusers(folder: Path) -> tuple[Sizes, Part, dict[str, Tensor], dict[str, Tensor]]:
    """Returns sizes, which prior it is, its tensors and the decoder's under their official names.

    Raises UserError for a folder that isn't a Shap-E pipeline of diffusers', or is incomplete.
    """
    prior, renderer = _config(folder / "prior"), _config(folder / "shap_e_renderer")
    try:
        part: Part = "text300M" if prior["embedding_proj_norm_type"] is None else "image300M"
        heads, per_head = prior["num_attention_heads"], prior["attention_head_dim"]
        size = ShapEPriorConfig(
            reads="text" if part == "text300M" else "image",
            width=heads * per_head, depth=prior["num_layers"], heads=heads,
        )  # fmt: skip
        field = ShapEFieldConfig(width=renderer["d_hidden"], channels=renderer["d_latent"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder} has no configs of a Shap-E pipeline ({error!r}).") from error
    sizes = Sizes(field=field, text300M=size, image300M=size)
    path = folder / "prior" / WEIGHTS
    try:
        official = prior_from_diffusers(_tensors(path), size)
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]}: it is another model's file.") from error
    check_state(official, shapes_of(part, sizes), path)
    path = folder / "shap_e_renderer" / WEIGHTS
    decoder = renamed(_tensors(path), DIFFUSERS, back=True)
    check_state(decoder, shapes_of("decoder", sizes), path)
    return sizes, part, official, decoder


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json can't be read ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder}/config.json holds no settings.")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} can't be read ({error}). Older .bin files are pickles, which aren't read: "
            "download the safetensors."
        ) from error


def write_prior(folder: Path, size: ShapEPriorConfig, shapes: Shapes, state: dict[str, Tensor]) -> None:
    """Writes a PriorTransformer: PriorTransformer.from_pretrained(folder). state: official."""
    image = size.reads == "image"
    config = {
        "_class_name": "PriorTransformer", "num_attention_heads": size.heads,
        "attention_head_dim": size.width // size.heads, "num_layers": size.depth,
        "embedding_dim": shapes.channels, "num_embeddings": shapes.tokens, "additional_embeddings": 0,
        "dropout": 0.0, "time_embed_act_fn": "gelu", "norm_in_type": "layer",
        "embedding_proj_norm_type": "layer" if image else None, "encoder_hid_proj_type": None,
        "added_emb_type": None, "time_embed_dim": 4 * size.width,
        "embedding_proj_dim": GRID_WIDTH if image else CLIP_DIM, "clip_embed_dim": 2 * shapes.channels,
    }  # fmt: skip
    _write(folder, config, prior_to_diffusers(state, size))


def write_renderer(folder: Path, field: ShapEFieldConfig, state: dict[str, Tensor]) -> None:
    """Writes a ShapERenderer. state: official."""
    rows = [[field.width, columns] for columns in field.row_lengths]
    config = {
        "_class_name": "ShapERenderer", "param_names": [f"nerstf.mlp.{i}.weight" for i in range(len(rows))],
        "param_shapes": rows, "d_latent": field.channels, "d_hidden": field.width, "n_output": 12,
        "n_hidden_layers": 6, "act_fn": "swish", "insert_direction_at": 4,
    }  # fmt: skip
    out = renamed(state, DIFFUSERS)
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
