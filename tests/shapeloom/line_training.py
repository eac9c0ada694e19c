"""A training that takes milliseconds a step, in the test's own process or started by a launcher:
python -m tests.shapeloom.line_training FOLDER SETTINGS, the settings as JSON; with `zero_stages`, one for
each of those, one after the other, in FOLDER/STAGE."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shapeloom import distributed, watch
from shapeloom.config import run_main, validated
from shapeloom.log import start_logging
from shapeloom.noise import normal
from shapeloom.seed import derive_seed
from shapeloom.shared_run import open_run
from shapeloom.training import TrainConfig, train

BATCH_SIZE = 8


class Line:
    """Fits y = 3 x - 1 with a small network; noise comes from the samples' own seeds."""

    def __init__(
        self, *, broken_from: int = 10**9, stop_at: int = 10**9, seconds: float = 0.0, kill_at: int = 10**9
    ) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.Linear(32, 1)
        )
        self.seconds, self.kill_from = seconds, BATCH_SIZE * kill_at
        self.broken_from, self.stop_from = broken_from, BATCH_SIZE * stop_at

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        if samples[0] >= self.stop_from:
            os.kill(os.getpid(), signal.SIGTERM)
        first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if samples[0] >= self.kill_from and os.environ["RANK"] == "1" and first_try:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        seeds = torch.tensor([derive_seed("line", n) for n in samples])
        bad = torch.tensor([float("nan") if n >= self.broken_from else 0.0 for n in samples])
        return {"x": normal(seeds, (1,), stream="x") + bad[:, None]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (model(batch["x"]) - (3 * batch["x"] - 1)).pow(2).mean()
        return loss, {"square": loss}

    def names(self, samples: Sequence[int]) -> list[str]:
        return [f"line {n}" for n in samples]

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        return {}


def run_line(out: Path, task: Line | None = None, **settings: object) -> list[float]:
    """The loss of every step."""
    given = {
        "steps": 20,
        "batch_size": BATCH_SIZE,
        "precision": "fp32",
        "checkpoint_every": 7,
        "log_every": 1,
    }
    config = validated(TrainConfig, given | settings, "the test")
    world = distributed.start()
    with open_run(out, config, stage="line", world=world) as run:
        train(task or Line(), config, run, world)
    return read_losses(out)


def read_losses(out: Path) -> list[float]:
    """What the run has logged."""
    return [json.loads(line)["train/loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """With what tests change beside the settings: when it is stopped, how soon silence counts, slow steps."""
    start_logging()
    settings = json.loads(sys.argv[2])
    watch.SILENT_SECONDS = settings.pop("silent_seconds", watch.SILENT_SECONDS)
    of_task = {name: settings.pop(name) for name in ("stop_at", "kill_at", "seconds") if name in settings}
    out, stages = Path(sys.argv[1]), settings.pop("zero_stages", None)
    if stages is None:
        run_line(out, Line(**of_task), **settings)
        return
    for stage in stages:
        with suppress(SystemExit):  # a run that is stopped goes on to the next one
            run_line(out / str(stage), Line(**of_task), zero_stage=stage, **settings)


if __name__ == "__main__":
    run_main(main)
