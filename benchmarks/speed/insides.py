"""python -m benchmarks.speed.insides FOLDER: compiled distances and winding numbers against libigl's.

Every n-th asset of a folder of 3D files, on one thread: CPU milliseconds of both for as many samples as data
preparation takes by default, trees included; how far their winding numbers are from the exact sum of solid
angles, and what share of the samples they put on the wrong side, over every 17th sample.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import igl
import numpy as np
from numpy import ndarray

from benchmarks.speed.renderers import read
from data_prep.geometry.sdf import SignedDistance, sdf_samples, signed_distance
from data_prep.pipeline import DataConfig
from data_prep.sources.find import SplitFractions, find_sources

ROW = "{:36} {:>8} {:>15} {:>15} {:>17} {:>17}\n"


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(make: Callable[[bool], SignedDistance], points: ndarray, triangles: ndarray) -> ndarray:
    """[2, 4] of libigl and of ours: seconds of winding numbers, of distances; greatest error, wrong share."""
    some = slice(None, None, 17)
    corners = np.arange(3 * len(triangles)).reshape(-1, 3)
    truth = igl.winding_number(triangles.reshape(-1, 3), corners, points[some])
    rows = []
    for compiled in (False, True):
        queries = make(compiled).queries
        both = [seconds(lambda q=queries: q.winding(points)), seconds(lambda q=queries: q.distances(points))]
        found = queries.winding(points[some])
        rows.append([*both, np.abs(found - truth).max(), ((found > 0.5) != (truth > 0.5)).mean()])
    return np.array(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.insides", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=40)
    arguments = parser.parse_args(argv)
    config, rows = DataConfig(), []
    heads = ("winding ms", "distance ms", "error", "wrong side")
    sys.stdout.write(ROW.format("libigl / compiled", "faces", *heads))
    for source in find_sources(arguments.folder, SplitFractions())[0][:: arguments.every]:
        mesh = read(source, arguments.folder, config)
        make = lambda compiled, mesh=mesh: signed_distance(mesh, thickness=0.02, compiled=compiled)  # noqa: E731
        distance = make(False)
        mesh = mesh.flip(distance.turned)
        points, _ = sdf_samples(mesh, distance, config.num_sdf, np.random.default_rng(0))
        row = compare(make, points.astype(np.float64), np.asarray(mesh.triangles, np.float64))
        rows.append(row)
        sys.stdout.write(ROW.format(source.path[-36:], f"{len(mesh.faces):,}", *_cells(row)))
        sys.stdout.flush()
    if rows:
        stacked = np.array(rows)
        mean = stacked.mean(axis=0)
        mean[:, 2] = stacked[:, :, 2].max(axis=0)
        sys.stdout.write(ROW.format(f"{len(rows)} assets: means, greatest error", "", *_cells(mean)))


def _cells(row: ndarray) -> list[str]:
    """The four columns of one line."""
    formats = ("{:.1f}", "{:.1f}", "{:.4f}", "{:.4%}")
    scaled = row * [1000, 1000, 1, 1]
    return [
        " / ".join(form.format(value) for value in pair) for form, pair in zip(formats, scaled.T, strict=True)
    ]


if __name__ == "__main__":
    main()
