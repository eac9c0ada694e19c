"""python -m benchmarks.speed.prep_stages FOLDER: CPU seconds of each step, and peak memory.

Of data preparation. Runs in this process, on one thread, over every n-th asset of a folder of 3D files.
"""

import argparse
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_prep import pipeline
from data_prep.failures import Failure
from data_prep.pipeline import DataConfig, try_asset
from data_prep.render import view_members
from data_prep.sources.find import SplitFractions, find_sources

STAGES = {
    "load": (pipeline, "load_mesh"), "SDF: topology": (pipeline, "signed_distance"),
    "SDF: samples": (pipeline, "sdf_samples"), "points": (pipeline, "surface_points"),
    "views": (view_members, "render_views"), "encode": (pipeline, "encode_member"),
    "depth to PNG": (view_members, "depth_to_png"),
}  # fmt: skip


@contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Adds up the CPU seconds of each stage's function while it lasts."""
    before = {stage: getattr(module, name) for stage, (module, name) in STAGES.items()}

    def wrap(stage: str):
        def run(*args, **kwargs):
            start = time.process_time()
            try:
                return before[stage](*args, **kwargs)
            finally:
                seconds[stage] += time.process_time() - start

        return run

    try:
        for stage, (module, name) in STAGES.items():
            setattr(module, name, wrap(stage))
        yield
    finally:
        for stage, (module, name) in STAGES.items():
            setattr(module, name, before[stage])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.prep_stages", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args(argv)
    config = DataConfig(
        num_views=arguments.views, resolution=arguments.size, supersample=2, normals=True, workers=0
    )
    sources, _ = find_sources(arguments.folder, SplitFractions())
    chosen = sources[:: arguments.every]
    seconds: dict[str, float] = defaultdict(float)
    failures, size, slowest = [], 0, (0.0, "")
    start = time.process_time()
    with timed(seconds):
        for source in chosen:
            before = time.process_time()
            sample = try_asset(source, arguments.folder, config)
            slowest = max(slowest, (time.process_time() - before, source.path))
            if isinstance(sample, Failure):
                failures.append(sample)
            else:
                size += sum(len(data) for data in sample.values() if isinstance(data, bytes))
    total = time.process_time() - start
    seconds["rest"] = total - sum(seconds.values())
    lines = [f"{stage:14} {1000 * spent / len(chosen):8.0f} ms an asset  {spent / total:4.0%}"
             for stage, spent in seconds.items()]  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    num = len(chosen)
    lines.append(
        f"{num} assets of {len(sources)}: {total / num:.2f} CPU-s and {size / num / 1e6:.2f} MB each, "
        f"{len(failures)} failed, slowest {slowest[0]:.1f} s ({slowest[1]}), peak memory {peak:.0f} MB"
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
