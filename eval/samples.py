"""Makes the samples that are judged: latents of prompts and seeds, and renders of their NeRFs from fixed
views.

Batches are kept, so that a killed evaluation goes on. Scoring them is `eval.generation`'s.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from eval.prompts import Prompt
from eval.sets import SetsConfig
from shapeloom.config import Config
from shapeloom.decoder import Decoder, RenderConfig
from shapeloom.log import progress
from shapeloom.pictures import scaled_intrinsics, to_uint8
from shapeloom.rendering.cameras import fitting_distance, ring
from shapeloom.seed import derive_seed
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic
from shapeloom.weights import read_tensors

ELEVATION_DEGREES = 20.0
"""Of the fixed views; true views are chosen near it."""

Sampler = Callable[[list[str], list[int]], Float[Tensor, "batch tokens channels"]]
"""Prompts and as many seeds -> latents."""


class GenerationConfig(Config):
    """What is sampled, and how it is looked at."""

    num_prompts: int = Field(100, ge=2, description="mutually exclusive; chance is one in this many")
    samples_per_prompt: int = Field(1, ge=1, description="objects per prompt")
    least_assets: int = Field(
        1, ge=1, description="that answer to a prompt; more: names of frequent things alone"
    )
    steps: int = Field(64, ge=1, description="sampling steps")
    guidance_scale: float = Field(3.0, ge=0, description="of classifier-free guidance; 1: none")
    batch_size: int = Field(25, ge=1, description="objects sampled at once")
    views: int = Field(4, ge=1, description="of a sample that the judge sees")
    size: int = Field(64, ge=16, description="side of the pictures that the judge sees, pixels")
    samples: RenderConfig = RenderConfig(coarse=40, fine=24)
    beside: int = Field(8, ge=0, description="samples drawn large beside the training assets nearest to them")
    seed: int = Field(0, description="of the prompts' choice and of the samples")
    sets: SetsConfig = SetsConfig()


def make_samples(
    shards: AssetShards, decoder: Decoder, sampler: Callable[[], Sampler], prompts: Sequence[Prompt],
    config: GenerationConfig, folder: Path,
) -> tuple[Float[Tensor, "n tokens channels"], UInt8[ndarray, "n views size size 3"]]:  # fmt: skip
    """Returns latents and views of `samples_per_prompt` rounds over all prompts; made once, then read."""
    poses, matrix = fixed_cameras(shards, config)
    wanted = [(prompt.text, number) for number in range(config.samples_per_prompt) for prompt in prompts]
    batches = [wanted[i : i + config.batch_size] for i in range(0, len(wanted), config.batch_size)]
    made: Sampler | None = None
    parts = []
    with progress(len(wanted), "sampling prompts") as bar:
        for number, batch in enumerate(batches):
            path = folder / f"part_{number:03d}.safetensors"
            if not path.is_file():
                made = made or sampler()
                texts = [text for text, _ in batch]
                seeds = [derive_seed("evaluation", config.seed, text, n) for text, n in batch]
                latents = made(texts, seeds)
                rgb = _render(decoder, latents, poses, matrix, config)
                write_atomic(path, save({"latents": latents.half().cpu(), "pictures": torch.from_numpy(rgb)}))
            parts.append(read_tensors(path))
            bar.advance(len(batch))
    pictures = np.concatenate([part["pictures"].numpy() for part in parts])
    device = next(decoder.parameters(), torch.zeros(())).device
    return torch.cat([part["latents"] for part in parts]).float().to(device), pictures


def fixed_cameras(
    shards: AssetShards, config: GenerationConfig
) -> tuple[Float[Tensor, "views 4 4"], Float[Tensor, "3 3"]]:
    """Returns poses around the object, and the matrix of the data's own cameras at the pictures' size."""
    matrix = scaled_intrinsics(shards, size=config.size)
    fov = 2 * float(torch.atan(0.5 * config.size / matrix[1, 1]))
    poses = ring(config.views, elevation_degrees=ELEVATION_DEGREES, distance=fitting_distance(fov))
    return poses, matrix


@torch.no_grad()
def _render(
    decoder: Decoder, latents: Tensor, poses: Tensor, matrix: Tensor, config: GenerationConfig
) -> UInt8[ndarray, "samples views size size 3"]:
    num = len(latents)
    rendering = decoder.render(
        decoder.weights(latents),
        poses.to(latents.device).expand(num, -1, -1, -1),
        matrix.to(latents.device).expand(num, config.views, -1, -1),
        config.size,
        config.size,
        samples=config.samples,
    )
    return to_uint8(rendering.rgb.cpu().numpy())
