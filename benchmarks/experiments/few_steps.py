"""python -m benchmarks.experiments.few_steps --model RUN --out RUN/few_steps: quality by evaluations.

Two questions, of a trained prior:

- How far are a sampler's latents, as the decoder gets them, from its own at 256 evaluations, from the same
  noise (root mean square over all numbers)? Stochastic samplers draw new noise at each level, so theirs stays
  as large as two draws' difference.
- What does that cost? The Frechet distance between the judge's features of rendered samples and of rendered
  training latents, whose captions are the prompts; for the best samplers at 16 and at 256 evaluations, and
  for a distilled prior (`--distilled`). `--num 0` leaves this out; it needs RUN/eval/judge and RUN/latents.

An evaluation is one guided step: two network calls, but one of a distilled prior. Writes table.md,
figures.json and curve.svg as far as they are known, after each part. The demo's takes 40 minutes of a core.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from eval.distributions import frechet_distance
from eval.judge import embed_views, pooled
from sampling.pipeline import ShapePipeline
from shapeloom.clip import Clip, load_clip
from shapeloom.config import UserError, run_main
from shapeloom.decoder import Decoder, RenderConfig
from shapeloom.diffusion.samplers import SamplerName
from shapeloom.diffusion.steps import StepChoice
from shapeloom.pictures import to_uint8
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import write_atomic
from shapeloom.viewpoints import fitting_distance

EVALUATIONS = (4, 8, 16, 32, 64)
TRUTH, FEW, NUM_BEST, BATCH = 256, 16, 3, 50
PROMPTS = (
    "a red chair", "a blue table", "a green car", "a yellow house", "an orange mug", "a purple lamp",
    "a brown tree", "a gray tower",
)  # fmt: skip
STOCHASTIC = ("ddpm", "dpmpp_2m_sde")
FOV, SIZE, ELEVATION_DEGREES = 0.7, 48, 20.0
Row = tuple[SamplerName, StepChoice, list[float]]


def steps_for(sampler: SamplerName, evaluations: int) -> int:
    """Steps that take about so many evaluations: Heun's take two each, but the last, which ends at 0."""
    return max(1, evaluations // 2) if sampler == "heun" else evaluations


def latents(
    pipeline: ShapePipeline, prompts: Sequence[str], sampler: SamplerName, choice: StepChoice,
    evaluations: int, scale: float,
) -> Tensor:  # fmt: skip
    """[prompts, tokens, channels]: one sample a prompt, seeds 0, 1, ..."""
    parts = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        shapes = pipeline(
            some, seeds=range(start, start + len(some)), steps=steps_for(sampler, evaluations),
            guidance_scale=scale, sampler=sampler, step_choice=choice,
        )  # fmt: skip
        parts += [shape.latent for shape in shapes]
    return torch.stack(parts)


def error_rows(pipeline: ShapePipeline, arguments: argparse.Namespace) -> list[Row]:
    """A row a sampler and step choice: its error at each number of evaluations."""
    rows: list[Row] = []
    for choice in arguments.step_choices:
        for sampler in get_args(SamplerName):
            found = [
                latents(pipeline, arguments.prompts, sampler, choice, n, arguments.guidance_scale)
                for n in (*arguments.evaluations, arguments.truth)
            ]
            errors = [float((one - found[-1]).square().mean().sqrt()) for one in found[:-1]]
            rows.append((sampler, choice, errors))
    return rows


def best_rows(rows: Sequence[Row], column: int) -> list[Row]:
    """The deterministic samplers with the least error in a column, each with its best step choice."""
    best: dict[SamplerName, Row] = {}
    for row in sorted(rows, key=lambda row: row[2][column]):
        # Euler and DDIM are the same steps.
        if row[0] not in STOCHASTIC and row[0] != "ddim":
            best.setdefault(row[0], row)
    return list(best.values())[:NUM_BEST]


# ---------------------------------------------------------------- Frechet distances


@torch.no_grad()
def features(decoder: Decoder, judge: Clip, found: Tensor) -> np.ndarray:
    """The judge's vectors of one view of each latent; view i is from the i-th of eight sides."""
    poses = ring(8, elevation_degrees=ELEVATION_DEGREES, distance=fitting_distance(FOV))
    matrix, parts = intrinsics(FOV, SIZE, SIZE), []
    for start in range(0, len(found), BATCH):
        some = found[start : start + BATCH]
        views = poses[(start + torch.arange(len(some))) % 8][:, None]
        rendering = decoder.render(
            decoder.weights(some), views, matrix.expand(len(some), 1, 3, 3), SIZE, SIZE,
            samples=RenderConfig(coarse=40, fine=24),
        )  # fmt: skip
        parts.append(pooled(embed_views(judge, to_uint8(rendering.rgb.numpy()))).numpy())
    return np.concatenate(parts).astype(np.float64)


def frechet_rows(
    pipeline: ShapePipeline, rows: Sequence[Row], arguments: argparse.Namespace
) -> Iterator[tuple[str, int, float]]:
    """Yields (sampler, evaluations, Frechet distance to rendered training latents of the same captions)."""
    run = Path(arguments.model)
    judge, shards = load_clip(run / "eval" / "judge"), LatentShards(run / "latents", "train")
    known = [(row.captions[0], i) for i, row in enumerate(shards.rows) if row.captions][: arguments.num]
    if len(known) < 2:
        raise UserError(f"{run}/latents has {len(known)} captioned assets; Frechet distances need two.")
    prompts, truth = [text for text, _ in known], shards.load()["latent"][[i for _, i in known]].float()
    reference = features(pipeline.decoder, judge, truth)

    def measured(
        name: str, model: ShapePipeline, row: tuple[SamplerName, StepChoice], n: int, scale: float
    ) -> tuple[str, int, float]:
        found = features(model.decoder, judge, latents(model, prompts, *row, n, scale))
        return name, n, frechet_distance(found, reference)

    if arguments.distilled:
        few = ShapePipeline.load(prior=arguments.distilled, encoder=run / "encoder", clip=run / "clip")
        if few.prior.distilled is None:
            raise UserError(f"{arguments.distilled} isn't distilled: name what `prior.distill` wrote.")
        yield measured("distilled", few, ("euler", "karras"), few.prior.distilled.steps, 1.0)
    for sampler, choice, _ in best_rows(rows, arguments.evaluations.index(arguments.few)):
        for evaluations in (arguments.few, arguments.truth):
            row = (sampler, choice)
            yield measured(f"{sampler}, {choice}", pipeline, row, evaluations, arguments.guidance_scale)


# ---------------------------------------------------------------- what is written


def curve_svg(rows: Sequence[Row], evaluations: Sequence[int]) -> str:
    """Error by evaluations, both logarithmic: a line a sampler, at its best step choice."""
    lines = {row[0]: row[2] for row in sorted(rows, key=lambda row: -row[2][-1])}
    logs = [math.log10(max(error, 1e-9)) for errors in lines.values() for error in errors]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    reach = math.log2(evaluations[-1] / evaluations[0]) or 1.0

    def at(n: int, error: float) -> tuple[float, float]:
        share = (math.log10(max(error, 1e-9)) - low) / (high - low)
        return 60 + 340 * math.log2(n / evaluations[0]) / reach, 300 - 270 * share

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="560" height="350" font-family="sans-serif" '
             'font-size="12"><rect width="560" height="350" fill="white"/>']  # fmt: skip
    for power in range(low, high + 1):
        y = at(evaluations[0], 10.0**power)[1]
        parts.append(
            f'<path d="M60 {y:.1f}H400" stroke="#ddd"/><text x="12" y="{y + 4:.1f}">1e{power}</text>'
        )
    parts += [f'<text x="{at(n, 1)[0] - 6:.1f}" y="318">{n}</text>' for n in evaluations]
    parts.append('<text x="150" y="340">evaluations (latents\' RMS error up)</text>')
    for i, (name, errors) in enumerate(lines.items()):
        colour = f"hsl({i * 360 // len(lines)} 70% 40%)"
        points = " ".join("{:.1f},{:.1f}".format(*at(n, e)) for n, e in zip(evaluations, errors, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="415" y="{40 + 20 * i}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def tables(
    rows: Sequence[Row], distances: Sequence[tuple[str, int, float]], evaluations: Sequence[int]
) -> str:
    """Both tables as Markdown."""
    lines = ["| sampler | levels |" + "".join(f" {n} |" for n in evaluations)]
    lines.append("|---|---|" + "---|" * len(evaluations))
    for sampler, choice, errors in rows:
        lines.append(f"| {sampler} | {choice} |" + "".join(f" {error:.4f} |" for error in errors))
    if distances:
        lines += ["", "| prior and sampler | evaluations | Frechet distance |", "|---|---|---|"]
        lines += [f"| {name} | {n} | {distance:.4f} |" for name, n, distance in distances]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a run with a prior")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and the curve")
    parser.add_argument("--distilled", type=Path, help="folder that prior.distill wrote")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--truth", type=int, default=TRUTH, help="evaluations of what is compared with")
    parser.add_argument("--few", type=int, default=FEW, help="evaluations whose Frechet distance is measured")
    parser.add_argument("--num", type=int, default=500, help="samples of a Frechet distance; 0: none")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS))
    parser.add_argument("--step-choices", nargs="+", choices=get_args(StepChoice),
                        default=list(get_args(StepChoice)))  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.few not in arguments.evaluations:
        raise UserError(f"--few {arguments.few} must be one of --evaluations {arguments.evaluations}.")
    run = Path(arguments.model)
    if arguments.num and not ((run / "eval" / "judge").is_dir() and (run / "latents").is_dir()):
        raise UserError(
            f"Frechet distances need {run}/latents and {run}/eval/judge: run `python -m eval` first, or "
            "leave them out with --num 0."
        )
    pipeline = ShapePipeline.from_pretrained(arguments.model)
    rows = error_rows(pipeline, arguments)
    distances: list[tuple[str, int, float]] = []
    write_atomic(arguments.out / "curve.svg", curve_svg(rows, arguments.evaluations))
    write(rows, distances, arguments)
    for distance in frechet_rows(pipeline, rows, arguments) if arguments.num else ():
        distances.append(distance)
        write(rows, distances, arguments)
    sys.stdout.write((arguments.out / "table.md").read_text())


def write(
    rows: Sequence[Row], distances: Sequence[tuple[str, int, float]], arguments: argparse.Namespace
) -> None:
    """Both tables and the figures, as far as they are known."""
    write_atomic(arguments.out / "table.md", tables(rows, distances, arguments.evaluations))
    write_atomic(arguments.out / "figures.json", json.dumps({"errors": rows, "frechet": distances}, indent=1))


if __name__ == "__main__":
    run_main(main)
