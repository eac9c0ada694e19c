"""What a training will take, before one pays: steps, operations, hours, memory a GPU, storage, loader.

    python -m shapeloom.plan encoder --config configs/encoder/base.yaml --set data=SAMPLE/data \\
        --assets 1000000 --gpus 8xH100
    python -m shapeloom.plan prior --config configs/prior/base.yaml --set latents=SAMPLE/latents ...

A handful of assets, prepared (and encoded) with the presets that are meant, is the sample that everything is
counted on: the loss and gradient of one and of two of its assets, on this machine's CPU (a minute and some
10 GB for `base`). What that can't tell is assumed and said: how much of a GPU's peak is reached.
Nothing imports this file, so it alone here may know the stages.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encoder.train import EncoderTask, EncoderTrainConfig
from prior.task import PriorConfig, PriorTask, read_latents
from prior.train import new_model
from shapeloom.config import UserError, resolved, run_main
from shapeloom.costs import CONTEXT_BYTES as CONTEXT
from shapeloom.costs import (
    Gpu,
    checkpoint_bytes,
    describe,
    moments_of,
    optimizer_flops,
    parse_gpus,
    passing_bytes,
    sample_costs,
    state_bytes,
)
from shapeloom.distributed import World
from shapeloom.loading import MAX_WORKERS
from shapeloom.options import add_config_options
from shapeloom.runs import Run
from shapeloom.shards import AssetShards
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import parse_path, read_json
from shapeloom.training import Task, TrainConfig, micro_batch


@dataclass(frozen=True)
class Sample:
    """What is known of the training from a few assets of it."""

    task: Task
    train: TrainConfig
    rays_from: float
    """The fraction of the steps from which a step costs as its last one does."""
    num_assets: int
    shard_size: float
    asset_bytes: float
    cpu_seconds: float | None
    """To prepare an asset."""


def encoder_sample(config: EncoderTrainConfig) -> Sample:
    """From a data_prep run."""
    shards = AssetShards(config.data, "train")
    task = EncoderTask(config, shards, shards)
    return _sample(task, config.train, config.losses.rays_from, shards)


def prior_sample(config: PriorConfig, folder: Path) -> Sample:
    """From latents. folder: an empty one."""
    if config.latents is None:
        raise UserError("The plan of a prior needs --set latents=SAMPLE/latents, a few assets' latents.")
    shards, latents = (
        LatentShards(config.latents, config.split),
        read_latents(config.latents, config.split, config),
    )
    task = PriorTask(new_model(latents, config), latents, config, Run(folder, {}, writes=False))
    return _sample(task, config.train, 0.0, shards)


def _sample(task: Task, train: TrainConfig, rays_from: float, shards: AssetShards | LatentShards) -> Sample:
    total, meta = shards.header["num_assets"], parse_path(shards.folder) / "meta.json"
    facts = read_json(meta, advice="Copy it again.") if meta.is_file() else {}
    seconds = facts["cpu_seconds"] / total if facts.get("cpu_seconds") else None
    size = sum(path.stat().st_size for path in shards.shards)
    return Sample(
        task, train, rays_from, len(shards), total / len(shards.shards), size / total, seconds
    )  # fmt: skip


def plan(sample: Sample, *, assets: int, gpus: int, gpu: Gpu, utilization: float) -> dict[str, Any]:
    """Returns numbers by name; `text` says them."""
    config, model = sample.train, sample.task.model
    share = micro_batch(config, World(0, gpus, torch.device("cpu")))
    bf16 = config.precision != "fp32"
    last = (config.steps - 1) * config.batch_size
    costs = sample_costs(sample.task, last, bf16=bf16)
    early = sample_costs(sample.task, 0, bf16=bf16).flops if sample.rays_from else costs.flops
    mean = sample.rays_from * early + (1 - sample.rays_from) * costs.flops
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = moments_of(model, config)
    step_flops = mean * config.batch_size + gpus * optimizer_flops(model, config)
    step_seconds = step_flops / (gpus * gpu.flops * utilization)
    memory = {
        stage: {
            **state_bytes(parameters, trained, moments, config, stage, gpus),
            "in passing": passing_bytes(costs, share, trained, config, stage), "context": CONTEXT,
        }
        for stage in range(4)
    }  # fmt: skip
    return {
        "parameters": parameters, "steps": config.steps, "micro_batch": share,
        "epochs": config.steps * config.batch_size / assets,
        "step_flops": step_flops, "total_flops": step_flops * config.steps,
        "step_seconds": step_seconds, "gpu_hours": gpus * step_seconds * config.steps / 3600,
        "memory": memory, "activation_bytes_each": costs.each_bytes, "batch_seconds": costs.batch_seconds,
        "samples_per_second": config.batch_size / step_seconds,
        "shards": math.ceil(assets / sample.shard_size), "data_bytes": assets * sample.asset_bytes,
        "prepare_core_hours": None if sample.cpu_seconds is None else assets * sample.cpu_seconds / 3600,
        "checkpoint_bytes": checkpoint_bytes(parameters, trained, moments, config),
    }  # fmt: skip


def text(found: dict[str, Any], sample: Sample, arguments: argparse.Namespace) -> str:
    """The plan in words."""
    gpus, name, gpu = parse_gpus(arguments.gpus)
    rate = found["samples_per_second"]
    hours = found["gpu_hours"]
    passes = f"{found['epochs']:,.1f} passes over {arguments.assets:,} assets"
    cores = math.ceil(rate * found["batch_seconds"] / gpus)
    lines: dict[str, Any] = {
        "parameters": f"{found['parameters'] / 1e6:,.1f}M",
        "steps": f"{found['steps']:,} of {sample.train.batch_size} samples: {passes}",
        "operations": f"{found['step_flops'] / 1e12:,.4g} TFLOP a step, "
        f"{found['total_flops'] / 1e18:,.3g} EFLOP in all",
        "time": f"{found['step_seconds']:,.3g} s a step, {hours / gpus:,.1f} hours of {gpus} {name}: "
        f"{hours:,.1f} GPU hours, if {arguments.utilization:.0%} of the peak is reached (`--utilization`)",
        "data": f"{found['shards']:,} shards, {found['data_bytes'] / 1e9:,.1f} GB",
        "loader": f"{rate:,.0f} samples/s in all; one core of this machine makes "
        f"{1 / found['batch_seconds']:,.1f}: {cores} cores a GPU (at most {MAX_WORKERS} are used)",
        "checkpoint": f"{found['checkpoint_bytes'] / 1e9:,.2f} GB each, two or three are kept",
    }  # fmt: skip
    if found["prepare_core_hours"] is not None:
        lines["data_prep"] = f"{found['prepare_core_hours']:,.1f} core hours, at the sample's rate"
    parts = list(found["memory"][0])
    rows = ["memory of each GPU, GB".ljust(24) + "".join(part.rjust(13) for part in parts) + "total".rjust(9)]
    for stage, each in found["memory"].items():
        total = sum(each.values())
        fits = "" if total < 0.92 * gpu.memory else f"  more than the {gpu.memory / 1e9:.0f} GB of an {name}"
        chosen = " (chosen)" if stage == sample.train.zero_stage else ""
        numbers = "".join(f"{each[part] / 1e9:13.2f}" for part in parts)
        rows.append(f"  ZeRO {stage}{chosen}".ljust(24) + f"{numbers}{total / 1e9:9.2f}{fits}")
    each_gb = found["activation_bytes_each"] / 1e9
    advice = (
        f"{found['micro_batch']} samples at once on each GPU, {each_gb:.3g} GB of activations each: where "
        "memory is short, raise train.accumulation, which computes the same steps in smaller parts."
    )
    return describe(lines) + "\n" + "\n".join(rows) + "\n\n" + advice + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the plan."""
    parser = argparse.ArgumentParser(
        prog="python -m shapeloom.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("encoder", "prior"), help="which trainer")
    add_config_options(parser)
    parser.add_argument("--assets", type=int, required=True, help="how many the training will have")
    parser.add_argument("--gpus", required=True, help="such as 8xH100")
    reached = "of the GPUs' peak; an H200 reached .03 to .04 with `small`"
    parser.add_argument("--utilization", type=float, default=0.04, help=reached)
    arguments = parser.parse_args(argv)
    gpus, _, gpu = parse_gpus(arguments.gpus)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.stage == "encoder":
            sample = encoder_sample(resolved(EncoderTrainConfig, arguments))
        else:
            sample = prior_sample(resolved(PriorConfig, arguments), Path(folder))
        found = plan(sample, assets=arguments.assets, gpus=gpus, gpu=gpu, utilization=arguments.utilization)
    sys.stdout.write(text(found, sample, arguments))


if __name__ == "__main__":
    run_main(main)
