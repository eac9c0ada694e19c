"""python -m benchmarks.experiments.refinement --run RUN --out OUT --set guide=clip ...: does it improve?

Samples of held-out captions, the first of an order drawn by a seed, are refined by `sampling.refine` with the
settings given. Starts and results are measured:

    judge      mean cosine of 8 fixed views with the caption, by RUN/eval/judge, as the command does
    frechet    Frechet distance of normal maps (8 fixed views) to those of held-out assets, by the judge's
               image tower, and by convolutions that nothing has trained (`eval.backbones`)

with 95% intervals and paired differences, by a bootstrap of captions. OUT/KEY is a run of `sampling.refine`;
the same command goes on where it was killed. Writes table.md, results.json and shapes.png: the true object,
then start and result, each with its normals. CPU seconds are those of this process.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from benchmarks.experiments.distillation import Prompt, pictures_of, read_prompts, shapes_of
from benchmarks.experiments.pictures import told
from eval.backbones import Backbone, BackboneConfig, load_backbone
from eval.distributions import Gaussian, Moments, percentile_interval
from eval.sets import draw_assets
from sampling.mesh import MeshConfig
from sampling.pictures import png, side_by_side
from sampling.pipeline import ShapePipeline
from sampling.refine.__main__ import main as refine
from sampling.shape import ShapeSample
from shapeloom.config import run_main
from shapeloom.pictures import on_white
from shapeloom.seed import numpy_rng
from shapeloom.storage import write_atomic
from shapeloom.surface_metrics import map_cameras, normal_maps
from shapeloom.surfaces import Surface, read_surface

DRAWS = 1000
SURFACE = MeshConfig(texture_size=0)
Pictures = UInt8[ndarray, "views size size 3"]
Features = Float[ndarray, "shapes views features"]


def as_picture(surface: Surface) -> Pictures:
    """Returns a surface's normal maps as pictures on white; white where there is none."""
    maps = normal_maps(surface, map_cameras())
    seen = np.where((maps != 0).any(axis=-1, keepdims=True), (maps + 1) / 2, 1.0)
    return (255 * seen).round().astype(np.uint8)


def normals_of(shape: ShapeSample) -> Pictures:
    """Of the mesh that would be exported."""
    mesh = shape.mesh(SURFACE).mesh
    return as_picture(Surface.of_mesh(mesh.vertices, mesh.faces))


def features(pictures: Sequence[Pictures], network: Backbone) -> Features:
    """Returns the network's vectors of each shape's pictures."""
    return np.stack([network(each) for each in pictures])


def frechet(
    starts: Features, ends: Features, reference: Features, *, seed: int = 0
) -> tuple[dict[str, float], tuple[float, float]]:
    """Returns both sets' distances to the reference, and the interval of their difference.

    The same captions are drawn for both, so that what copies add to a distance cancels.
    """
    origin = reference.mean(axis=(0, 1))

    def moments(shapes: Features) -> list[Moments]:
        return [Moments.of(each.astype(np.float64) - origin) for each in shapes]

    true = moments(reference)
    gaussian = Gaussian(Moments.merged(true, np.ones(len(true), np.int64)))
    parts, num = (moments(starts), moments(ends)), len(starts)

    def distances(copies: ndarray) -> list[float]:
        return [gaussian.frechet(Moments.merged(each, copies)) for each in parts]

    before, after = distances(np.ones(num, np.int64))
    drawn = numpy_rng("refinement", seed).multinomial(num, np.full(num, 1 / num), size=DRAWS)
    pairs = np.array([distances(copies) for copies in drawn])
    draws = pairs[:, 1] - pairs[:, 0]
    centred = draws - draws.mean() + (after - before)
    return {"before": before, "after": after}, percentile_interval(centred)


def refined(prompt: Prompt, options: argparse.Namespace) -> Path:
    """Returns the folder of a finished refinement; made, or gone on with."""
    out: Path = options.out / prompt.key
    settings = ["formats=[safetensors]", "mesh.resolution=64", "turntable.size=64", *options.set]
    refine([
        "--model", str(options.run), "--prompt", prompt.caption, "--out", str(out),
        "--seed", str(options.seed), "--set", *settings,
    ])  # fmt: skip
    return out


def lines_of(
    scores: Float[ndarray, "captions 2"], distances: dict[str, tuple[dict[str, float], tuple[float, float]]]
) -> list[str]:
    """Returns the table."""
    before, after = scores.T
    rows = [f"| judge | {told(before)} | {told(after)} | {told(after - before, signed=True)} |"]
    for name, (values, (low, high)) in distances.items():
        change = f"{values['after'] - values['before']:+.4f} [{low:+.4f}, {high:+.4f}]"
        rows.append(f"| frechet/normals/{name} | {values['before']:.4f} | {values['after']:.4f} | {change} |")
    return ["| measure | starts | refined | difference |", "|---|---|---|---|", *rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Refines all, measures them, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.refinement", description=__doc__)
    parser.add_argument(
        "--run", type=Path, required=True, help="a run with eval/judge, and what the guide needs"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--skip", type=int, default=0, help="captions drawn first that are left to others")
    parser.add_argument("--reference", type=int, default=1000, help="held-out assets, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of sampling.refine")
    options = parser.parse_args(argv)
    run: Path = options.run
    pipe = ShapePipeline.load(prior=run / "prior", encoder=run / "encoder", clip=run / "clip")
    prompts = read_prompts(run / "data", options.skip + options.prompts)[options.skip :]
    began, scores, sheet = time.process_time(), [], []
    maps: dict[str, list[Pictures]] = {"start": [], "end": []}
    for prompt in prompts:
        folder = refined(prompt, options)
        (record,) = json.loads((folder / "metadata.json").read_text())["samples"]
        scores.append((record["score_before"], record["score_after"]))
        pair = dict(zip(maps, (part[0] for part in shapes_of(folder, pipe)), strict=True))
        seen = [on_white(prompt.views)[0]]
        for name, shape in pair.items():
            maps[name].append(normals_of(shape))
            seen += [on_white(pictures_of([shape])[0])[1], maps[name][-1][1]]
        sheet.append(side_by_side(seen, size=96))
        print(f"{prompt.caption}: judge {scores[-1][0]:.3f} to {scores[-1][1]:.3f}", flush=True)
        write_atomic(options.out / "shapes.png", png(np.concatenate(sheet)))
    seconds = time.process_time() - began
    held_out = draw_assets(run / "data", ("val", "test"), options.reference, seed=0)
    true = [as_picture(read_surface(shards, index)) for shards, index in held_out]
    distances = {}
    for config in (
        BackboneConfig(kind="clip", file=str(run / "eval" / "judge")),
        BackboneConfig(kind="seeded"),
    ):
        network = load_backbone(config)
        sets = [features(each, network) for each in (maps["start"], maps["end"], true)]
        distances[config.kind] = frechet(*sets)
    lines = lines_of(np.array(scores), distances)
    worse = sum(after < before for before, after in scores)
    lines.append(
        f"\n{len(scores)} shapes, {worse} below their starts; {seconds / len(scores):.0f} CPU-s a shape"
    )
    print(*lines, sep="\n")
    write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
    write_atomic(
        options.out / "results.json",
        json.dumps({"captions": [p.caption for p in prompts], "scores": scores, "frechet": distances}),
    )


if __name__ == "__main__":
    run_main(main)
