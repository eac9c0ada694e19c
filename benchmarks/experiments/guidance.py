"""python -m benchmarks.experiments.guidance --model RUN --classifier DIR --out DIR: what gradients add.

The same prompts and noise under different steering: classifier-free guidance alone, with a noisy classifier's
gradient (`guidance.classifier_scale`), with CLIP's (`guidance.clip_scale`). At scale 0 of the classifier-free
guidance the prior is unconditional, so that all comes from the gradient. RUN/eval's judge, which is not the
CLIP whose gradient is followed, says how often it finds each sample's own prompt among all of them (R@1), its
probes how often family and colour are right. Writes table.md and a picture of each setting's first samples.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eval.generation import judged_scores
from eval.judge import Judge, JudgeConfig, make_probes, pooled, refuse_conditioner
from eval.prompts import Prompt, choose_prompts
from eval.samples import GenerationConfig, make_samples
from sampling.guidance import GuidanceConfig
from sampling.pictures import contact_sheet, png
from sampling.pipeline import ShapePipeline
from shapeloom.clip import load_clip
from shapeloom.config import run_main
from shapeloom.decoder import RenderConfig
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic

SETTINGS = (
    (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 30.0), (0.0, 0.0, 100.0),
    (1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 2.0, 0.0), (1.0, 0.0, 30.0), (1.0, 0.0, 100.0),
    (3.0, 0.0, 0.0), (3.0, 1.0, 0.0), (3.0, 0.0, 30.0),
)  # fmt: skip
"""(guidance_scale, classifier_scale, clip_scale)."""
BATCH, SHEET = 10, 20


@dataclass
class TimedSampler:
    """Latents of prompts and seeds under one setting; counts its CPU seconds."""

    pipeline: ShapePipeline
    steps: int
    setting: tuple[float, float, float]
    seconds: float = 0.0

    def __call__(self, texts: list[str], seeds: list[int]) -> Tensor:
        """As `eval.samples.Sampler`."""
        start = time.process_time()
        scale, classifier, clip = self.setting
        shapes = self.pipeline(
            texts, seeds=seeds, steps=self.steps, sampler="dpmpp_2m", guidance_scale=scale,
            guidance=GuidanceConfig(classifier_scale=classifier, clip_scale=clip),
        )  # fmt: skip
        self.seconds += time.process_time() - start
        return torch.stack([shape.latent for shape in shapes])


def measure(
    sampler: TimedSampler, judge: Judge, prompts: Sequence[Prompt], shards: AssetShards, out: Path
) -> str:
    """Returns a setting's line of the table and writes its picture; samples in `out` are read, not remade."""
    config = GenerationConfig(
        num_prompts=len(prompts), batch_size=BATCH, samples=RenderConfig(coarse=32, fine=16)
    )
    name = "guidance_{:g}_classifier_{:g}_clip_{:g}".format(*sampler.setting)
    (out / name).mkdir(parents=True, exist_ok=True)
    decoder = sampler.pipeline.decoder
    texts = [prompt.text for prompt in prompts]
    _, pictures = make_samples(shards, decoder, lambda: sampler, texts, config, out / name)
    embeddings = judge.embed(pictures)
    text = judge.clip.text(texts).pooled.cpu()
    of_prompt = torch.arange(len(prompts)).numpy()
    scores = judged_scores(judge, embeddings, (pooled(embeddings) @ text.T).numpy(), prompts, of_prompt)
    sheet = contact_sheet(list(pictures[:SHEET, 0]), [prompt.text for prompt in prompts[:SHEET]])
    write_atomic(out / f"{name}.png", png(sheet))
    numbers = [scores["r_at_1"], scores["family_accuracy"], scores["colour_accuracy"]]
    cost = f"{sampler.seconds / len(prompts):.2f}" if sampler.seconds else "-"
    return (
        "| " + " | ".join([*(f"{n:g}" for n in sampler.setting), *(f"{n:.3f}" for n in numbers), cost]) + " |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures setting by setting; prints the table as it grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.guidance", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a run folder with its data and evaluation")
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=40, help="prompts, one sample each")
    parser.add_argument("--steps", type=int, default=12, help="evaluations of DPM-Solver++ 2M")
    options = parser.parse_args(argv)
    run: Path = options.model
    pipeline = ShapePipeline.load(
        prior=run / "prior", encoder=run / "encoder", clip=run / "clip", classifier=options.classifier
    )
    clip = load_clip(run / "eval" / "judge")
    refuse_conditioner(clip.digest, pipeline.clip.digest)
    probes, skipped = make_probes(AssetShards(run / "data", "judge"), clip, JudgeConfig())
    judge, shards = Judge(clip, probes, skipped), AssetShards(run / "data")
    prompts = choose_prompts(shards.rows, options.num, seed=0)
    lines = ["| guidance | classifier | CLIP | R@1 | family | colour | CPU-s a sample |", "|---" * 7 + "|"]
    for setting in SETTINGS:
        sampler = TimedSampler(pipeline, options.steps, setting)
        lines.append(measure(sampler, judge, prompts, shards, options.out))
        print(lines[-1], flush=True)
        write_atomic(options.out / "table.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_main(main)
