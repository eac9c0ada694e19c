"""python -m benchmarks.speed.fine_tune_shap_e [--preset F] [--set K=V ...]: text300M on one batch.

Random weights and latents of the full size, through the prior's own trainer: the loss of the batch after each
step, CPU seconds of a step, and the most memory that the process held. --quick: small sizes.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prior.description import make_network
from prior.fine_tune import start_from
from prior.lora import merge_lora
from prior.model import Prior
from prior.task import PriorConfig, PriorTask, read_latents
from shapeloom import distributed
from shapeloom.config import load_config
from shapeloom.runs import Run
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shap_e.prior import ShapEDenoiser
from shapeloom.shap_e.published import CLIP_DIM, PUBLISHED
from shapeloom.shards import finish_dataset, write_shard
from shapeloom.shards.tensors import LatentShards
from shapeloom.training import train

PRESET = "configs/prior/shap_e_text_lora.yaml"
SMALL = ("network.width=32", "network.depth=2", "network.heads=4")
CONTEXT = 77


class OneBatch(PriorTask):
    """The task of the prior, but for its batches, which are always the first."""

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """The first samples, whatever is asked for."""
        return super().batch(range(len(samples)))

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Notes the time, too."""
        loss, _ = super().loss(model, batch)
        return loss, {"cpu_seconds": torch.tensor(time.process_time())}


def write_latents(folder: Path, field: ShapEFieldConfig) -> Path:
    """Writes eight random latents with captions' vectors."""
    rng, samples = np.random.default_rng(0), []
    tokens, channels = field.layout.shape
    for i in range(8):
        pooled = rng.normal(size=(1, CLIP_DIM))
        samples.append(
            {
                "__key__": f"asset{i}",
                "json": {"captions": ["a thing"], "split": "train"},
                "latent.npy": np.tanh(rng.normal(size=(tokens, channels))).astype(np.float16),
                "text_pooled.npy": (pooled / np.linalg.norm(pooled)).astype(np.float16),
                "text_tokens.npy": np.zeros((1, CONTEXT, CLIP_DIM), np.float16),
                "text_mask.npy": np.ones((1, CONTEXT), bool),
                "image_pooled.npy": np.zeros((1, CLIP_DIM), np.float16),
            }
        )
    write_shard(folder / "shards" / "000000.tar", samples)
    facts = {"encoder": "", "clip": "", "tokens": tokens, "channels": channels}
    finish_dataset(folder, kind="latents", facts=facts)
    return folder


def random_prior(config: PriorConfig, field: ShapEFieldConfig) -> Prior:
    """text300M with random weights, the last layer's too, which starts at zero."""
    shapes = PUBLISHED.model_copy(update={"field": field}).shapes("text300M")
    network = make_network(shapes, config.network)
    assert isinstance(network, ShapEDenoiser)
    nn.init.normal_(network.wrapped.output_proj.weight, std=0.02)
    return Prior(network, shapes, config.diffusion, {"digest": "", "encoder": "", "clip": ""})


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line a step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.fine_tune_shap_e", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--preset", type=Path, default=Path(PRESET))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the preset")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [
            "fine_tune.init_from=random", f"latents={folder / 'latents'}", "train.steps=6",
            "train.batch_size=1", "train.accumulation=1", "train.warmup_steps=0", "train.log_every=1",
            *arguments.set, *(SMALL if arguments.quick else ()),
        ]  # fmt: skip
        config = load_config(PriorConfig, arguments.preset, overrides)
        field = ShapEFieldConfig(width=8, channels=16) if arguments.quick else ShapEFieldConfig()
        shards = LatentShards(write_latents(folder / "latents", field))
        latents = read_latents(shards.folder, "train", config)
        model = start_from(
            random_prior(config, field), config.fine_tune, latents, shards.header,
            network=config.network, diffusion=config.diffusion, seed=0,
        )  # fmt: skip
        world = distributed.start()
        run = Run.open(folder / "run", config, stage="prior")
        train(OneBatch(model, latents, config, run), config.train, run, world, export=merge_lora)
        report((run.folder / "metrics.jsonl").read_text())


def report(metrics: str) -> None:
    """Prints the losses, the CPU seconds from step to step and the memory."""
    lines = [json.loads(line) for line in metrics.splitlines() if "train/loss" in line]
    for i, line in enumerate(lines):
        since = line["train/cpu_seconds"] - lines[i - 1]["train/cpu_seconds"]
        took = f", {since:.1f} CPU seconds since the last" if i else ""
        sys.stdout.write(f"step {line['step']}: loss {line['train/loss']:.5f}{took}\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(f"most memory held: {peak:.2f} GiB\n")


if __name__ == "__main__":
    main()
