"""What `shapeloom.plan` says of a training beside what one step of it takes, on this machine's CPU.

    python -m benchmarks.speed.plan prior --config configs/prior/small.yaml --set latents=DIR \\
        train.batch_size=4
    python -m benchmarks.speed.plan encoder --config configs/encoder/small.yaml --set data=DIR \\
        train.batch_size=2 encoder.num_layers=2

Two steps are taken: the first, which makes the optimizer's states, has its operations counted, and the second
its memory, by torch's profiler. A preset fits a small machine by its batch, its layers, or both.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from encoder.train import EncoderTrainConfig
from prior.task import PriorConfig
from shapeloom import distributed, plan
from shapeloom.config import resolved, run_main
from shapeloom.costs import OF_CPUS, parse_gpus
from shapeloom.options import add_config_options
from shapeloom.training import make_optimizer, micro_batch
from shapeloom.training_loop import Averages


def peak_bytes(function: Callable[[], None]) -> int:
    """How much memory a function holds at most, beyond what was there before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the profiler's own cycles
        with torch.profiler.profile(profile_memory=True) as profiler:
            function()
    events = profiler.profiler.kineto_results.events()
    sizes = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
    return max(accumulate(size for _, size in sizes))


def tensor_bytes(values: Iterable[Tensor]) -> int:
    """Of tensors' storages, each counted once: ZeRO makes all weights parts of one."""
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
    return sum(storages.values())


def compare(sample: plan.Sample) -> dict[str, tuple[float, float]]:
    """Returns (planned, measured) by name: TFLOP of a step, GB of memory."""
    task, config = sample.task, sample.train
    world = distributed.start()
    gpu = parse_gpus("1xH100")[2]
    planned = plan.plan(sample, assets=sample.num_assets, gpus=1, gpu=gpu, utilization=1.0)
    said = planned["memory"][config.zero_stage]
    share, parts = micro_batch(config, world), config.accumulation
    engine = distributed.make_engine(
        task.model, make_optimizer(task.model, config), micro_batch=share, accumulation=parts, grad_clip=1.0,
        zero_stage=config.zero_stage,
    )  # fmt: skip
    weights = distributed.full_parameters(engine, config.zero_stage)
    frozen = {name for name, value in task.model.named_parameters() if not value.requires_grad}
    averages = Averages(config, weights, frozen)
    bf16 = config.precision != "fp32"

    def step() -> None:
        first = (config.steps - 1) * config.batch_size
        for part in range(parts):
            numbers = range(first + part * share, first + (part + 1) * share)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss, _ = task.loss(task.model, task.batch(numbers))
            engine.backward(loss)
            engine.step()

    counter = FlopCounterMode(display=False, custom_mapping=OF_CPUS)
    with counter:
        step()
    passing = peak_bytes(step)
    inner = engine.optimizer.optimizer if config.zero_stage else engine.optimizer
    moments = [value for state in inner.state.values() for value in state.values() if value.numel() > 1]
    own = list(engine.optimizer.single_partition_of_fp32_groups) if config.zero_stage else []
    kept = {id(value): value for each in averages.all.values() for value in each.values()}
    return {
        "operations of a step, TFLOP": (planned["step_flops"] / 1e12, counter.get_total_flops() / 1e12),
        "weights, GB": (said["weights"] / 1e9, tensor_bytes(task.model.parameters()) / 1e9),
        "moments, GB": (said["moments"] / 1e9, tensor_bytes([*moments, *own]) / 1e9),
        "averages, GB": (said["averages"] / 1e9, tensor_bytes(kept.values()) / 1e9),
        "what a step adds at most, GB": (
            (said["gradients"] + said["in passing"] + said["buffers"]) / 1e9, passing / 1e9,
        ),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.plan", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("stage", choices=("encoder", "prior"), help="which trainer")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.stage == "encoder":
            sample = plan.encoder_sample(resolved(EncoderTrainConfig, arguments))
        else:
            sample = plan.prior_sample(resolved(PriorConfig, arguments), Path(folder))
        found = compare(sample)
    number = sum(parameter.numel() for parameter in sample.task.model.parameters())
    sys.stdout.write(f"{number / 1e6:.1f}M parameters, a batch of {sample.train.batch_size}\n")
    sys.stdout.write("| | planned | measured | off |\n|---|---|---|---|\n")
    for name, (said, was) in found.items():
        sys.stdout.write(f"| {name} | {said:.4g} | {was:.4g} | {said / was - 1:+.1%} |\n")


if __name__ == "__main__":
    run_main(main)
