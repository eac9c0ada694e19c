"""python -m benchmarks.experiments.settings --model RUN --out OUT SETTING ...: which settings sample best?

A SETTING is keys of `python -m sampling` in quotes, such as "guidance_scale=2 guidance.interval=[0.3,20]", no
blanks within one, or "weaker=DIR" for guidance away from an earlier prior. For each, the same captions of
training assets are sampled from the same noise, held as a set against the assets of the split "val"
(`eval.sets`), and looked at by RUN/eval's judge. So presets are chosen on "val". Writes table.md, and each
setting's samples, which are read when the same command goes on.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field as Key
from torch import Tensor

from eval.generation import compare_sets
from eval.judge import Judge, refuse_conditioner
from eval.samples import GenerationConfig, make_samples
from eval.sets import DrawnSets, SetsConfig, draw_sets
from sampling.guidance import SampleSettings
from sampling.pictures import contact_sheet, png
from sampling.pipeline import ShapePipeline
from shapeloom.clip import load_clip
from shapeloom.config import UserError, load_config, run_main
from shapeloom.decoder import RenderConfig
from shapeloom.log import start_logging
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic

SHEET = 40
MEASURES = (
    "caption_r_at_1",
    "frechet",
    "one_nna_cd",
    "mmd_cd",
    "cov_cd",
    "memorised",
    "one_piece",
    "num_empty",
)


class Setting(SampleSettings):
    """What is tried."""

    weaker: Path | None = Key(None, description="folder of a worse prior to guide away from (autoguidance)")


def measure(
    run: Path, out: Path, setting: Setting, sets: DrawnSets, config: GenerationConfig
) -> dict[str, Any]:
    """Returns the measures of a setting's samples, those of training assets in their place, and `seconds`."""
    pipeline = ShapePipeline.load(
        prior=run / "prior", encoder=run / "encoder", clip=run / "clip", weaker=setting.weaker
    )
    clip = load_clip(run / "eval" / "judge")
    refuse_conditioner(clip.digest, pipeline.clip.digest)
    captions = [shards.rows[index].captions[0] for shards, index in sets.training]
    # What was made by other networks, or of other sizes, is not read as if it were this one's.
    priors = "".join(each.digest[:8] for each in (pipeline.prior, pipeline.weaker) if each is not None)
    out = out / f"{priors}_{clip.digest[:8]}_{len(captions)}_{config.sets.points}"
    how, seconds = {name: value for name, value in setting if name != "weaker"}, 0.0

    def sample(prompts: list[str], seeds: list[int]) -> Tensor:
        nonlocal seconds
        start = time.process_time()
        shapes = pipeline(prompts, seeds=seeds, **how)
        seconds += time.process_time() - start
        return torch.stack([shape.latent for shape in shapes])

    latents, pictures = make_samples(
        AssetShards(run / "data"), pipeline.decoder, lambda: sample, captions, config, out
    )
    judge = Judge(clip, {}, {})
    scores, _ = compare_sets(sets, pipeline.decoder, judge, latents, pictures, config, out)
    write_atomic(out / "samples.png", png(contact_sheet(list(pictures[:SHEET, 0]), captions[:SHEET])))
    return scores | {"seconds": seconds / len(captions) or None}


def row(name: str, scores: dict[str, Any], prefix: str = "") -> str:
    """Returns a line of the table; dashes for what isn't there."""
    cells = [scores.get(prefix + measure) for measure in (*MEASURES, "seconds")]
    return f"| {name} | " + " | ".join("–" if c is None else f"{c:.4g}" for c in cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures setting by setting; prints each one's line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.settings", description=__doc__)
    parser.add_argument("settings", nargs="+", metavar="SETTING")
    parser.add_argument("--model", type=Path, required=True, help="a run folder with its data and evaluation")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=200, help="samples, at most as many as val has assets")
    parser.add_argument("--points", type=int, default=2048, help="of a surface")
    options = parser.parse_args(argv)
    start_logging()
    run: Path = options.model
    config = GenerationConfig(
        samples=RenderConfig(coarse=32, fine=16),
        sets=SetsConfig(max_samples=options.num, points=options.points),
    )
    settings = {text: load_config(Setting, None, text.split()) for text in options.settings}
    sets = draw_sets(run / "data", config.sets, seed=config.seed, splits=("val",))
    if isinstance(sets, str):
        raise UserError(f"{run / 'data'}: {sets}.")
    lines = [f"| setting | {' | '.join(MEASURES)} | CPU-s a sample |", "|---" * (2 + len(MEASURES)) + "|"]
    for text, setting in settings.items():
        scores = measure(run, options.out / text.replace("/", "_"), setting, sets, config)
        if len(lines) == 2:
            lines.append(row("training assets", scores, "training_"))
        lines.append(row(text, scores))
        write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
        print(lines[-1], flush=True)


if __name__ == "__main__":
    run_main(main)
