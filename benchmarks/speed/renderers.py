"""python -m benchmarks.speed.renderers FOLDER: views by the compiled z-buffer against those by ray casting.

Every n-th asset of a folder of 3D files, in this process, on one thread: CPU milliseconds a view of both with
setting the mesh up, one right after the other and best of a few turns; PSNR of the covered pixels on white
against 256 samples a pixel by ray casting; the share of covered pixels that differs. --prepare compares
whole assets' preparation instead. --pictures keeps both beside each other, and their difference times 8.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.formats.load import load_mesh
from data_prep.geometry.normalize import normalize
from data_prep.mesh import Mesh
from data_prep.pipeline import DataConfig, try_asset
from data_prep.render.view_members import make_cameras
from data_prep.render.views import Backend, Views, render_views
from data_prep.sources.find import Source, SplitFractions, find_sources
from shapeloom.metrics import psnr
from shapeloom.pictures import on_white

BACKENDS: tuple[Backend, Backend] = ("embree", "zbuffer")
REFERENCE_VIEWS = 3


def read(source: Source, folder: Path, config: DataConfig) -> Mesh:
    """The asset as its views show it."""
    limits = config.limits
    mesh = load_mesh(
        folder / source.path, root=folder, up=config.up, rotation=source.rotation, max_faces=limits.max_faces,
        max_bytes=limits.max_megabytes << 20, max_texture=limits.max_texture,
    )  # fmt: skip
    return normalize(mesh)[0]


def compare(
    source: Source, mesh: Mesh, config: DataConfig, turns: int
) -> tuple[dict[str, float], list[Views]]:
    """CPU seconds a view and PSNR of both, and what share of the covered pixels differs."""
    poses, matrices = make_cameras(config, source.key, 0)
    size, few = config.resolution, slice(REFERENCE_VIEWS)
    row: dict[str, float] = {}
    pictures: dict[Backend, Views] = {}
    for _ in range(turns):
        for backend in BACKENDS:
            start = time.process_time()
            pictures[backend] = render_views(
                mesh, poses, matrices, size=size, supersample=config.supersample, backend=backend
            )
            seconds = (time.process_time() - start) / len(poses)
            row[backend] = min(seconds, row.get(backend, np.inf))
    truth = render_views(mesh, poses[few], matrices[few], size=size, supersample=16, backend="embree").rgba
    cast, drawn = (pictures[backend].rgba for backend in BACKENDS)
    for backend, rgba in zip(BACKENDS, (cast[few], drawn[few]), strict=True):
        seen = (truth[..., 3] > 0) | (rgba[..., 3] > 0)
        one, other = (on_white(picture)[seen][None] / 255.0 for picture in (rgba, truth))
        row[f"{backend} dB"] = float(psnr(one, other)) if seen.any() else np.inf
    seen = (cast[..., 3] > 0) | (drawn[..., 3] > 0)
    row["differ"] = (
        float((np.abs(cast.astype(int) - drawn).max(axis=-1)[seen] > 2).mean()) if seen.any() else 0.0
    )
    return row, [pictures[backend] for backend in BACKENDS]


def prepare(source: Source, folder: Path, config: DataConfig, turns: int) -> dict[str, float]:
    """CPU seconds of the whole preparation of one asset, with either renderer."""
    row: dict[str, float] = {}
    for _ in range(turns):
        for backend in BACKENDS:
            start = time.process_time()
            try_asset(source, folder, config.model_copy(update={"renderer": backend}))
            row[backend] = min(time.process_time() - start, row.get(backend, np.inf))
    return row


def side_by_side(both: Sequence[Views], view: int = 0) -> np.ndarray:
    """The same view by both, and how they differ, enlarged."""
    cast, drawn = (on_white(views.rgba[view]) for views in both)
    difference = 255 - np.minimum(8 * np.abs(cast.astype(int) - drawn), 255).astype(np.uint8)
    return np.concatenate([cast, drawn, difference], axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.renderers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--layers", action="store_true", help="only assets with see-through or cut-out parts")
    parser.add_argument("--prepare", action="store_true", help="compare the whole preparation")
    parser.add_argument("--pictures", type=Path, help="file for one view of each asset by both")
    parser.add_argument(
        "--set", nargs="*", default=["num_views=20", "resolution=256", "supersample=3"],
        help="keys of the data preparation's config",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    config = DataConfig(workers=0, **dict(pair.split("=") for pair in arguments.set))
    ratios, pictures = [], []
    for source in find_sources(arguments.folder, SplitFractions())[0][:: arguments.every]:
        mesh = read(source, arguments.folder, config)
        if arguments.layers and not mesh.cutoff.any():
            continue
        if arguments.prepare:
            row, note = prepare(source, arguments.folder, config, arguments.turns), ""
        else:
            row, both = compare(source, mesh, config, arguments.turns)
            note = f"  {row['embree dB']:5.2f} / {row['zbuffer dB']:5.2f} dB  {row['differ']:.3%} differ"
            pictures.append(side_by_side(both))
        ratios.append(row["embree"] / row["zbuffer"])
        milliseconds = f"{1000 * row['embree']:8.2f} / {1000 * row['zbuffer']:8.2f} ms  {ratios[-1]:5.2f}x"
        sys.stdout.write(f"{source.path[-36:]:36} {len(mesh.faces):8,} faces {milliseconds}{note}\n")
        sys.stdout.flush()
    if ratios:
        low, high = min(ratios), max(ratios)
        sys.stdout.write(
            f"{len(ratios)} assets: median {statistics.median(ratios):.2f}x, {low:.2f} to {high:.2f}\n"
        )
    if arguments.pictures and pictures:
        Image.fromarray(np.concatenate(pictures)).save(arguments.pictures)


if __name__ == "__main__":
    main()
