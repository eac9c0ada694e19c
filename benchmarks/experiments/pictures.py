"""python -m benchmarks.experiments.pictures --run RUN --out OUT [--prior DIR ...]: how much do pictures tell?

On held-out assets of a finished run (RUN: data, clip, encoder, eval/judge), for each prior (RUN/prior unless
named): a sample of each asset's caption, and of one, two and four of its views as pictures without caption;
with --views, of one and three that the view model made of it, as `sampling.views` turns any picture.

    Chamfer  between a sample's surface and the asset's own points (Chamfer-L1; the box is 2 wide)
    cosine   between the judge's vectors of the sample (four renders) and of its asset (views that the prior
             wasn't shown)
    R@1      how often a sample's own asset is the one of them with the largest cosine

and, asset by asset, how much better or worse each is than one picture. Then --busy assets are drawn anew, put
before backgrounds (`backgrounds`), cut out and shown to the last prior: the IoU of the matte, and the Chamfer
distance beside that of the clean cut-out. Intervals are 95%, bootstrap over assets. OUT keeps the samples;
the same command goes on where it was killed. Writes table.md, backgrounds.md and .png, and results.json.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.experiments.backgrounds import (
    Background,
    backdrop,
    cut_again,
    in_front,
    rendered,
)
from eval.judge import Judge, pooled, refuse_conditioner
from eval.samples import GenerationConfig, fixed_cameras
from eval.sets import SetsConfig, draw_assets, sample_clouds
from sampling.cutouts import PictureConfig, centred, cut_out, on_square
from sampling.pictures import png, side_by_side
from sampling.pipeline import Picture, ShapePipeline
from sampling.shape import ShapeSample, render_shapes
from sampling.views import ViewsConfig, turntable
from sampling.views import cut_out as cut_out_as_seen
from shapeloom.clip import load_clip
from shapeloom.config import UserError, run_main
from shapeloom.decoder import RenderConfig
from shapeloom.metrics import bootstrap_interval, chamfer_l1, ranks
from shapeloom.pictures import on_white
from shapeloom.seed import derive_seed
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic
from shapeloom.view_diffusion import ViewModel, load_view_model
from shapeloom.weights import read_tensors

SHOWN = (1, 2, 4)
"""Pictures of an object."""
MADE = "1 + 3 made"
CAPTION = "caption"
MEASURES = ("Chamfer", "cosine", "R@1")
BATCH = 32
SAMPLES = RenderConfig(coarse=32, fine=16)


@dataclass(frozen=True)
class Asset:
    """A held-out asset: its key, fullest caption, views on white and surface points."""

    key: str
    caption: str
    views: list[Picture]
    points: np.ndarray
    first: np.ndarray
    """Its first view with straight alpha, [size, size, 4], 8 bits."""


@dataclass(frozen=True)
class Bench:
    """What is compared, and with what."""

    run: Path
    out: Path
    assets: list[Asset]
    judge: Judge
    arguments: argparse.Namespace

    @cached_property
    def truth(self) -> Tensor:
        """The judge's vectors [assets, embed] of views that no prior is shown."""
        return pooled(
            self.judge.embed(np.stack([np.stack(each.views[max(SHOWN) :]) for each in self.assets]))
        )

    def samples(
        self, pipeline: ShapePipeline, name: str, images: Sequence[object] | None
    ) -> dict[str, Tensor]:
        """Returns `points` of each asset's sample and `pictures` of it; made once, then read.

        images: each asset's pictures; None: its caption.
        """
        path = self.out / f"{pipeline.prior.digest[:8]}_{name}.safetensors"
        if not path.is_file():
            shapes: list[ShapeSample] = []
            for start in range(0, len(self.assets), BATCH):
                part = slice(start, start + BATCH)
                shapes += pipeline(
                    [each.caption if images is None else "" for each in self.assets[part]],
                    seeds=[derive_seed("pictures", self.arguments.seed, a.key) for a in self.assets[part]],
                    steps=self.arguments.steps, sampler="dpmpp_2m", guidance_scale=self.arguments.guidance,
                    image=None if images is None else images[part],
                )  # fmt: skip
            write_atomic(path, save(self._look(pipeline, shapes)))
        return read_tensors(path)

    def _look(self, pipeline: ShapePipeline, shapes: Sequence[ShapeSample]) -> dict[str, Tensor]:
        poses, matrix = fixed_cameras(AssetShards(self.run / "data"), GenerationConfig(size=64))
        seen = [render_shapes([shape], poses, matrix, 64, 64, samples=SAMPLES)[0] for shape in shapes]
        latents = torch.stack([shape.latent for shape in shapes])
        clouds, _ = sample_clouds(pipeline.decoder, latents, SetsConfig(points=self.arguments.points))
        # A sample without a surface has one point at the centre.
        points = [np.resize(cloud, (self.arguments.points, 3)).astype(np.float32) for cloud in clouds]
        return {"points": torch.from_numpy(np.stack(points)), "pictures": torch.from_numpy(np.stack(seen))}

    def scores(self, samples: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Returns the measures of each asset's sample."""
        points = samples["points"].numpy()
        distances = [chamfer(own, asset.points) for own, asset in zip(points, self.assets, strict=True)]
        similarity = (pooled(self.judge.embed(samples["pictures"].numpy())) @ self.truth.T).numpy()
        found = ranks(similarity, np.arange(len(points))) == 0
        return dict(zip(MEASURES, (np.array(distances), similarity.diagonal(), 1.0 * found), strict=True))


def chamfer(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Chamfer-L1 of two clouds."""
    return float(chamfer_l1(cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]))


def read_assets(data: Path, num: int, points: int) -> list[Asset]:
    """Returns up to `num` held-out assets; raises UserError for data with too few views or points of each."""
    found = []
    for shards, index in draw_assets(data, ("val", "test"), num, seed=0):
        if shards.num_views <= max(SHOWN):
            raise UserError(
                f"{data} has {shards.num_views} views of each asset; at least {max(SHOWN) + 1} are needed."
            )
        sample = shards.read(index, views=range(shards.num_views), points=True)
        assert sample.rgba is not None and sample.points is not None  # they were asked for
        captions = sample.row.captions or [""]
        views, cloud = list(on_white(sample.rgba)), sample.points[:points]
        found.append(Asset(sample.row.key, captions[0], views, cloud, sample.rgba[0]))
    if len(found) < 2:
        raise UserError(f"{data} has no held-out assets (splits val and test) to measure on.")
    return found


def turned(model: ViewModel, asset: Asset) -> list[Picture]:
    """Returns an asset's first view and three that the view model makes of it, a quarter turn apart."""
    config = ViewsConfig(views=4, joint=4)
    turn = turntable(model, config, [cut_out_as_seen(asset.first, size=model.size, name=asset.key)])
    return [asset.views[0], *on_white(turn.rgba[1:])]


def told(values: np.ndarray, signed: bool = False) -> str:
    """Returns a mean with its interval."""
    low, high = bootstrap_interval(values)
    sign = "+" if signed else ""
    return f"{values.mean():{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def lines_of(prior: str, scores: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Returns a prior's lines of the table: what was shown, the measures, and theirs against one picture."""
    lines, one = [], scores["1"]
    for name, own in scores.items():
        cells = [prior, name, *(told(own[key]) for key in MEASURES)]
        against = (
            [] if name in ("1", CAPTION) else [told(own[key] - one[key], signed=True) for key in MEASURES]
        )
        lines.append("| " + " | ".join(cells + (against or [""] * len(MEASURES))) + " |")
    return lines


def measure_backgrounds(bench: Bench, pipeline: ShapePipeline) -> tuple[str, dict[str, Any]]:
    """Returns the table of mattes, and all its numbers; draws what the model saw."""
    options = bench.arguments
    chosen = replace(bench, assets=bench.assets[: options.busy])
    drawn = rendered(bench.run, [each.key for each in chosen.assets], bench.out)
    clean = [centred(cut_out(rgba)) for rgba in drawn]
    matters = {"by colours": PictureConfig()}
    if options.matting is not None:
        matters[options.matting.stem] = PictureConfig(matting=options.matting)
    shown, found = {"as drawn, on white": [on_square(rgba) for rgba in drawn], "clean cut-out": clean}, {}
    kinds: tuple[Background, ...] = ("shaded", "busy")
    for kind in kinds:
        before = [in_front(rgba, backdrop(kind, i)) for i, rgba in enumerate(drawn)]
        shown[kind] = [on_square(rgba) for rgba in before]
        for name, config in matters.items():
            cut = [cut_again(rgba, truth, config) for rgba, truth in zip(before, drawn, strict=True)]
            shown[f"{kind}, cut out {name}"] = [picture for picture, _ in cut]
            found[f"{kind}, cut out {name}"] = np.array([iou for _, iou in cut])
    scores = {
        name: chosen.scores(chosen.samples(pipeline, name.replace(" ", "_"), pictures))["Chamfer"]
        for name, pictures in shown.items()
    }
    lines = ["| shown | IoU of the matte | Chamfer | Chamfer - clean's |", "|---" * 4 + "|"]
    for name, own in scores.items():
        iou = told(found[name]) if name in found else ""
        worse = "" if name == "clean cut-out" else told(own - scores["clean cut-out"], signed=True)
        lines.append(f"| {name} | {iou} | {told(own)} | {worse} |")
    rows = [side_by_side(pictures[:10], size=96) for pictures in shown.values()]
    write_atomic(bench.out / "backgrounds.png", png(np.concatenate(rows)))
    numbers = {name: {"chamfer": own.tolist()} for name, own in scores.items()}
    for name, shares in found.items():
        numbers[name]["iou"] = shares.tolist()
    return "\n".join(lines) + "\n", numbers


def check_plan(options: argparse.Namespace) -> None:
    """Raises UserError if OUT was begun with other options: priors and networks alone may be added."""
    path = options.out / "plan.json"
    asked = {
        key: str(getattr(options, key))
        for key in ("run", "num", "steps", "guidance", "points", "seed", "busy")
    }
    if path.is_file() and json.loads(path.read_text()) != asked:
        raise UserError(
            f"{options.out} was begun with other options ({path.read_text()}): use another --out."
        )
    write_atomic(path, json.dumps(asked))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures prior by prior; prints the table as it grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.pictures", description=__doc__)
    parser.add_argument(
        "--run", type=Path, required=True, help="a run with data, clip, encoder and eval/judge"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--prior", type=Path, nargs="+", help="finished prior.train folders; RUN/prior unless named"
    )
    parser.add_argument("--num", type=int, default=126, help="held-out assets")
    parser.add_argument("--steps", type=int, default=12, help="evaluations of DPM-Solver++ 2M")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--points", type=int, default=2048, help="of each surface")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--busy", type=int, default=20, help="of them before backgrounds; 0: none")
    parser.add_argument("--views", type=Path, help="a finished prior.train_views")
    parser.add_argument("--matting", type=Path, help="a network of rembg's to cut them out by, too")
    options = parser.parse_args(argv)
    run: Path = options.run
    check_plan(options)
    clip = load_clip(run / "eval" / "judge")
    assets = read_assets(run / "data", options.num, options.points)
    bench, results = Bench(run, options.out, assets, Judge(clip), options), {}
    heads = ["prior", "shown", *MEASURES, *(f"{name} - one's" for name in MEASURES)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for prior in options.prior or [run / "prior"]:
        pipeline = ShapePipeline.load(prior=prior, encoder=run / "encoder", clip=run / "clip")
        refuse_conditioner(clip.digest, pipeline.clip.digest)
        arms = {CAPTION: None, **{str(num): [each.views[:num] for each in assets] for num in SHOWN}}
        if options.views is not None:
            model = load_view_model(options.views, clip=pipeline.clip)
            arms[MADE] = [turned(model, each) for each in assets]
        scores = {name: bench.scores(bench.samples(pipeline, name, images)) for name, images in arms.items()}
        label = f"{prior} (max_views {pipeline.prior.max_views})"
        results[str(prior)] = {n: {k: v.tolist() for k, v in own.items()} for n, own in scores.items()}
        lines += lines_of(label, scores)
        print("\n".join(lines), flush=True)
        write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
        write_atomic(options.out / "results.json", json.dumps(results))
    if options.busy:
        table, results["backgrounds"] = measure_backgrounds(bench, pipeline)
        print(table, flush=True)
        write_atomic(options.out / "backgrounds.md", table)
        write_atomic(options.out / "results.json", json.dumps(results))


if __name__ == "__main__":
    run_main(main)
