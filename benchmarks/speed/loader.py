"""python -m benchmarks.speed.loader DIR: what one worker reads a second, and what the trainer consumes.

DIR is a prepared data set. "Batches" is the encoder trainer's own batch-making, augmentation and ray sampling
included; "reads" is the shards' part of it: the views, depths, points and signed distances that a step needs.
The trainer's step is timed here too, on the same data and in the same CPU seconds.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch

from encoder.batches import RAY_VIEWS
from encoder.train import EncoderTask, EncoderTrainConfig
from shapeloom.config import load_config
from shapeloom.shards import AssetShards, ReadingOrder
from shapeloom.shards.tensors import SampleStream


def per_cpu_second(work: Callable[[int], object], count: int) -> float:
    """Calls a CPU second of this process, after one to warm up."""
    work(0)
    start = time.process_time()
    for n in range(count):
        work(n)
    return count / (time.process_time() - start)


def trainer_rate(task: EncoderTask, batch_size: int, steps: int) -> float:
    """Samples a CPU second that forward and backward of the encoder's training take."""
    batch = task.batch(range(batch_size))

    def step(_: int) -> None:
        loss, _parts = task.loss(task.model, batch)
        loss.backward()

    return batch_size * per_cpu_second(step, steps)


def measure(data: Path, preset: str, samples: int, steps: int) -> list[tuple[str, float]]:
    """Rows of (what, samples a CPU second)."""
    config = load_config(EncoderTrainConfig, Path(f"configs/encoder/{preset}.yaml"), [f"data={data}"])
    shards = AssetShards(data, "train")
    order = ReadingOrder(shards.shard_sizes, seed=0)
    task = EncoderTask(config, shards, shards)
    views = range(max(RAY_VIEWS, config.encoder.num_views))

    def read(n: int, index: int) -> object:
        return shards.read(index, views=views, depth=True, points=True, sdf=True)

    stream = iter(SampleStream(shards, order, read))
    size = config.train.batch_size
    return [
        ("reads, one worker", per_cpu_second(lambda _: next(islice(stream, 1)), samples)),
        ("batches, one worker", size * per_cpu_second(
            lambda n: task.batch(range(n * size, (n + 1) * size)), max(1, samples // size))),
        (f"the {preset} trainer takes", trainer_rate(task, size, steps)),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.loader", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="tiny", help="of configs/encoder")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = measure(arguments.data, arguments.preset, arguments.samples, arguments.steps)
    for name, rate in rows:
        sys.stdout.write(f"{name:<28} {rate:8.1f} samples a CPU second  {rate / rows[-1][1]:6.1f} x\n")


if __name__ == "__main__":
    main()
