"""python -m benchmarks.speed.data_prep_cost ASSETS: what preparing a folder, or a million assets, costs.

CPU time and peak memory are those of the assets' own processes, as the run itself adds them up (meta.json):
they hardly depend on what else the machine does; minutes do. Without --sample, all assets of the folder.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.sources.find import SUFFIXES

MILLION = 1_000_000


def take_sample(assets: Path, num: int, folder: Path) -> Path:
    """A folder with `num` of the assets, each with the whole folder that it lies in, for its companions."""
    found = sorted(path for path in assets.rglob("*") if path.suffix.lower() in SUFFIXES)
    for path in random.Random(0).sample(found, min(num, len(found))):
        target = folder / path.relative_to(assets)
        target.parent.mkdir(parents=True, exist_ok=True)
        for companion in path.parent.iterdir():
            if companion.suffix.lower() not in SUFFIXES and companion.is_file():
                shutil.copy(companion, target.parent)
        shutil.copy(path, target)
    return folder


def measure(assets: Path, folder: Path, settings: Sequence[str]) -> str:
    """Prepares `assets` in `folder`; the report."""
    out = folder / "out"
    start = time.monotonic()
    command = [sys.executable, "-m", "data_prep", "--out", str(out), "--set", f"assets={assets}", *settings]
    subprocess.run(command, check=True)
    minutes = (time.monotonic() - start) / 60
    meta = json.loads((out / "meta.json").read_text())
    stored = sum(path.stat().st_size for path in (out / "shards").iterdir())
    num, cpu, lost = meta["num_assets"], meta["cpu_seconds"], sum(meta["quarantined"].values())
    hours, terabytes = cpu / num * MILLION / 3600, stored / num * MILLION / 1e12
    lines = [
        f"{num} assets prepared, {lost} left out {meta['quarantined'] or ''}",
        f"{minutes:.1f} minutes on {os.cpu_count()} cores; {cpu:.0f} CPU seconds, {cpu / num:.2f} an asset",
        f"peak memory of a process: {meta['peak_memory_gb']:.2f} GB",
        f"stored: {stored / 1e6:.0f} MB, {stored / num / 1e6:.2f} MB an asset",
        f"a million such assets: {hours:,.0f} core-hours, {terabytes:.2f} TB",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.data_prep_cost", description=__doc__)
    parser.add_argument("assets", type=Path)
    parser.add_argument("--sample", type=int, help="that many assets, drawn with a fixed seed")
    parser.add_argument(
        "--set", nargs="+", default=["num_views=60", "resolution=256", "num_points=16384"],
        help="keys of the data preparation's config",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assets = arguments.assets
        if arguments.sample:
            assets = take_sample(assets, arguments.sample, folder / "assets")
        sys.stdout.write(measure(assets, folder, arguments.set) + "\n")


if __name__ == "__main__":
    main()
