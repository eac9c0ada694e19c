"""python -m benchmarks.gpu: does a GPU agree with the CPU, and how fast does it train and decode?

Meant for one GPU, with nothing installed but the project; 1.3 minutes on an H200.
Exits with 1 where the two don't agree. --device cpu does all of it on the CPU, to see that it runs; use
--preset smoke there.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.agreement import ALIKE, rows
from benchmarks.gpu.rates import decoding_rates, training_rates
from benchmarks.gpu.tasks import NUM_ASSETS, make_trainings
from shapeloom.config import run_main

PLAN = """No GPU is here. On one, this would
1. prepare {assets} assets of the embedded set, and latents of random numbers;
2. compare with the CPU, in float32: a step of the encoder, the prior and the view model (smoke's sizes),
   views and grids of our field and of Shap-E's, Muon's products, and pytorch3d's visible faces;
3. train encoder and prior of the preset {preset} for {steps} steps: rays and tokens a second, memory, and the
   share of the card's peak;
4. decode a view and a mesh.
"""


def say(name: str, value: str) -> None:
    """One line of the report."""
    sys.stdout.write(f"{name:<34} {value}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--preset", default="small", help="of encoder, prior and data preparation")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stdout.write(PLAN.format(assets=NUM_ASSETS, preset=arguments.preset, steps=arguments.steps))
        return
    start = time.monotonic()
    say("device", torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU")
    with tempfile.TemporaryDirectory() as folder:
        small = make_trainings("smoke", Path(folder, "smoke"), small_views=True)
        apart = dict(rows(small, device))
        for name, value in apart.items():
            missing = "not installed, or not built for it"
            say(name, missing if math.isnan(value) else f"differs by {value:.1e}")
        full = make_trainings(arguments.preset, Path(folder, "full"))
        for name, training in full.items():
            for key, text in training_rates(training, device, arguments.steps).items():
                say(f"{name}: {key}", text)
        for key, text in decoding_rates(full["encoder"], device).items():
            say(key, text)
    say("all of this", f"{(time.monotonic() - start) / 60:.1f} minutes")
    if wrong := [name for name, value in apart.items() if value > ALIKE]:
        say("does not agree with the CPU", ", ".join(wrong))
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
