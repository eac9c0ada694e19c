"""python -m benchmarks.speed.train_encoder DATA: rays a second beside the reference's recipe.

DATA is a prepared data set. The recipes' steps (forward, backward, the same number of assets and rays) are
timed in turn in this one process, in CPU seconds of one thread. Scaling is a real training by torchrun, a
thread and a core a process (where the next batch is read too), the same batch a process, by the clock: run
it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from encoder.train import EncoderTask, EncoderTrainConfig
from shapeloom.config import load_config
from shapeloom.shards import AssetShards


def rays_per_cpu_second(data: Path, presets: Sequence[str], *, steps: int, batch: int) -> dict[str, float]:
    """Preset -> rays that a CPU second trains; medians of steps taken in turn."""
    tasks = {}
    times: dict[str, list[float]] = {name: [] for name in presets}
    for name in presets:
        config = load_config(EncoderTrainConfig, Path(f"configs/encoder/{name}.yaml"), [f"data={data}"])
        shards = AssetShards(data, "train")
        task = EncoderTask(config, shards, shards)
        tasks[name] = (task, task.batch(range(batch)), batch * config.losses.num_rays)
    for step in range(steps + 1):
        for name, (task, made, _) in tasks.items():
            start = time.process_time()
            task.model.zero_grad()
            task.loss(task.model, made)[0].backward()
            if step:  # the first one warms up
                times[name].append(time.process_time() - start)
    return {name: tasks[name][2] / statistics.median(times[name]) for name in presets}


def samples_per_second(data: Path, preset: str, folder: Path, *, processes: int, steps: int) -> float:
    """What a training of `processes` processes logs, by the clock: the median over its second half."""
    config = load_config(EncoderTrainConfig, Path(f"configs/encoder/{preset}.yaml"), [f"data={data}"])
    out = folder / f"{preset}_{processes}"
    settings = [
        f"data={data}",
        f"train.steps={steps}",
        f"train.batch_size={processes * config.train.batch_size}",
    ]
    settings += ["train.log_every=5", f"train.checkpoint_every={steps}", f"train.picture_every={steps}"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    arguments = ["encoder.train", "--config", f"configs/encoder/{preset}.yaml", "--out", str(out)]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:processes])  # its child's too
    try:
        subprocess.run(
            [sys.executable, *(launch if processes > 1 else ()), "-m", *arguments, "--set", *settings],
            check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    finally:
        os.sched_setaffinity(0, cores)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    return statistics.median(rates[len(rates) // 2 :])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.train_encoder", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--presets", nargs="+", default=["tiny", "reference_tiny"], help="the first beside others"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--scaling-steps", type=int, default=60)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rates = rays_per_cpu_second(
        arguments.data, arguments.presets, steps=arguments.steps, batch=arguments.batch
    )
    first = arguments.presets[0]
    for name, rate in rates.items():
        sys.stdout.write(
            f"{name:<16} {rate:8.0f} rays a CPU second; {first} takes {rates[first] / rate:.1f} x\n"
        )
    with tempfile.TemporaryDirectory() as folder:
        one, two = (
            samples_per_second(
                arguments.data, first, Path(folder), processes=n, steps=arguments.scaling_steps
            )
            for n in (1, 2)
        )
    sys.stdout.write(
        f"{first}: {one:.1f} assets a second in one process, {two:.1f} in two: {two / one:.2f} x\n"
    )


if __name__ == "__main__":
    main()
