"""The trainers' tasks on a data set made on the spot, so that nothing but the project is needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from encoder.train import EncoderTask, EncoderTrainConfig
from prior.task import PriorConfig, PriorTask, read_latents
from prior.train import new_model
from prior.train_views import make_model
from prior.views import ViewTask, ViewTrainConfig
from shapeloom.config import load_config
from shapeloom.runs import Run
from shapeloom.shards import AssetShards, finish_dataset, write_shard
from shapeloom.training import Task, TrainConfig

NUM_ASSETS = 16
"""A batch that is larger has some of them twice, in other draws."""
CLIP_DIM, TEXT_WIDTH, TEXT_LENGTH = 512, 512, 16


@dataclass(frozen=True)
class Training:
    """A trainer's task and settings. work: how many of `unit` a sample has."""

    task: Task
    train: TrainConfig
    unit: str
    work: int


def make_trainings(preset: str, folder: Path, *, small_views: bool = False) -> dict[str, Training]:
    """Encoder, prior and, with `small_views`, a view model of a few channels, of the preset's sizes."""
    data = folder / "data"
    if not (data / "dataset.json").is_file():
        few = {"num_train": NUM_ASSETS, "num_val": 0, "num_test": 0, "num_judge": 0}
        settings = [f"procedural={few}", "splits={train: 1, val: 0, test: 0, judge: 0}"]
        prepare(load_config(DataConfig, Path(f"configs/data_prep/{preset}.yaml"), settings), data)
    shards = AssetShards(data, "train")
    # Its noise is the one draw that each device makes by itself.
    config = load_config(
        EncoderTrainConfig,
        Path(f"configs/encoder/{preset}.yaml"),
        [f"data={data}", "bottleneck_noise=0", "losses.rays_from=0"],
    )
    encoder = EncoderTask(config, shards, shards)
    tokens, channels = config.decoder.layout.shape
    write_latents(folder / "latents", (tokens, channels))
    settings = [f"latents={folder / 'latents'}", "mixture={max_views: 1}"]
    prior_config = load_config(PriorConfig, Path(f"configs/prior/{preset}.yaml"), settings)
    latents = read_latents(folder / "latents", "train", prior_config)
    prior = PriorTask(new_model(latents, prior_config), latents, prior_config, Run(folder, {}, writes=False))
    found = {
        "encoder": Training(encoder, config.train, "rays", config.losses.num_rays),
        "prior": Training(prior, prior_config.train, "tokens", tokens),
    }
    if small_views:
        sizes = "network={size: 16, channels: [8, 16], head_width: 8, context_width: 16, reference_depth: 1}"
        views = load_config(ViewTrainConfig, None, [f"data={data}", sizes])
        task = ViewTask(make_model(views, shards, None, None), views, shards, shards)
        found["view model"] = Training(task, views.train, "pixels", 16 * 16)
    return found


def write_latents(folder: Path, shape: tuple[int, int]) -> None:
    """Latents and conditions of random numbers, which cost what real ones cost."""
    if (folder / "dataset.json").is_file():
        return
    rng = np.random.default_rng(0)

    def sample(number: int) -> Mapping[str, Any]:
        facts = {"captions": ["a thing"], "split": "train", "group": f"g{number}"}
        return {
            "__key__": f"asset{number:03d}", "json": facts,
            "latent.npy": rng.uniform(-1, 1, shape).astype(np.float16),
            "text_pooled.npy": rng.standard_normal((1, CLIP_DIM)).astype(np.float16),
            "text_tokens.npy": rng.standard_normal((1, TEXT_LENGTH, TEXT_WIDTH)).astype(np.float16),
            "text_mask.npy": np.ones((1, TEXT_LENGTH), bool),
            "image_pooled.npy": rng.standard_normal((1, CLIP_DIM)).astype(np.float16),
        }  # fmt: skip

    write_shard(folder / "shards" / "000000.tar", map(sample, range(4 * NUM_ASSETS)))
    facts = {
        "encoder": "e" * 64,
        "clip": "c" * 64,
        "data": "d" * 64,
        "tokens": shape[0],
        "channels": shape[1],
    }
    finish_dataset(folder, kind="latents", facts=facts)
