"""A data set of a million assets without their pixels: opening, order, every row, a restart, lost workers.

    python -m benchmarks.speed.million --rows 1000000 --folder DIR

Manifests are as data_prep writes them for 24 views: 105 members an asset, 0.9 kB of JSON. The tars are empty.
What is read of each row is its split and the byte ranges of what the encoder trains on. A restart opens the
data and reads a row of its fourth pass. The tasks are shards that two workers of `run_tasks` look at, as
data_prep's restart does; a worker is killed at every thousandth.
The measurement runs in a process of its own.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shapeloom.executors import run_tasks
from shapeloom.shards import AssetShards, ReadingOrder, finish_dataset, manifest_path, shard_is_finished
from shapeloom.storage import AnyPath

VIEWS = 24
_ARRAYS = (
    "json", "cameras.npy", "intrinsics.npy", "points.npy", "points_rgb.npy", "points_normal.npy",
    "edge_points.npy", "sdf_points.npy", "sdf.npy",
)  # fmt: skip
_KINDS = ("rgba", "depth", "normal", "albedo")
_SIZES = [19990 + place % 7 for place in range(len(_ARRAYS) + len(_KINDS) * VIEWS)]
_ASSET_BYTES = len(_SIZES) * 20992
_ASKED = ("rgba_003.png", "depth_003.png", "cameras.npy", "points.npy", "points_rgb.npy", "sdf.npy")


def write_set(folder: Path, rows: int, *, shard_size: int = 128) -> None:
    """A finished data set of `rows` assets, every twentieth held out."""
    names = [*_ARRAYS, *(f"{kind}_{view:03d}.png" for kind in _KINDS for view in range(VIEWS))]
    (folder / "shards").mkdir(parents=True)
    members = json.dumps(names)
    for shard, first in enumerate(range(0, rows, shard_size)):
        samples = [_entry(number, number - first) for number in range(first, min(rows, first + shard_size))]
        path = folder / "shards" / f"{shard:06d}.tar"
        path.touch()
        text = ", ".join(samples)
        head = f'"schema": 2, "sha256": "{shard:064x}", "size": 0, "count": {len(samples)}'
        manifest_path(path).write_text(f'{{{head}, "members": [{members}], "samples": [{text}]}}')
    finish_dataset(folder, kind="assets", facts={"views": VIEWS, "resolution": 256})


def _entry(number: int, place: int) -> str:
    split = "val" if number % 20 == 19 else "train"
    facts = f'"key": "{number:016x}", "split": "{split}", "captions": ["object number {number}"]'
    facts += f', "group": "g{number // 3}", "category": "", "attributes": {{}}'
    return f'{{{facts}, "members": 0, "start": {512 + place * _ASSET_BYTES}, "sizes": {_SIZES}}}'


def measure(folder: Path) -> dict[str, float]:
    """Seconds and CPU seconds of opening, the order, and as many reads as there are assets; memory in MB."""
    found: dict[str, float] = {}
    before = _peak()
    with _timed("open", found):
        shards = AssetShards(folder, "train")
    found["open_mb"] = _peak() - before
    reads = shards.header["num_assets"]
    with _timed("order", found):
        order = ReadingOrder(shards.shard_sizes, seed=0)
        for number in range(reads):
            order.index(number)
    with _timed("reads", found):
        for number in range(reads):
            row = shards.rows[order.index(number)]
            assert row.split == "train" and all(row.members[name][1] for name in _ASKED)
    memory = {"added_mb": _peak() - before, "peak_mb": _peak()}
    with _timed("restart", found):
        again = AssetShards(folder, "train")
        order = ReadingOrder(again.shard_sizes, seed=0)
        assert again.rows[order.index(3 * len(again) + len(again) // 2)].split == "train"
    with tempfile.TemporaryDirectory() as marks, _timed("tasks", found):
        tasks = [
            (path, Path(marks, path.stem) if number % 1000 == 999 else None)
            for number, path in enumerate(again.shards)
        ]
        done = run_tasks(_look, tasks, workers=2, on_report=lambda *_: None, preload=["shapeloom.shards"])
        assert all(is_finished for _, is_finished in done)
        found |= {"tasks": len(tasks), "workers_lost": sum(1 for _ in Path(marks).iterdir())}
    return {"rows": len(shards), "reads": reads, **found, **memory}


def _look(task: tuple[AnyPath, Path | None], report: object) -> bool:
    """Whether a shard is finished; the first worker that looks at one with a mark is killed."""
    shard, mark = task
    if mark is not None and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return shard_is_finished(shard)


@contextmanager
def _timed(name: str, found: dict[str, float]) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    found[f"{name}_s"], found[f"{name}_cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Writes the set if need be, and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="kept, and used again if it is there")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        sys.stdout.write(json.dumps(measure(arguments.folder)) + "\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary, "data")
        start = time.perf_counter()
        if not (folder / "dataset.json").is_file():
            write_set(folder, arguments.rows)
        written = time.perf_counter() - start
        command = [sys.executable, "-m", "benchmarks.speed.million", "--here", "--folder", str(folder)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    sys.stdout.write(f"written and finished in {written:.1f} s\n")
    sys.stdout.write("".join(f"{name}: {value:,.1f}\n" for name, value in found.items()))


if __name__ == "__main__":
    main()
