"""python -m benchmarks.experiments.ablate encoder --run RUN --out OUT: variants of a preset at equal time.

Every variant of ablations.yaml, beside this file, trains for the same CPU seconds of one thread: seconds a
step are measured first, the learning rate's schedule is stretched to the steps that fit, and what comes out
is evaluated on held-out assets. RUN holds `data` (for `prior` also `clip`, `encoder` and `latents`); OUT gets
a folder a run, and table.md. The same command goes on where it was killed, also in the middle of a training.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import Field, ValidationError
from torch import Tensor, nn

import encoder.train
import prior.train
from encoder.model import load_encoder
from eval.__main__ import EvalConfig, make_sampler
from eval.generation import evaluate_generation
from eval.judge import make_judge
from eval.nearest import TrainingAssets
from eval.reconstruction import evaluate_reconstruction
from shapeloom import distributed
from shapeloom.clip import load_clip
from shapeloom.config import Config, UserError, load_config, run_main
from shapeloom.runs import Run
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic
from shapeloom.surface_metrics import SURFACE_SCORES
from shapeloom.surfaces import read_surface
from shapeloom.training import Task, TrainConfig, train

TABLE = Path(__file__).with_name("ablations.yaml")
PROBE_STEPS, WARM_UP = 14, 3

Stage = Literal["encoder", "prior"]
Scores = dict[str, Any]
COLUMNS: dict[Stage, dict[str, str]] = {
    "encoder": {
        "psnr": "PSNR", "iou": "IoU", "train_psnr": "PSNR held in", "train_iou": "IoU held in",
        "fscore_0.01": "F@0.01", "fscore_0.02": "F@0.02", "fscore_0.05": "F@0.05", "chamfer": "Chamfer",
        "normal_consistency": "NC", "normals_off": ">30", "normal_psnr": "maps", "slope": "slope",
        "train_fscore_0.02": "F@0.02 held in",
    },
    "prior": {
        "r_at_1": "R@1", "seen_r_at_1": "R@1 seen", "held_out_r_at_1": "R@1 held out",
        "family_accuracy": "family", "colour_accuracy": "colour", "clip_score": "CLIP score",
        "frechet": "Frechet", "mmd_cd": "MMD-CD", "cov_cd": "COV-CD", "one_nna_cd": "1-NNA-CD",
        "memorised": "memorised",
    },
}  # fmt: skip


class Variant(Config):
    """A preset and changed keys; base None: the table's own."""

    base: Path | None = None
    changes: dict[str, Any] = Field(default_factory=dict)


class Ablation(Config):
    """Variants of one stage, and how they are measured."""

    base: Path
    changes: dict[str, Any] = Field(default_factory=dict, description="of every variant")
    evaluation: Variant
    variants: dict[str, Variant]


@dataclass(frozen=True)
class Planned:
    """One run: a variant with a seed."""

    name: str
    seed: int
    preset: Path
    settings: list[str]
    """As for --set, without the inputs."""
    steps: int
    seconds_a_step: float

    @property
    def folder(self) -> str:
        """Where it is, in OUT."""
        return f"{self.name}_seed{self.seed}"


def flatten(changes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested keys as settings: {"train": {"steps": 5}} -> ["train.steps=5"]."""
    out = []
    for name, value in changes.items():
        key = f"{prefix}{name}"
        out += flatten(value, f"{key}.") if isinstance(value, dict) else [f"{key}={json.dumps(value)}"]
    return out


def read_table(path: Path, stage: Stage) -> Ablation:
    """Returns what the table says of a stage; UserError if it says nothing of it, or what makes no sense."""
    tables = yaml.safe_load(path.read_text()) if path.is_file() else {}
    if stage not in tables:
        raise UserError(f"{path} holds no table of variants named {stage!r}.")
    try:
        return Ablation.model_validate(tables[stage])
    except ValidationError as error:
        raise UserError(f"{path}, {stage}: {error}") from error


# ---------------------------------------------------------------- equal time


class _Timed:
    """A task that notes the process's CPU time whenever a step's loss is asked for."""

    def __init__(self, task: Task) -> None:
        self.task, self.model, self.times = task, task.model, list[float]()

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        return self.task.batch(samples)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.times.append(time.process_time())
        return self.task.loss(model, batch)

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        return {}

    def names(self, samples: Sequence[int]) -> list[str]:
        return self.task.names(samples)


def seconds_a_step(task: Task, config: TrainConfig, world: distributed.World) -> float:
    """Returns the median CPU seconds of a whole training step: batch, loss, gradients, update, averages."""
    timed = _Timed(task)
    short = {"steps": PROBE_STEPS, "checkpoint_every": PROBE_STEPS, "picture_every": PROBE_STEPS}
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(update=short)
        run = Run.open(Path(folder, "probe"), config, stage="probe")
        train(timed, config, run, world)
        run.finish()
    starts = timed.times[WARM_UP * config.accumulation :: config.accumulation]
    return statistics.median(np.diff(starts).tolist())


def make_task(stage: Stage, config: Config, folder: Path) -> tuple[Task, TrainConfig]:
    """Returns what a run of the stage trains. folder: for the run that a prior's task wants."""
    if isinstance(config, encoder.train.EncoderTrainConfig):
        shards = AssetShards(config.data, "train")
        return encoder.train.EncoderTask(config, shards, shards), config.train
    assert isinstance(config, prior.train.PriorConfig) and config.latents is not None
    latents = prior.train.read_latents(config.latents, config.split, config)
    model = prior.train.new_model(latents, config)
    run = Run.open(folder / "task", config, stage="probe")
    return prior.train.PriorTask(model, latents, config, run), config.train


# ---------------------------------------------------------------- runs


def plan(
    stage: Stage, table: Ablation, names: Sequence[str], seeds: Sequence[int], *, run: Path, out: Path,
    seconds: float, world: distributed.World,
) -> list[Planned]:  # fmt: skip
    """Returns the runs and their steps, measured once a variant; kept in OUT, so that they stay the same.

    So a variant that can't be built is refused before anything has been trained.
    """
    planned = []
    for name in names:
        variant = table.variants[name]
        preset = variant.base or table.base
        settings = [*flatten(table.changes), *flatten(variant.changes)]
        path = out / f"{name}.plan.json"
        asked = {"preset": preset.read_text(), "settings": settings, "seconds": seconds}
        if path.is_file():
            found = json.loads(path.read_text())
            if {key: found[key] for key in asked} != asked:
                raise UserError(f"{path} was made for another variant or budget. Use another --out.")
        else:
            step = _measure(stage, preset, settings, run, world)
            found = {**asked, "seconds_a_step": step, "steps": max(1, round(seconds / step))}
            write_atomic(path, json.dumps(found, indent=1))
            say(f"{name}: {step:.3f} CPU seconds a step, so {found['steps']} steps")
        planned += [
            Planned(name, seed, preset, settings, found["steps"], found["seconds_a_step"]) for seed in seeds
        ]
    return planned


def _measure(stage: Stage, preset: Path, settings: list[str], run: Path, world: distributed.World) -> float:
    kind = encoder.train.EncoderTrainConfig if stage == "encoder" else prior.train.PriorConfig
    config = load_config(kind, preset, [*inputs(stage, run), *settings])
    with tempfile.TemporaryDirectory() as folder:
        task, training = make_task(stage, config, Path(folder))
        return seconds_a_step(task, training, world)


def inputs(stage: Stage, run: Path) -> list[str]:
    """Settings that name what a stage reads."""
    return [f"data={run / 'data'}"] if stage == "encoder" else [f"latents={run / 'latents'}"]


def train_and_measure(
    stage: Stage, planned: Planned, table: Ablation, *, run: Path, out: Path, world: distributed.World
) -> Scores:
    """Returns a run's scores; trained, evaluated, or read if it was finished before.

    A training that fails has no scores but its `error`.
    """
    folder = out / planned.folder
    path = folder / "scores.json"
    if path.is_file():
        scores: Scores = json.loads(path.read_text())
        return scores
    say(f"{planned.folder}: {planned.steps} steps")
    rare = [f"train.picture_every={planned.steps}", f"train.seed={planned.seed}"]
    settings = [*inputs(stage, run), *planned.settings, *rare, f"train.steps={planned.steps}"]
    main = encoder.train.main if stage == "encoder" else prior.train.main
    fresh, start = not folder.exists(), time.process_time()
    try:
        main(["--config", str(planned.preset), "--out", str(folder / stage), "--set", *settings])
    except UserError as error:  # it has diverged: that is a result too, and the others go on
        say(f"{planned.folder} failed: {error}")
        scores = {"steps": planned.steps, "error": str(error)}
        write_atomic(path, json.dumps(scores, indent=1))
        return scores
    # What an earlier process took of a run that was killed is not known.
    took = round(time.process_time() - start, 1) if fresh else None
    scores = {"steps": planned.steps, "cpu_seconds": took}
    scores |= (
        measure_encoder(folder, table, run)
        if stage == "encoder"
        else measure_prior(folder, table, run, out / "judge", world)
    )
    write_atomic(path, json.dumps(scores, indent=1))
    return scores


def measure_encoder(folder: Path, table: Ablation, run: Path) -> Scores:
    """Returns scores of held-out assets (split "val") and of as many training assets."""
    config = _evaluation(table, run).reconstruction
    model = load_encoder(folder / "encoder")
    scores: Scores = {}
    for split, prefix in (("val", ""), ("train", "train_")):
        of_split = config.model_copy(update={"splits": [split]})
        where = folder / "reconstruction" / split
        found, _ = evaluate_reconstruction(run / "data", model, of_split, where, nearest=False)
        scores |= {f"{prefix}{name}": value for name, value in found.items() if isinstance(value, float)}
    return scores


def nearest_scores(table: Ablation, run: Path, out: Path) -> Scores:
    """Returns what the nearest training assets score in the place of the same held-out ones; kept in OUT."""
    path = out / "nearest.json"
    if not path.is_file():
        held_out, training = (
            AssetShards(run / "data", "val"),
            TrainingAssets(AssetShards(run / "data", "train")),
        )
        num = min(len(held_out), _evaluation(table, run).reconstruction.max_assets)
        found = [training.surface_scores(read_surface(held_out, i))[1] for i in range(num)]
        means = {name: float(np.mean([each[name] for each in found])) for name in SURFACE_SCORES}
        write_atomic(path, json.dumps(means, indent=1))
    scores: Scores = json.loads(path.read_text())
    return scores


def measure_prior(
    folder: Path, table: Ablation, run: Path, judge_folder: Path, world: distributed.World
) -> Scores:
    """Returns what a judge says of samples; one judge for all runs."""
    config = _evaluation(table, run).model_copy(update={"prior": folder / "prior"})
    conditioner = load_clip(config.folder("clip"), world.device).digest
    judge = make_judge(
        config.shards("data"), config.judge, judge_folder, conditioner=conditioner, world=world
    )
    decoder = load_encoder(config.folder("encoder"), world.device).decoder
    found, *_ = evaluate_generation(
        config.shards("data"), decoder, lambda: make_sampler(config, world.device), judge,
        config.generation, folder / "generation",
    )  # fmt: skip
    if "skipped" in found:
        raise UserError(f"The priors' samples can't be judged: {found['skipped']}.")
    found |= found.get("sets", {})
    for group in ("seen", "held_out"):
        found[f"{group}_r_at_1"] = (found[group] or {}).get("r_at_1")
    return {name: value for name, value in found.items() if value is None or isinstance(value, float)}


def _evaluation(table: Ablation, run: Path) -> EvalConfig:
    settings = [f"run={run}", *flatten(table.evaluation.changes)]
    return load_config(EvalConfig, table.evaluation.base, settings)


# ---------------------------------------------------------------- table


def markdown(stage: Stage, results: Mapping[str, Sequence[Scores]], nearest: Scores | None = None) -> str:
    """Returns a row a variant: the mean over its seeds, and in brackets the least and the largest.

    nearest: scores of the nearest training asset, for a last row.
    """
    columns = {"steps": "steps", "cpu_seconds": "CPU s", **COLUMNS[stage]}
    rows = [["variant", "seeds", *columns.values()], ["---"] * (2 + len(columns))]
    for name, scores in results.items():
        cells = [_cell([each.get(column) for each in scores]) for column in columns]
        rows.append([name, str(len(scores)), *cells])
    if nearest:
        rows.append(["nearest training asset", "–", *(_cell([nearest.get(column)]) for column in columns)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    text = _number(statistics.mean(known))
    return text if min(known) == max(known) else f"{text} ({_number(min(known))} to {_number(max(known))})"


def _number(value: float) -> str:
    return (
        f"{value:.0f}"
        if value == round(value) or abs(value) >= 50
        else f"{value:.2f}"
        if abs(value) >= 2
        else f"{value:.4f}"
    )


def say(text: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, one after another, and writes OUT/table.md after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.ablate", description=__doc__)
    parser.add_argument("stage", choices=["encoder", "prior"])
    parser.add_argument("--run", type=Path, required=True, help="folder with the stage's inputs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seconds", type=float, default=300, help="CPU seconds of one thread a run")
    parser.add_argument("--variants", nargs="+", help="none: all of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args(argv)
    stage, out = arguments.stage, arguments.out
    table = read_table(arguments.table, stage)
    names = arguments.variants or list(table.variants)
    unknown = [name for name in names if name not in table.variants]
    if unknown:
        raise UserError(f"{arguments.table} has no variant {', '.join(unknown)}: {', '.join(table.variants)}")
    # Before the process group starts: it gives a process that says nothing all cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    world = distributed.start()
    planned = plan(
        stage, table, names, arguments.seeds, run=arguments.run, out=out, seconds=arguments.seconds,
        world=world,
    )  # fmt: skip
    nearest = nearest_scores(table, arguments.run, out) if stage == "encoder" else None
    results: dict[str, list[Scores]] = {name: [] for name in names}
    # Seed by seed, so that a table that is cut off is whole for the first seeds.
    for each in sorted(planned, key=lambda each: arguments.seeds.index(each.seed)):
        found = train_and_measure(stage, each, table, run=arguments.run, out=out, world=world)
        results[each.name].append(found)
        text = markdown(stage, {name: scores for name, scores in results.items() if scores}, nearest)
        write_atomic(out / "table.md", text)
    say(text)


if __name__ == "__main__":
    run_main(main)
