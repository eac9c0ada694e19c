"""python -m benchmarks.drills.kill_training STAGE: killed runs, ZeRO stages, numbers of processes.

STAGE is encoder, prior, views, or refine (VSD, by `sampling.refine`). A run is left alone, another is killed
(SIGKILL, all of its processes) at random times and started again until it is done: curve and weights must be
the same bit for bit. Then a training runs under ZeRO 0 to 3 in one and two processes: the largest relative
difference of any logged loss to the first run's is printed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.drills.tiny_model import write_tiny_model
from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from data_prep.procedural.dataset import ProceduralConfig
from shapeloom.runs import read_metrics
from shapeloom.shards import finish_dataset, write_shard

TRAIN = (
    "train={batch_size: 8, warmup_steps: 5, precision: fp32, log_every: 1, checkpoint_every: 5, "
    "ema_extra: [0.9]}"
)
SETTINGS = {
    "prior": ("network={width: 64, depth: 2, heads: 2}", "mixture.max_views=2", TRAIN),
    "encoder": (
        "encoder={width: 32, heads: 2, num_layers: 1, num_points: 256, grid: 8}",
        "decoder.projection={num_tokens: 16, channels: 8, rank: 32}",
        "losses={num_rays: 32, num_surface_points: 32, num_sdf_points: 64}", TRAIN,
    ),
    "views": (
        "network={size: 16, channels: [8, 16], head_width: 8, context_width: 16, volume: 4, volume_width: 4}",
        "mixture.max_references=1", TRAIN,
    ),
}  # fmt: skip
MODULES = {"prior": "prior.train", "encoder": "encoder.train", "views": "prior.train_views"}
REFINE = (
    "guide=views",
    "estimator={kind: vsd, scale: 2, lora_rank: 1}", "particles=2", "views=1", "steps=2", "log_every=1",
    "checkpoint_every=5", "mesh={resolution: 16, texture_size: 32}", "formats=[safetensors]",
    "samples={coarse: 8, fine: 0}", "turntable={size: 32, samples: {coarse: 8, fine: 0}}",
)  # fmt: skip
DATA_KEY = {"prior": "latents", "encoder": "data", "views": "data"}


def write_data(stage: str, folder: Path) -> Path:
    """What the stage reads: random latents and conditions, a few prepared assets, or a run of all models."""
    if stage == "refine":
        prepare_assets(folder / "data")
        views = write_tiny_model(folder) / "views"
        run([*command("views", folder / "data", views, 1), f"clip={folder / 'clip'}"])
        return folder
    return write_latents(folder) if stage == "prior" else prepare_assets(folder)


def prepare_assets(folder: Path) -> Path:
    """Procedural ones, small."""
    few = ProceduralConfig(num_train=12, num_val=2, num_test=1, num_judge=1)
    config = DataConfig(procedural=few, num_views=4, resolution=16, num_points=512, num_sdf=512, workers=0)
    prepare(config, folder)
    return folder


def write_latents(folder: Path, *, num_assets: int = 64) -> Path:
    """Random latents and conditions."""
    rng, samples = np.random.default_rng(0), []
    for i in range(num_assets):
        sizes = {"latent": (8, 4), "text_pooled": (2, 16), "text_tokens": (2, 3, 12), "image_pooled": (3, 16)}
        arrays = {f"{name}.npy": rng.normal(0, 0.3, size).astype(np.float16) for name, size in sizes.items()}
        facts = {"captions": ["one", "two"], "split": "val" if i % 8 == 0 else "train"}
        mask = {"text_mask.npy": np.ones((2, 3), bool)}
        samples.append({"__key__": f"a{i:04d}", "json": facts, **arrays, **mask})
    write_shard(folder / "shards" / "000000.tar", samples)
    facts = {"encoder": "e", "clip": "c", "tokens": 8, "channels": 4}
    finish_dataset(folder, kind="latents", facts=facts)
    return folder


def command(
    stage: str, data: Path, out: Path, steps: int, *, processes: int = 1, zero_stage: int = 0
) -> list[str]:
    """The training, through torchrun for more than one process."""
    launch = [sys.executable, "-m"]
    if stage == "refine":
        asked = ["--model", str(data), "--prompt", "a red chair", "--iterations", str(steps)]
        return [*launch, "sampling.refine", "--out", str(out), *asked, "--set", *REFINE]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    settings = [f"{DATA_KEY[stage]}={data}", *SETTINGS[stage], f"train.steps={steps}"]
    settings.append(f"train.zero_stage={zero_stage}")
    return [*launch, MODULES[stage], "--out", str(out), "--set", *settings]


def run(arguments: list[str]) -> None:
    """To its end; its output is shown if it fails."""
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def curve(out: Path) -> dict[int, float]:
    """Step -> loss, or the size of the gradient that a refinement follows."""
    names = ("train/loss", "gradient")
    return {line["step"]: line[name] for line in read_metrics(out) for name in names if name in line}


def kill_and_compare(stage: str, folder: Path, *, kills: int, steps: int, seed: int = 0) -> str:
    """A line on what was found; AssertionError if a killed run differs from one left alone."""
    rng, data = random.Random(seed), write_data(stage, folder / "data")
    whole, killed = folder / "whole", folder / "killed"
    run(command(stage, data, whole, steps))
    arguments, done, ends = command(stage, data, killed, steps), 0, []
    while done < kills:
        before = len(curve(killed)) if (killed / "metrics.jsonl").is_file() else 0
        if before >= steps - 1:
            break
        # Start-up takes most of the time: the kill falls a random number of logged steps after it.
        wanted, deadline = before + rng.randint(1, max(1, (steps - before) // (kills - done + 1))), 300
        start = time.monotonic()
        with subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and time.monotonic() - start < deadline:
                lines = killed / "metrics.jsonl"
                if lines.is_file() and lines.read_bytes().count(b"\n") >= wanted:
                    break
                time.sleep(rng.uniform(0.001, 0.02))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                done += 1
                ends.append((killed / "metrics.jsonl").read_bytes().count(b"\n"))
    run(arguments)
    assert curve(whole) == curve(killed), "the loss curves differ"
    weights = sorted(whole.glob("*.safetensors"))
    assert weights, "it wrote no weights"
    for path in weights:
        assert path.read_bytes() == (killed / path.name).read_bytes(), f"{path.name} differs"
    return f"{done} kills, after {ends} lines: {steps} losses and all weights the same bit for bit"


def compare_worlds(stage: str, folder: Path, *, steps: int) -> list[str]:
    """A line each on ZeRO stages and numbers of processes; AssertionError beyond a relative 1e-3."""
    data, lines, first = write_data(stage, folder / "data"), [], None
    for processes in (1, 2):
        for zero in range(4):
            out = folder / f"{processes}_{zero}"
            run(command(stage, data, out, steps, processes=processes, zero_stage=zero))
            losses = np.array(list(curve(out).values()))
            first = losses if first is None else first
            difference = float((np.abs(losses - first) / first).max())
            lines.append(f"ZeRO {zero}, {processes} process(es): largest difference {difference:.1e}")
            # Sums in another order; differences grow with the steps.
            assert difference < 1e-3, lines[-1]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.kill_training", description=__doc__)
    parser.add_argument("stage", choices=[*sorted(SETTINGS), "refine"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        text = kill_and_compare(
            arguments.stage, Path(folder, "kills"), kills=arguments.kills, steps=arguments.steps
        )
        sys.stdout.write(text + "\n")
        if arguments.stage == "refine":
            return
        for line in compare_worlds(arguments.stage, Path(folder, "worlds"), steps=20):
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
