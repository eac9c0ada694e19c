"""python -m benchmarks.drills.kill_data_prep: kills data preparation at random times; are its bytes the same?

One run is left alone. Another is started again and again; each time a SIGKILL falls, after a random time, on
all of its processes, on the main one alone, or on one of its workers or of their assets' processes. Once it
has been killed often enough it is left to finish, and every file of the two data sets is compared.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from data_prep.procedural.dataset import ProceduralConfig, generate
from shapeloom.shards import shard_is_finished

SETTINGS = ("num_views=8", "resolution=64", "num_points=4096", "num_sdf=4096", "shard_size=4")


def command(assets: Path, out: Path, workers: int) -> list[str]:
    """The run that is killed."""
    settings = [f"assets={assets}", f"workers={workers}", *SETTINGS]
    return [sys.executable, "-m", "data_prep", "--out", str(out), "--set", *settings]


def kill_once(arguments: list[str], after: float, rng: random.Random) -> str:
    """Starts the run and kills a part of it after some seconds; returns which, or "finished"."""
    with subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(after)
            return "finished"
        except subprocess.TimeoutExpired:
            pass
        others = psutil.Process(process.pid).children(recursive=True)
        part = rng.choice(["all", "main", "one"] if others else ["main"])
        match part:
            case "all":
                os.killpg(process.pid, signal.SIGKILL)
            case "main":
                process.kill()
            case "one":
                try:
                    rng.choice(others).kill()
                    process.wait(after)  # it goes on by itself for as long again
                except psutil.NoSuchProcess:
                    part = "none: it was gone"
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
    return part


def files(out: Path) -> dict[str, bytes]:
    """Every file whose bytes are promised."""
    paths = [out / "dataset.json", out / "quarantine.jsonl", *(out / "shards").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


def compare(kills: int, num_assets: int, workers: int, seed: int, folder: Path) -> str:
    """A line that says what was killed and that the bytes are the same; AssertionError if they aren't."""
    rng = random.Random(seed)
    assets, whole, killed = folder / "assets", folder / "whole", folder / "killed"
    generate(ProceduralConfig(num_train=num_assets, num_val=1, num_test=1, num_judge=1), assets)
    (assets / "broken.glb").write_bytes(b"glTF, or so it says")
    start = time.monotonic()
    subprocess.run(command(assets, whole, workers), check=True, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    expected, parts, ends = files(whole), Counter[str](), 0
    while parts.total() < kills:
        part = kill_once(command(assets, killed, workers), rng.uniform(0.2, 1.0) * seconds, rng)
        if part == "finished":  # before it could be killed: from the beginning again
            check_same(expected, killed)
            ends += 1
            seconds *= 0.7  # kills fall earlier, or a machine that got faster might never be killed
            shutil.rmtree(killed)
        elif not part.startswith("none"):
            parts[part] += 1
            done = sum(shard_is_finished(path) for path in (killed / "shards").glob("*.tar"))
            sys.stderr.write(f"kill {parts.total()} ({part}): {done} shards finished\n")
    subprocess.run(command(assets, killed, workers), check=True, stderr=subprocess.DEVNULL)
    check_same(expected, killed)
    megabytes = sum(map(len, expected.values())) / 1e6
    same = f"all {len(expected)} files, {megabytes:.1f} MB, with the same bytes"
    return f"{kills} kills {dict(parts)}; {ends + 1} runs came to their end, {same}"


def check_same(expected: dict[str, bytes], out: Path) -> None:
    """AssertionError that names the files that differ."""
    found = files(out)
    different = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    assert not different, f"these files differ: {different}"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.kill_data_prep", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--assets", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        line = compare(arguments.kills, arguments.assets, arguments.workers, arguments.seed, Path(folder))
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
