"""python -m benchmarks.speed [--quick]: one table of medians, in CPU seconds of one thread.

CPU seconds don't depend on what else the machine does; --quick runs everything once at a small size, so that
tests can keep it working.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh

from data_prep.formats.load import load_mesh
from data_prep.geometry.normalize import normalize
from data_prep.procedural.dataset import glb_bytes, make_asset
from data_prep.render.views import render_views
from sampling.mesh import MeshConfig, field_to_mesh
from sampling.texture import bake, unwrap
from shapeloom import viewpoints
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.storage import write_atomic
from shapeloom.viewpoints import fitting_distance

FOV = 0.7


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Returns the median CPU seconds of a call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def bumpy_sphere(points: torch.Tensor) -> torch.Tensor:
    """Returns a signed distance (to first order) with detail at every direction. points [n, 3]."""
    return points.norm(dim=-1) - 0.7 - 0.05 * torch.sin(9 * points).prod(dim=-1)


def color_by_place(points: torch.Tensor) -> torch.Tensor:
    """Returns sRGB in [0, 1] that varies with place. points [n, 3]."""
    return 0.5 + 0.5 * torch.sin(5 * points)


def bench_views(folder: Path, size: int, repeats: int) -> list[tuple[str, float, str]]:
    """Rendering of training views, by the number of faces."""
    rows = []
    scene, _, _ = make_asset("chair", "blue", np.random.default_rng(0))
    path = folder / "asset.glb"
    write_atomic(path, glb_bytes(scene))
    sphere = folder / "sphere.ply"
    trimesh.creation.icosphere(subdivisions=5).export(sphere)
    poses = viewpoints.ring(4, distance=fitting_distance(FOV))
    matrix = viewpoints.intrinsics(FOV, size, size)
    for file in (path, sphere):
        mesh, _ = normalize(load_mesh(file))
        seconds = median_seconds(
            lambda mesh=mesh: render_views(mesh, poses, matrix, size=size, supersample=2), repeats
        )
        name = f"RGBA + depth view, {size}x{size}, 2x2 rays a pixel, {len(mesh.faces):,} faces"
        rows.append((name, seconds / 4, f"{4 / seconds:.0f} views/s"))
    return rows


def bench_decoder(size: int, resolution: int, repeats: int) -> list[tuple[str, float, str]]:
    """Fields to pixels and surfaces, untrained weights: the cost depends on what is occupied."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig()).eval()
    weights = decoder.weights(torch.randn(1, 64, 16).tanh())
    points = torch.rand(1, 1 << 14, 3) * 2 - 1
    with torch.no_grad():
        query = median_seconds(lambda: decoder.geometry(weights, points), repeats)
    rows = [
        (
            "field's geometry, 64 wide, 4 layers, 16,384 points",
            query,
            f"{query / (1 << 14) * 1e9:.0f} ns a point",
        )
    ]
    poses = ring(1, distance=fitting_distance(FOV))[None]
    matrix = intrinsics(FOV, size, size)[None, None]
    render = median_seconds(lambda: decoder.render(weights, poses, matrix, size, size), repeats)
    rows.append((f"volume render, {size}x{size}", render, ""))
    config = MeshConfig(resolution=resolution, max_faces=10_000)
    mesh = field_to_mesh(bumpy_sphere, color_by_place, config)
    seconds = median_seconds(lambda: field_to_mesh(bumpy_sphere, color_by_place, config), repeats)
    rows.append((f"surface at {resolution}^3 and simplification to {len(mesh.faces):,} faces", seconds, ""))
    atlas = unwrap(mesh.vertices, mesh.faces, size=512)
    seconds = median_seconds(lambda: unwrap(mesh.vertices, mesh.faces, size=512), repeats)
    rows.append((f"texture atlas of {len(mesh.faces):,} faces", seconds, ""))
    seconds = median_seconds(lambda: bake(mesh, atlas, color_by_place, size=512), repeats)
    rows.append(("texture baking, 512x512", seconds, ""))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, once each")
    quick = parser.parse_args(argv).quick
    torch.set_num_threads(1)
    repeats = 1 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        rows = bench_views(Path(folder), 32 if quick else 256, repeats)
    rows += bench_decoder(16 if quick else 64, 32 if quick else 128, repeats)
    width = max(len(name) for name, _, _ in rows)
    for name, seconds, note in rows:
        sys.stdout.write(f"{name:<{width}}  {1000 * seconds:9.2f} ms  {note}\n")


if __name__ == "__main__":
    main()
