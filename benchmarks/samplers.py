"""python -m benchmarks.samplers --model RUN: each sampler's error by the number of network evaluations.

A sampler's latents, as the decoder gets them, are compared with its own at 256 evaluations, from the same
noise: root mean square over all numbers. Stochastic samplers draw new noise at each level, so theirs stays
as large as two draws' difference; they are left out. An evaluation is one guided step: two network calls.
"""

import argparse
from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from sampling.pipeline import ShapePipeline
from shapeloom.diffusion.samplers import SamplerName
from shapeloom.diffusion.steps import StepChoice

EVALUATIONS = (4, 8, 16, 32, 64)
TRUTH = 256
PROMPTS = (
    "a red chair", "a blue table", "a green car", "a yellow house", "an orange mug", "a purple lamp",
    "a brown tree", "a gray tower",
)  # fmt: skip
STOCHASTIC = ("ddpm", "dpmpp_2m_sde")


def steps_for(sampler: SamplerName, evaluations: int) -> int:
    """Steps that take about so many evaluations: Heun's take two each, but the last, which ends at 0."""
    return evaluations // 2 if sampler == "heun" else evaluations


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table, a row a sampler and step choice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a run, or a saved pipeline")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--truth", type=int, default=TRUTH, help="evaluations of what is compared with")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    arguments = parser.parse_args(argv)
    pipeline = ShapePipeline.from_pretrained(arguments.model)

    def latents(sampler: SamplerName, choice: StepChoice, evaluations: int) -> list[Tensor]:
        shapes = pipeline(
            arguments.prompts, steps=steps_for(sampler, evaluations), guidance_scale=arguments.guidance_scale,
            sampler=sampler, step_choice=choice,
        )  # fmt: skip
        return [shape.latent for shape in shapes]

    print("| sampler | levels |" + "".join(f" {n} |" for n in arguments.evaluations))
    print("|---|---|" + "---|" * len(arguments.evaluations))
    for choice in get_args(StepChoice):
        for sampler in get_args(SamplerName):
            if sampler in STOCHASTIC:
                continue
            truth = latents(sampler, choice, arguments.truth)
            errors = []
            for evaluations in arguments.evaluations:
                found = latents(sampler, choice, evaluations)
                squares = [float(((a - b) ** 2).mean()) for a, b in zip(found, truth, strict=True)]
                errors.append((sum(squares) / len(squares)) ** 0.5)
            print(f"| {sampler} | {choice} |" + "".join(f" {error:.4f} |" for error in errors))


if __name__ == "__main__":
    main()
