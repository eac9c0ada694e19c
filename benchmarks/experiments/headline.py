"""python -m benchmarks.experiments.headline --run RUN --out OUT: does a latent prior beat a prior of points?

Shap-E's claim over Point-E, put to the test on a finished run's own data (RUN: data, clip, encoder, latents,
eval/judge). Three arms, each at several budgets and seeds:

    latent           the prior of RUN's latents
    points, steps    the same transformer and as many steps over clouds of coloured points
    points, seconds  the same network for the same CPU seconds of one thread, measured beforehand

A point is a token, a latent has far fewer: the same network is not the same compute, so both are shown. All
have the same data, captions, CLIP, condition dropout, optimizer, averages, samplers, evaluations at sampling,
and a guidance scale chosen for each on prompts of the split "val". Clouds become meshes by a regression of
signed distances (`encoder.train_cloud`). Every mesh is drawn by the renderer of data preparation, in its
light, and seen by the judge. Priors of the largest budget are also shown a picture of held-out assets,
and no word. OUT keeps all of it; the same command goes on where it was killed. It writes the page
(`--page`) and its pictures beside it, in images/.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import encoder.encode
import encoder.train_cloud
import prior.train
from benchmarks.experiments.ablate import make_task, seconds_a_step
from benchmarks.experiments.headline_page import MOST_COLUMNS, write_page
from benchmarks.experiments.headline_samples import (
    ARMS,
    Bench,
    Trial,
    as_points,
    generation,
    judged,
    look,
    make_samples,
)
from benchmarks.experiments.pictures import chamfer
from eval.chamfer import chamfer_matrix, symmetric_chamfer_matrix
from eval.generation import ceiling, frechet_scores, true_embeddings
from eval.judge import Judge, pooled, refuse_conditioner
from eval.prompts import Prompt, choose_prompts, has_colours, own_prompt
from eval.sets import DrawnSets, SetsConfig, draw_assets, draw_sets, set_scores, stored_clouds
from prior.task import PriorConfig
from shapeloom import distributed
from shapeloom.clip import load_clip
from shapeloom.config import UserError, load_config, run_main
from shapeloom.decoder import load_decoder
from shapeloom.metrics import ranks
from shapeloom.pictures import on_white
from shapeloom.runs import read_meta
from shapeloom.shards import AssetShards
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import write_atomic
from shapeloom.weights import read_tensors

LOOKS = 6
"""Views of an asset: one is shown, the judge knows it by the others."""
Scores = dict[str, Any]


# ---------------------------------------------------------------- made once


def make_clouds(bench: Bench) -> None:
    """Trains the clouds' field and writes their shards, unless both are there."""
    out, arguments = bench.out, bench.arguments
    encoder.train_cloud.main(
        ["--config", str(arguments.cloud_preset), "--out", str(out / "cloud_field"), "--set",
         f"data={bench.run / 'data'}", *arguments.cloud_settings]
    )  # fmt: skip
    encoder.encode.main(
        ["--out", str(out / "clouds"), "--set", f"data={bench.run / 'data'}", f"clip={bench.run / 'clip'}",
         f"encoder={out / 'cloud_field'}", f"embeddings={bench.run / 'latents'}", "workers=0"]
    )  # fmt: skip


def plan(bench: Bench, world: distributed.World) -> dict[str, float]:
    """Returns CPU seconds a training step of "latent" and "points", measured once.

    Raises UserError if OUT was begun with other options: seeds and pictures may be added.
    """
    path = bench.out / "plan.json"
    free = ("run", "out", "page", "seeds", "pictures", "preset", "cloud_preset")
    asked = {name: value for name, value in vars(bench.arguments).items() if name not in free}
    asked["presets"] = [each.read_text() for each in (bench.arguments.preset, bench.arguments.cloud_preset)]
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        odd = [name for name in asked if found.get(name) != asked[name]]
        if odd:
            raise UserError(
                f"{bench.out} was begun with other {', '.join(odd)}, and what is compared must be alike. Use "
                "another --out; seeds and pictures may be added."
            )
        return dict(found["seconds_a_step"])
    seconds = {}
    for name, arm in (("latent", ARMS[0]), ("points", ARMS[1])):
        config = load_config(PriorConfig, bench.arguments.preset, bench.settings(arm))
        with tempfile.TemporaryDirectory() as folder:
            seconds[name] = seconds_a_step(*make_task("prior", config, Path(folder)), world)
    write_atomic(path, json.dumps({**asked, "seconds_a_step": seconds}, indent=1))
    return seconds


def trials(bench: Bench, seconds: Mapping[str, float]) -> list[Trial]:
    """All priors, seed by seed, the largest budget first: guidance is chosen on it."""
    ratio = seconds["latent"] / seconds["points"]
    found = []
    for seed in bench.arguments.seeds:
        for budget in sorted(bench.arguments.budgets, reverse=True):
            for arm in ARMS:
                steps = max(1, round(budget * ratio)) if arm == "points_seconds" else budget
                found.append(Trial(arm, budget, seed, steps))
    return found


# ---------------------------------------------------------------- one prior


def train_prior(bench: Bench, trial: Trial) -> None:
    """Trains it, or goes on, or sees that it is done."""
    rare = [f"train.picture_every={trial.steps}", f"train.seed={trial.seed}", f"train.steps={trial.steps}"]
    warmup = f"train.warmup_steps={min(50, trial.steps // 10)}"
    prior.train.main(
        ["--config", str(bench.arguments.preset), "--out", str(bench.out / trial.folder / "prior"), "--set",
         *bench.settings(trial.arm), *rare, warmup]
    )  # fmt: skip


def choose_scale(bench: Bench, trial: Trial, prompts: Sequence[Prompt]) -> dict[str, tuple[float, float]]:
    """Returns (R@1, CLIP score) of each guidance scale, best first, on prompts of "val".

    Of an arm's first prior, that of the largest budget. Where R@1 doesn't tell scales apart, the score does.
    """
    path = bench.out / f"guidance_{trial.arm}.json"
    if not path.is_file():
        found, texts = {}, [prompt.text for prompt in prompts]
        for scale in bench.arguments.scales:
            where = bench.out / trial.folder / f"sweep_{scale:g}.safetensors"
            pictures = make_samples(bench, trial, texts, scale, where)["pictures"]
            right, near, _ = judged(bench, pictures, texts)
            found[f"{scale:g}"] = (float(right.mean()), float(near.mean()))
        best = sorted(found.items(), key=lambda each: each[1], reverse=True)
        write_atomic(path, json.dumps(dict(best)))
    scales: dict[str, tuple[float, float]] = json.loads(path.read_text())
    return scales


def measure(bench: Bench, trial: Trial, prompts: Sequence[Prompt], scale: float) -> Scores:
    """Returns a prior's scores; kept."""
    path = bench.out / trial.folder / "scores.json"
    if not path.is_file():
        texts = [prompt.text for prompt in prompts]
        samples = make_samples(bench, trial, texts, scale, bench.out / trial.folder / "samples.safetensors")
        right, near, embeddings = judged(bench, samples["pictures"], texts)
        scores: Scores = {**vars(trial), "guidance_scale": scale, "hits": right.astype(int).tolist()}
        scores["clip_score"] = float(near.mean())
        scores |= set_measures(bench, samples["points"].numpy())
        sets = draw_sets(bench.run / "data", SetsConfig(max_samples=len(prompts)), seed=0)
        if isinstance(sets, DrawnSets):
            known = [
                true_embeddings(each, bench.judge, generation(bench, len(prompts)))
                for each in (sets.held_out, sets.training)
            ]
            scores |= frechet_scores(embeddings[: len(sets.held_out)], *known)
        scores["empty"] = int((samples["points"].abs().amax((1, 2)) == 0).sum())
        sampling, meshing = (samples["seconds"] / len(prompts)).tolist()
        scores |= {"sampling_seconds": round(sampling, 3), "mesh_seconds": round(meshing, 3)}
        write_atomic(path, json.dumps(scores))
    kept: Scores = json.loads(path.read_text())
    return kept


def measure_pictures(bench: Bench, trial: Trial, scale: float) -> Scores:
    """Returns how samples fit held-out assets whose first view they were shown, without a word; kept.

    `hits`: whether a sample's own asset is the nearest of all by the judge, who sees other views of it;
    `chamfer`: L1, between a sample's surface and its asset's points.
    """
    num = bench.arguments.pictures
    path = bench.out / trial.folder / f"pictures_{num}.json"
    if not path.is_file():
        drawn = draw_assets(bench.run / "data", ("val", "test"), num, seed=1)
        views = [on_white(_views(shards, index)) for shards, index in drawn]
        samples = make_samples(
            bench, trial, [shards.rows[index].key for shards, index in drawn], scale,
            path.with_suffix(".safetensors"), [each[0] for each in views],
        )  # fmt: skip
        truth = pooled(bench.judge.embed(np.stack([each[1:] for each in views])))
        similarity = (pooled(bench.judge.embed(samples["pictures"].numpy())) @ truth.T).numpy()
        clouds = stored_clouds(drawn, bench.arguments.set_points)
        both = zip(samples["points"].numpy(), clouds, strict=True)
        hits = ranks(similarity, np.arange(len(drawn))) == 0
        found = {"hits": hits.astype(int).tolist(), "chamfer": [chamfer(own, true) for own, true in both]}
        write_atomic(path, json.dumps(found))
    kept: Scores = json.loads(path.read_text())
    return {**vars(trial), **kept}


def _views(shards: AssetShards, index: int) -> np.ndarray:
    rgba = shards.read(index, views=range(min(LOOKS, shards.num_views))).rgba
    assert rgba is not None  # they were asked for
    return rgba


def set_measures(bench: Bench, points: np.ndarray) -> dict[str, float]:
    """Returns MMD, COV and 1-NNA of surfaces' points against as many held-out assets'."""
    held_out = draw_assets(bench.run / "data", ("val", "test"), len(points), seed=0)
    clouds = list(points[: len(held_out)])
    if min(len(held_out), len(clouds)) < 2:
        return {}
    reference = stored_clouds(held_out, bench.arguments.set_points)
    between = chamfer_matrix(clouds, reference)
    return set_scores(symmetric_chamfer_matrix(clouds), symmetric_chamfer_matrix(reference), between)


# ---------------------------------------------------------------- what can't be beaten


def ceilings(bench: Bench, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Returns what the judge says of held-out assets themselves, as they are and through either form.

    Meshes of true latents and of true clouds, seen by the judge among the assets' own prompts.
    """
    path = bench.out / "ceilings.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    config = generation(bench, len(prompts))
    text = bench.judge.clip.text([prompt.text for prompt in prompts]).pooled.cpu()
    found: dict[str, Any] = dict(ceiling(bench.run / "data", bench.judge, prompts, text, config))
    found["cloud_field"] = read_meta(bench.out / "cloud_field", stage="encoder").get("ceiling", {})
    for name in ("latent", "points"):
        folder, decoder = bench.parts("latent" if name == "latent" else "points_steps")
        shards, rows, texts = LatentShards(folder), list[int](), list[str]()
        by_pairs = has_colours(shards.rows)
        for index, row in enumerate(shards.rows):
            own = own_prompt(row, by_pairs=by_pairs)
            if row.split != "train" and own and own not in texts and len(rows) < len(prompts):
                rows.append(index)
                texts.append(own)
        if not rows:
            continue
        latents = torch.stack([shards.read(i)["latent"].float() for i in rows])
        pictures, points = look(bench, load_decoder(decoder), latents, config)
        found[f"{name}_r_at_1"] = float(judged(bench, pictures, texts)[0].mean())
        found[f"{name}_num"] = len(rows)
        found |= {f"{name}_{key}": value for key, value in set_measures(bench, points.numpy()).items()}
    write_atomic(path, json.dumps(found))
    return found


def costs(bench: Bench) -> dict[str, float]:
    """Returns the seconds that the stages before a prior took, by their own records."""
    folders = {"latent": bench.parts("latent"), "points": bench.parts("points_steps")}
    return {
        name: sum(json.loads((folder / "meta.json").read_text())["seconds"] for folder in both)
        for name, both in folders.items()
    }


# ---------------------------------------------------------------- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.headline", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a finished run, with eval/judge")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="Markdown to write; none: OUT/headline.md")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[150, 300, 600], help="steps of the latent prior"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=48, help="held-out assets that are shown")
    parser.add_argument("--sweep-prompts", type=int, default=48)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 6.0], help="guidance")
    parser.add_argument("--steps", type=int, default=24, help="of sampling, by dpmpp_2m, for all arms")
    parser.add_argument("--resolution", type=int, default=64, help="of meshes")
    parser.add_argument(
        "--set-points", type=int, default=512, help="of a surface, for distances between sets"
    )
    parser.add_argument("--preset", type=Path, default=Path("configs/prior/tiny.yaml"), help="of all priors")
    parser.add_argument("--settings", nargs="*", default=[], help="key=value of all priors")
    parser.add_argument("--cloud-preset", type=Path, default=Path("configs/encoder/cloud_tiny.yaml"))
    parser.add_argument("--cloud-settings", nargs="*", default=[], help="key=value of the clouds' field")
    return parser.parse_args(argv)


def open_bench(arguments: argparse.Namespace) -> Bench:
    """Returns the bench; raises UserError where the run lacks a part."""
    run: Path = arguments.run
    missing = [
        name for name in ("data", "clip", "encoder", "latents", "eval/judge") if not (run / name).is_dir()
    ]
    if missing:
        raise UserError(
            f"{run} has no {', '.join(missing)}: the comparison needs a finished run (`make demo`), whose "
            "evaluation has trained a judge."
        )
    judge = load_clip(run / "eval" / "judge")
    refuse_conditioner(judge.digest, load_clip(run / "clip").digest)
    return Bench(run, arguments.out, Judge(judge), arguments)


def choose(bench: Bench) -> tuple[list[Prompt], list[Prompt]]:
    """Returns the prompts that scales are chosen on, of "train" and "val", and those of the table."""
    rows, arguments = AssetShards(bench.run / "data").rows, bench.arguments
    for_sweep = choose_prompts(
        [r for r in rows if r.split in ("train", "val")], arguments.sweep_prompts, seed=1
    )
    for_table = choose_prompts([r for r in rows if r.split in ("train", "test")], arguments.prompts, seed=0)
    if min(len(for_sweep), len(for_table)) < 2:
        raise UserError(f"{bench.run / 'data'} has too few different captions to tell samples apart by.")
    return for_sweep, for_table


def main(argv: Sequence[str] | None = None) -> None:
    """Makes what is missing, one prior after another, and writes the page after each."""
    arguments = parse(argv)
    # Before the process group starts: it gives a process that says nothing all cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    world = distributed.start()
    bench = open_bench(arguments)
    for_sweep, prompts = choose(bench)
    make_clouds(bench)
    seconds = plan(bench, world)
    known = ceilings(bench, prompts)
    texts = [prompt.text for prompt in prompts]
    results: list[Scores] = []
    from_pictures: list[Scores] = []
    page = arguments.page or bench.out / "headline.md"
    for trial in trials(bench, seconds):
        train_prior(bench, trial)
        scales = choose_scale(bench, trial, for_sweep)
        scale = float(next(iter(scales)))
        found = measure(bench, trial, prompts, scale)
        if trial.budget == max(arguments.budgets):
            from_pictures.append(measure_pictures(bench, trial, scale))
        kind = "latent" if trial.arm == "latent" else "points"
        results.append({**found, "train_seconds": trial.steps * seconds[kind], "scales": scales})
        say(f"{trial.folder}: R@1 {np.mean(found['hits']):.3f}")
        facts = {
            "seconds_a_step": seconds, "costs": costs(bench), "ceilings": known,
            "prompts": texts, "from_pictures": from_pictures,
        }  # fmt: skip
        write_page(page, results, facts, shown(bench, results, texts[:MOST_COLUMNS]), command(arguments))
    say(f"the page is {page}")


def shown(bench: Bench, results: Sequence[Scores], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns pictures of prompts' samples by each arm at its largest budget so far, of the first seed."""
    best: dict[str, Scores] = {}
    for each in results:
        if each["seed"] == bench.arguments.seeds[0] and (
            each["arm"] not in best or each["budget"] > best[each["arm"]]["budget"]
        ):
            best[each["arm"]] = each
    found = {}
    for arm, each in best.items():
        trial = Trial(each["arm"], each["budget"], each["seed"], each["steps"])
        found[arm] = read_tensors(bench.out / trial.folder / "samples.safetensors")["pictures"].numpy()[:, 0]
        found[f"{arm} as points"] = as_points(bench, trial, names, each["guidance_scale"])
    return found


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the page says of how it was made: options that are not the defaults, without folders."""
    default = vars(parse(["--run", "", "--out", ""]))
    given = vars(arguments).items()
    return {k: v for k, v in given if k not in ("run", "out", "page") and v != default[k]}


def say(text: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_main(main)
