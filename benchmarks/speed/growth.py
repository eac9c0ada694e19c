"""python -m benchmarks.speed.growth: CPU time a row of near-duplicate search and of an album, as rows grow.

Rows are synthetic: features of made-up shapes, one in a hundred of them nearly another's; records of objects
as `sampling` writes them. What a row costs should hardly grow.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray

from data_prep.filters import near_duplicates
from sampling.album import Album, Wish

DIM, KINDS = 4000, 256
"""Of real features; and how many made-up shapes they are mixed of."""


def features(rows: int) -> ndarray:
    """Unit vectors [rows, DIM], each a mixture of three shapes; every hundredth has a copy, a little off."""
    rng = np.random.default_rng(0)
    shapes = rng.exponential(size=(KINDS, DIM)).astype(np.float32) * (rng.random((KINDS, DIM)) < 0.1)
    made = np.zeros((rows, DIM), np.float32)
    for start in range(0, rows, 4096):
        part = made[start : start + 4096]
        kinds, shares = rng.integers(0, KINDS, (3, len(part))), rng.dirichlet(np.ones(3), len(part)).T
        for kind, share in zip(kinds, shares.astype(np.float32), strict=True):
            part += share[:, None] * shapes[kind]
    for original in range(0, rows - 1, 100):
        made[original + 1] = made[original] * (1 + 0.02 * rng.standard_normal(DIM, np.float32))
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def search_seconds(rows: int) -> tuple[float, str]:
    """CPU seconds of the near-duplicate search, and what it found."""
    made = features(rows)
    start = time.process_time()
    pairs = near_duplicates(made, 0.1)
    return time.process_time() - start, f"{len(pairs):,} pairs"


def album_seconds(rows: int) -> tuple[float, str]:
    """CPU seconds of looking each object up, naming it and writing it down."""
    facts = {"prompt": "a red chair", "image": "", "label": "a red chair", "portrait": "portrait.png"}
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        album = Album(Path(folder))
        for seed in range(rows):
            wish = Wish("a red chair", seed, "", "a red chair")
            if not album.holds(wish):
                name = album.name_for(wish)
                album.add({"name": name, "seed": seed, "files": {"glb": f"{name}.glb"}, **facts})
        album.save()
        album.save_contact_sheets()
        return time.process_time() - start, f"{album.path.stat().st_size / 1e6:.1f} MB"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.growth", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    for rows in parser.parse_args(argv).rows:
        for name, measure in (("near duplicates", search_seconds), ("album", album_seconds)):
            seconds, found = measure(rows)
            each = 1e6 * seconds / rows
            sys.stdout.write(f"{name:16} {rows:8,} rows {seconds:8.2f} s {each:8.0f} us a row  {found}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
