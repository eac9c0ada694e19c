"""python -m benchmarks.speed.glb --model RUN: what a textured GLB of a latent costs, by its number of faces.

Wall-clock seconds (the median of --repeats) and CPU seconds of one thread, from latent to bytes, and the peak
memory of this process so far, which includes the libraries.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Sequence

import torch

from sampling.mesh import MeshConfig
from sampling.pipeline import ShapePipeline

SIZES = (
    MeshConfig(resolution=96, max_faces=10_000, texture_size=512),
    MeshConfig(resolution=192, max_faces=50_000, texture_size=1024),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line a size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.glb", description=__doc__)
    parser.add_argument("--model", required=True, help="a run or saved pipeline folder")
    parser.add_argument("--prompt", default="a red chair")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of faces, resolution and texture")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    pipeline = ShapePipeline.from_pretrained(options.model)
    (shape,) = pipeline(options.prompt, steps=options.steps)
    for size in SIZES:
        config = MeshConfig(
            resolution=max(16, int(size.resolution * options.scale)),
            max_faces=max(20, int(size.max_faces * options.scale)),
            texture_size=int(size.texture_size * options.scale),
        )
        walls, cpus = [], []
        for _ in range(options.repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            mesh = shape.mesh(config)
            data = mesh.glb()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(
            f"{mesh.num_faces:,} faces, {config.resolution}^3, texture {config.texture_size}: "
            f"{statistics.median(walls):.2f} s, {statistics.median(cpus):.2f} CPU-s, "
            f"{len(data) >> 10} kB, peak {peak} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
