"""python -m benchmarks.speed.render: views a second of RGBA + depth + normal, by faces and renderer.

A textured, smooth blob is rendered from all around at 256 x 256, anti-aliased with 2 x 2 samples, in as many
one-thread processes as asked for; CPU seconds hardly depend on what else the machine does. Quality is the
PSNR of the covered pixels, on white, against ray casting with 16 x 16 samples. `--blender PYTHON` names
an interpreter that has Blender as a module (pip install "bpy==4.2.*" "numpy<2", in its own environment);
its Cycles then renders the same mesh, light and cameras without bounces.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.mesh import Mesh
from data_prep.render.lighting import STUDIO
from data_prep.render.raster import require
from data_prep.render.views import Backend, render_views
from data_prep.render.zbuffer import reason_against
from shapeloom.config import UserError
from shapeloom.metrics import psnr
from shapeloom.pictures import on_white
from shapeloom.viewpoints import fitting_distance, intrinsics, sphere

FOV = 0.7
REFERENCE_SPP = 256


def blob(num_faces: int) -> Mesh:
    """A bumpy sphere of about so many faces, with smooth normals and a texture of 1024 x 1024."""
    rows = max(2, round((num_faces / 4) ** 0.5))
    columns = 2 * rows
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0.02, 0.98, rows + 1))
    azimuth, polar = 2 * np.pi * u, np.pi * v
    radius = 0.8 * (1 + 0.1 * np.sin(5 * azimuth) * np.sin(4 * polar))
    across = np.sin(polar)
    points = radius[..., None] * np.stack(
        [across * np.cos(azimuth), across * np.sin(azimuth), np.cos(polar)], axis=-1
    )
    tangents = np.gradient(points, axis=1), np.gradient(points, axis=0)
    normals = np.cross(*tangents)
    normals = (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).reshape(-1, 3)
    corner = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1)
    quads = np.stack([corner, corner + columns + 1, corner + columns + 2, corner + 1], axis=1)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    uv = np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32)
    num = len(faces)
    return Mesh(
        vertices=points.reshape(-1, 3), faces=faces, tint=np.ones((num, 3, 3), np.float32),
        shading=normals[faces].astype(np.float32), uv=uv[faces], texture=np.zeros(num, np.int64),
        cutoff=np.zeros(num, np.float32), textures=[texture()],
    )  # fmt: skip


def texture() -> np.ndarray:
    """Soft noise of several octaves with a few hard patches, as painted surfaces have."""
    rng = np.random.default_rng(0)
    picture = np.zeros((1024, 1024, 3))
    for size, strength in ((8, 90), (64, 40), (512, 20)):
        noise = (rng.uniform(0, 1, (size, size, 3)) * 255).astype(np.uint8)
        picture += strength / 255 * np.asarray(Image.fromarray(noise).resize((1024, 1024)), float)
    y, x = np.mgrid[:1024, :1024] // 128
    picture += 80.0 * ((x + y) % 4 == 0)[..., None]
    return np.concatenate([picture, np.full((1024, 1024, 1), 255)], axis=-1).clip(0, 255).astype(np.uint8)


def cost(job: tuple[int, Backend, int, int]) -> tuple[float, float]:
    """CPU and wall seconds of rendering a blob's views, setting the mesh up included."""
    num_faces, backend, num_views, size = job
    mesh, poses = blob(num_faces), sphere(num_views, seed=0, distance=fitting_distance(FOV))
    matrix = intrinsics(FOV, size, size)
    render_views(mesh, poses[:1], matrix, size=size, supersample=2, backend=backend)
    wall, start = time.monotonic(), time.process_time()
    render_views(mesh, poses, matrix, size=size, supersample=2, backend=backend)
    return time.process_time() - start, time.monotonic() - wall


def quality(num_faces: int, backend: Backend, size: int, num_views: int = 4) -> float:
    """PSNR of the adaptive renderers at 2 x 2 samples, dB, against the ray caster at 16 x 16."""
    mesh, poses = blob(num_faces), sphere(num_views, seed=0, distance=fitting_distance(FOV))
    matrix = intrinsics(FOV, size, size)
    fine = render_views(mesh, poses, matrix, size=size, supersample=16, backend="embree")
    views = render_views(mesh, poses, matrix, size=size, supersample=2, backend=backend)
    return _psnr(views.rgba, fine.rgba)


def _psnr(rgba: np.ndarray, truth: np.ndarray) -> float:
    covered = (truth[..., 3] > 0) | (rgba[..., 3] > 0)
    picture, expected = (on_white(pixels)[covered][None] / 255.0 for pixels in (rgba, truth))
    return float(psnr(picture, expected))


def blender(python: str, num_faces: int, size: int, num_views: int = 4) -> list[str]:
    """Rows of Cycles at several numbers of samples."""
    mesh, poses = blob(num_faces), sphere(num_views, seed=0, distance=fitting_distance(FOV))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / "scene.npz", vertices=mesh.vertices, faces=mesh.faces, uv=mesh.uv, poses=poses,
            normals=mesh.shading, lights=STUDIO.directions, intensities=STUDIO.intensities,
            ambient=STUDIO.ambient, fov=FOV, size=size,
        )  # fmt: skip
        Image.fromarray(mesh.textures[0]).save(folder / "texture.png")
        script = Path(__file__).with_name("render_blender.py")
        samples = [1, 4, 16, 64, REFERENCE_SPP]
        subprocess.run(
            [python, str(script), name, json.dumps(samples)], check=True, stdout=subprocess.DEVNULL
        )
        seconds = json.loads((folder / "seconds.json").read_text())
        pictures = [
            np.stack([np.asarray(Image.open(folder / f"{spp}_{v}.png")) for v in range(num_views)])
            for spp in samples
        ]
        for spp, spent, rgba in zip(samples[:-1], seconds, pictures, strict=False):
            rows.append(
                _row(num_faces, f"Blender Cycles, {spp} spp", spent, f"{_psnr(rgba, pictures[-1]):.1f} dB")
            )
    return rows


def _row(num_faces: int, name: str, seconds: float, note: str) -> str:
    return f"{num_faces:9,} {name:24} {1000 * seconds:8.1f} ms {1 / seconds:7.1f} views/s a core   {note}"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.render", description=__doc__)
    parser.add_argument("--faces", type=int, nargs="+", default=[5_000, 51_000, 500_000])
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--blender", help="a Python that has bpy")
    arguments = parser.parse_args(argv)
    backends: list[Backend] = ["embree"] if reason_against() else ["embree", "zbuffer"]
    try:
        require()
        backends.append("gl")
    except UserError as error:
        print(f"without OpenGL: {error}")
    for num_faces in arguments.faces:
        for backend in backends:
            job = (num_faces, backend, arguments.views, arguments.size)
            with get_context("spawn").Pool(arguments.processes) as pool:
                costs = pool.map(cost, [job] * arguments.processes, chunksize=1)
            cpu, wall = np.mean(costs, axis=0) / arguments.views
            note = f"{arguments.processes / wall:.0f} views/s by the clock in {arguments.processes} processes"
            if backend != "gl":
                note += f", {quality(num_faces, backend, arguments.size):.2f} dB"
            sys.stdout.write(_row(num_faces, backend, cpu, note) + "\n")
        if arguments.blender:
            sys.stdout.write("\n".join(blender(arguments.blender, num_faces, arguments.size)) + "\n")


if __name__ == "__main__":
    main()
