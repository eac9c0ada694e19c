"""python -m benchmarks.experiments.distillation --run RUN --out OUT: SDS at its high scale against VSD.

ProlificDreamer's claims (Wang et al. 2023) by our own text-to-view model (RUN/views) on held-out captions: a
few samples of each (particles; VSD's know of one another) are refined by `sampling.refine`, their matrices
moving, once by SDS at scale 100 and once by VSD at 7.5. Eight views of every shape are measured:

    saturation  mean of HSV's S over the object's pixels
    sharpness   mean absolute Laplacian of brightness within the object
    diversity   mean 1 - cosine between a prompt's particles, by the judge's vectors (RUN/eval/judge)
    judge       mean cosine of the views with the prompt

beside the samples that they start from and the true views of each caption's asset. Means over prompts with
95% intervals (bootstrap), and VSD's paired difference to SDS. OUT/PROMPT/ARM are runs of `sampling.refine`;
the same command goes on where it was killed. Writes table.md, shapes.png and results.json.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from scipy.ndimage import binary_erosion, laplace

from benchmarks.experiments.pictures import told
from eval.sets import draw_assets
from sampling.pictures import png, side_by_side
from sampling.pipeline import ShapePipeline
from sampling.refine.__main__ import main as refine
from sampling.refine.scores import SCORE_VIEWS
from sampling.shape import FOV, ShapeSample, read_latent, render_shapes
from shapeloom.clip import Clip, load_clip
from shapeloom.config import run_main
from shapeloom.pictures import on_white
from shapeloom.rendering.cameras import ring
from shapeloom.storage import write_atomic
from shapeloom.viewpoints import fitting_distance

ARMS = {"sds": 100.0, "vsd": 7.5}
"""The scale of guidance of each."""
NAMES = {"truth": "true views", "start": "samples", "sds": "SDS, scale 100", "vsd": "VSD, scale 7.5"}
MEASURES = ("saturation", "sharpness", "diversity", "judge")
SIZE = 64


@dataclass(frozen=True)
class Prompt:
    """A held-out asset's fullest caption, and the true views."""

    key: str
    caption: str
    views: UInt8[np.ndarray, "views size size 4"]


def saturation(rgba: UInt8[np.ndarray, "views size size 4"]) -> float:
    """Returns the mean of HSV's S over pixels with alpha > 0.5; 0 without any."""
    colours = rgba[rgba[..., 3] > 127][:, :3].astype(float)
    if not len(colours):
        return 0.0
    high, low = colours.max(-1), colours.min(-1)
    return float(np.mean((high - low) / np.maximum(high, 1)))


def sharpness(rgba: UInt8[np.ndarray, "views size size 4"]) -> float:
    """Returns the mean absolute Laplacian of brightness in [0, 1], two pixels inside of the object; or 0."""
    found = []
    for view in rgba:
        inside = binary_erosion(view[..., 3] > 127, iterations=2)
        found.append(np.abs(laplace(view[..., :3].mean(-1) / 255))[inside])
    values = np.concatenate(found)
    return float(values.mean()) if len(values) else 0.0


def measured(
    pictures: Sequence[UInt8[np.ndarray, "views size size 4"]], caption: str, judge: Clip
) -> dict[str, float]:
    """Returns the measures of a prompt's shapes; diversity is nan of a single one."""
    seen = [judge.image(on_white(views)).cpu() for views in pictures]
    wanted = judge.text([caption]).pooled[0].cpu()
    means = torch.nn.functional.normalize(torch.stack([each.mean(0) for each in seen]), dim=-1)
    apart = (1 - means @ means.T)[~torch.eye(len(means), dtype=torch.bool)]
    return {
        "saturation": float(np.mean([saturation(each) for each in pictures])),
        "sharpness": float(np.mean([sharpness(each) for each in pictures])),
        "diversity": float(apart.mean()),
        "judge": float(np.mean([float((each @ wanted).mean()) for each in seen])),
    }


def pictures_of(shapes: Sequence[ShapeSample]) -> list[UInt8[np.ndarray, "views size size 4"]]:
    """Returns views of each shape, with straight alpha."""
    poses = ring(SCORE_VIEWS, distance=fitting_distance(FOV))
    return [render_shapes([s], poses, height=SIZE, width=SIZE, alpha=True)[0] for s in shapes]


def read_prompts(data: Path, num: int) -> list[Prompt]:
    """Returns held-out captions, of an asset each."""
    found = []
    for shards, index in draw_assets(data, ("val", "test"), num, seed=0):
        sample = shards.read(index, views=range(min(SCORE_VIEWS, shards.num_views)))
        assert sample.rgba is not None  # asked for
        found.append(Prompt(sample.row.key, (sample.row.captions or [""])[0], sample.rgba))
    return found


def refined(arm: str, prompt: Prompt, options: argparse.Namespace) -> Path:
    """Returns the folder of a finished refinement; made, or gone on with."""
    out: Path = options.out / prompt.key / arm
    settings = {
        "optimise": "matrices", "estimator.kind": arm, "estimator.scale": ARMS[arm],
        "particles": options.particles, "views": options.views, "rate": options.rate,
        "formats": "[safetensors]", "guide": str(options.run / "views"),
        "log_every": 1, "mesh.resolution": SIZE, "turntable.size": SIZE,
    }  # fmt: skip
    refine([
        "--model", str(options.run), "--prompt", prompt.caption, "--out", str(out),
        "--iterations", str(options.iterations), "--seed", str(options.seed),
        "--set", *(f"{key}={value}" for key, value in settings.items()),
    ])  # fmt: skip
    return out


def shapes_of(folder: Path, pipe: ShapePipeline) -> tuple[list[ShapeSample], list[ShapeSample]]:
    """Returns a refinement's starts and results."""
    records = json.loads((folder / "metadata.json").read_text())["samples"]
    files = [Path(folder, record["files"]["safetensors"]) for record in records]
    begun = [Path(folder, record["start"]) for record in records]
    starts, ends = ([read_latent(path, pipe.decoder) for path in each] for each in (begun, files))
    return starts, ends


def lines_of(rows: list[dict[str, dict[str, float]]]) -> list[str]:
    """Returns the table of prompts' measures so far."""
    lines = ["| shapes | " + " | ".join(MEASURES) + " |", "|---" * (1 + len(MEASURES)) + "|"]

    def cells(name: str) -> list[np.ndarray]:
        return [np.array([row[name][key] for row in rows if name in row]) for key in MEASURES]

    for name, label in NAMES.items():
        shown = ["" if np.isnan(values).any() else told(values) for values in cells(name)]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    pairs = zip(cells("vsd"), cells("sds"), strict=True)
    apart = [
        "" if np.isnan(ours - theirs).any() else told(ours - theirs, signed=True) for ours, theirs in pairs
    ]
    return [*lines, "| VSD - SDS | " + " | ".join(apart) + " |"]


def main(argv: Sequence[str] | None = None) -> None:
    """Refines and measures prompt by prompt; prints the table as it grows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.distillation", description=__doc__
    )
    parser.add_argument("--run", type=Path, required=True, help="a run with views, and eval/judge")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--particles", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--views", type=int, default=4, help="pictures of each particle a step")
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    run: Path = options.run
    judge = load_clip(run / "eval" / "judge")
    pipe = ShapePipeline.load(prior=run / "prior", encoder=run / "encoder", clip=run / "clip")
    rows: list[dict[str, dict[str, float]]] = []
    sheet: list[UInt8[np.ndarray, "height width 3"]] = []
    for prompt in read_prompts(run / "data", options.prompts):
        ends = {arm: shapes_of(refined(arm, prompt, options), pipe) for arm in ARMS}
        seen = {"start": pictures_of(ends["sds"][0])} | {
            arm: pictures_of(each[1]) for arm, each in ends.items()
        }
        row = {name: measured(pictures, prompt.caption, judge) for name, pictures in seen.items()}
        rows.append({"truth": measured([prompt.views], prompt.caption, judge)} | row)
        shown = [prompt.views[0], *(views[1] for pictures in seen.values() for views in pictures)]
        sheet.append(side_by_side(list(on_white(np.stack(shown))), size=96))
        lines = lines_of(rows)
        print(f"{prompt.caption}: {len(rows)} of {options.prompts}", *lines, sep="\n", flush=True)
        write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
        write_atomic(options.out / "shapes.png", png(np.concatenate(sheet)))
        write_atomic(options.out / "results.json", json.dumps(rows))


if __name__ == "__main__":
    run_main(main)
