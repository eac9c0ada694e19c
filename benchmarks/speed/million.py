"""A data set of a million assets without their pixels: opening it, the order of reading, every row once.

    python -m benchmarks.speed.million --rows 1000000 --folder DIR

Manifests are as data_prep writes them for 24 views: 105 members an asset, 3.6 kB of JSON. The tars are empty.
Each measurement runs in a process of its own: seconds, and the memory that it added.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shapeloom.shards import AssetShards, ReadingOrder, finish_dataset

VIEWS = 24
_ARRAYS = (
    "json", "cameras.npy", "intrinsics.npy", "points.npy", "points_rgb.npy", "points_normal.npy",
    "edge_points.npy", "sdf_points.npy", "sdf.npy",
)  # fmt: skip
_KINDS = ("rgba", "depth", "normal", "albedo")


def write_set(folder: Path, rows: int, *, shard_size: int = 128) -> None:
    """A finished data set of `rows` assets, every twentieth held out."""
    names = [*_ARRAYS, *(f"{kind}_{view:03d}.png" for kind in _KINDS for view in range(VIEWS))]
    (folder / "shards").mkdir(parents=True)
    members = json.dumps({name: [512 + 20480 * place, 19999] for place, name in enumerate(names)})
    for shard, first in enumerate(range(0, rows, shard_size)):
        samples = [_entry(number, members) for number in range(first, min(rows, first + shard_size))]
        path = folder / "shards" / f"{shard:06d}.tar"
        path.touch()
        text = ", ".join(samples)
        head = f'"schema": 1, "sha256": "{shard:064x}", "size": 0, "count": {len(samples)}'
        path.with_suffix(".index.json").write_text(f'{{{head}, "samples": [{text}]}}')
    finish_dataset(folder, kind="assets", facts={"views": VIEWS, "resolution": 256})


def _entry(number: int, members: str) -> str:
    split = "val" if number % 20 == 19 else "train"
    facts = f'"key": "{number:016x}", "split": "{split}", "captions": ["object number {number}"]'
    return f'{{{facts}, "group": "g{number // 3}", "category": "", "attributes": {{}}, "members": {members}}}'


def measure(folder: Path) -> dict[str, float]:
    """Seconds of opening and of reading every row in the order of training, and memory in MB."""
    before = _peak()
    start = time.perf_counter()
    shards = AssetShards(folder, "train")
    opened, memory = time.perf_counter() - start, _peak() - before
    start = time.perf_counter()
    order = ReadingOrder(shards.shard_sizes, seed=0)
    for number in range(len(shards)):
        order.index(number)
    ordered = time.perf_counter() - start
    start = time.perf_counter()
    for number in range(len(shards)):
        assert shards.rows[order.index(number)].split == "train"
    read = time.perf_counter() - start
    return {
        "rows": len(shards), "open_s": opened, "open_mb": memory, "order_s": ordered, "rows_s": read,
        "all_mb": _peak() - before,
    }  # fmt: skip


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
