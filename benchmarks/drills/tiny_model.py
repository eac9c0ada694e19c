"""A whole pipeline in a folder, small and untrained, for drills of what surrounds a model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from prior.denoiser import NetworkConfig
from prior.description import make_network
from shapeloom.clip import CompactTokenizer, build_network, load_clip
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.fields.encoding import EncodingConfig
from shapeloom.fields.mlp import ColorTrunkConfig, FieldConfig, TrunkConfig
from shapeloom.fields.projection import ProjectionConfig
from shapeloom.storage import file_digest

DECODER = DecoderConfig(
    projection=ProjectionConfig(num_tokens=4, channels=3, rank=4),
    field=FieldConfig(
        encoding=EncodingConfig(num_octaves=1, num_random=0),
        geometry=TrunkConfig(width=16, num_layers=2),
        color=ColorTrunkConfig(width=16, num_layers=2),
    ),
)
CAPTIONS = ["a red chair", "a blue table", "a green car", "a yellow house", "an orange mug"]


def write_tiny_model(folder: Path) -> Path:
    """Writes prior/, encoder/ and clip/ as finished runs; returns the folder."""
    torch.manual_seed(0)
    parts = {name: folder / name for name in ("encoder", "clip", "prior")}
    for part in parts.values():
        part.mkdir(parents=True)
    decoder = Decoder(DECODER)
    weights = {f"decoder.{name}": value.contiguous() for name, value in decoder.state_dict().items()}
    (parts["encoder"] / "decoder.yaml").write_text(yaml.safe_dump(DECODER.model_dump(mode="json")))
    encoder = _finish(parts["encoder"], "encoder", weights, {})
    description: dict[str, Any] = {
        "kind": "dual_encoder", "name": "tiny", "embed_dim": 8,
        "vision": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 32},
        "text": {"context_length": 12, "width": 32, "layers": 1, "heads": 1},
        "vocabulary": CompactTokenizer.from_captions(CAPTIONS, 12).vocabulary,
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (parts["clip"] / "model.json").write_text(json.dumps(description))
    save_file(build_network(description).state_dict(), parts["clip"] / "weights.safetensors")
    clip = load_clip(parts["clip"])
    shapes = Shapes(tokens=4, channels=3, clip_dim=clip.embed_dim, text_width=clip.text_width)
    network = NetworkConfig(width=16, depth=1, heads=2)
    model = make_network(shapes, network)
    for parameter in model.parameters():  # its output layers start at zero, which no condition could change
        torch.nn.init.normal_(parameter, std=0.2)
    saved = {
        "shapes": asdict(shapes), "network": network.model_dump(), "predict": "latents",
        "diffusion": DiffusionConfig().model_dump(),
    }  # fmt: skip
    (parts["prior"] / "prior.json").write_text(json.dumps(saved))
    _finish(parts["prior"], "prior", model.state_dict(), {"encoder": encoder, "clip": clip.digest})
    return folder


def _finish(folder: Path, stage: str, weights: dict[str, torch.Tensor], inputs: dict[str, str]) -> str:
    """Writes weights and a meta.json; returns the weights' digest."""
    path = folder / "weights.safetensors"
    save_file(weights, path)
    meta = {
        "stage": stage, "status": "done", "seconds": 0.0, "shapeloom": "0", "commit": "unknown",
        "versions": {}, "inputs": inputs, "weights_digest": file_digest(path),
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return file_digest(path)
