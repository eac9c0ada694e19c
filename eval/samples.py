"""Makes the samples that are judged: latents of prompts and seeds, and renders of their NeRFs from fixed
views.

Batches are kept, so that a killed evaluation goes on. Scoring them is `eval.generation`'s.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from eval.sets import SetsConfig
from sampling.pipeline import Parts, ShapePipeline
from shapeloom.config import Config
from shapeloom.decoder import Decoder, RenderConfig
from shapeloom.executors import check_written, run_tasks
from shapeloom.log import progress
from shapeloom.pictures import scaled_intrinsics, to_uint8
from shapeloom.rendering.cameras import ring
from shapeloom.seed import derive_seed
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic
from shapeloom.viewpoints import fitting_distance
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


@dataclass(frozen=True)
class SampleBatch:
    """Prompts that are sampled at once, how they are looked at, and the file that it is kept in."""

    path: Path
    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    poses: Float[Tensor, "views 4 4"]
    matrix: Float[Tensor, "3 3"]
    config: GenerationConfig
    parts: Parts | None


def make_samples(
    shards: AssetShards, decoder: Decoder, sampler: Callable[[], Sampler], texts: Sequence[str],
    config: GenerationConfig, folder: Path, on_ray: Parts | None = None,
) -> tuple[Float[Tensor, "texts tokens channels"], UInt8[ndarray, "texts views size size 3"]]:  # fmt: skip
    """Returns a latent of each prompt and its views; made once, then read.

    A prompt's seeds hang on how often it came before alone. on_ray: what workers of a Ray cluster load;
    none: all is made here.
    """
    poses, matrix = fixed_cameras(shards, config)
    came = Counter[str]()
    tasks = []
    for start in range(0, len(texts), config.batch_size):
        batch, seeds = texts[start : start + config.batch_size], []
        for text in batch:
            seeds.append(derive_seed("evaluation", config.seed, text, came[text]))
            came[text] += 1
        path = folder.absolute() / f"part_{start // config.batch_size:03d}.safetensors"
        tasks.append(SampleBatch(path, tuple(batch), tuple(seeds), poses, matrix, config, on_ray))
    missing = [task for task in tasks if not task.path.is_file()]
    function = _sample_there
    if missing and on_ray is None:
        function = partial(_sample_batch, sampler=sampler(), decoder=decoder)
    with progress(len(texts), "sampling prompts") as bar:
        bar.advance(len(texts) - sum(len(task.texts) for task in missing))
        for task, _ in run_tasks(
            function, missing, workers=0, on_report=lambda *_: None,
            executor="ray" if on_ray else "processes", preload=["eval.samples"], on_gpu=True,
        ):  # fmt: skip
            check_written(task.path)
            bar.advance(len(task.texts))
    parts = [read_tensors(task.path) for task in tasks]
    pictures = np.concatenate([part["pictures"].numpy() for part in parts])
    device = next(decoder.parameters(), torch.zeros(())).device
    return torch.cat([part["latents"] for part in parts]).float().to(device), pictures


def _sample_batch(task: SampleBatch, report: object, sampler: Sampler, decoder: Decoder) -> None:
    """Writes a batch's latents and views."""
    latents = sampler(list(task.texts), list(task.seeds))
    rgb = _render(decoder, latents, task.poses, task.matrix, task.config)
    tensors = {"latents": latents.half().cpu(), "pictures": torch.from_numpy(rgb)}
    write_atomic(task.path, save(tensors))


def _sample_there(task: SampleBatch, report: object) -> None:
    """The same in a worker, which loads the pipeline once."""
    assert task.parts is not None
    pipeline = _loaded(task.parts)
    _sample_batch(task, report, pipeline_sampler(pipeline, task.config), pipeline.decoder)


@lru_cache(1)
def _loaded(parts: Parts) -> ShapePipeline:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ShapePipeline.load(prior=parts.prior, encoder=parts.encoder, clip=parts.clip, device=device)


def pipeline_sampler(pipeline: ShapePipeline, config: GenerationConfig) -> Sampler:
    """Returns what turns prompts into latents, with the evaluation's settings."""

    def sample(prompts: list[str], seeds: list[int]) -> Float[Tensor, "batch tokens channels"]:
        made = pipeline(prompts, seeds=seeds, steps=config.steps, guidance_scale=config.guidance_scale)
        return torch.stack([shape.latent for shape in made])

    return sample


def fixed_cameras(
    shards: AssetShards, config: GenerationConfig
) -> tuple[Float[Tensor, "views 4 4"], Float[Tensor, "3 3"]]:
    """Returns poses around the object, and the matrix of the data's own cameras at the pictures' size."""
    matrix = torch.from_numpy(scaled_intrinsics(shards, size=config.size))
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
