"""What the drills share: the smallest run of every stage, and commands in forks of this process.

A fork has everything imported already, so that hundreds of commands take minutes. Nothing is computed in this
process itself: threads that torch starts would be missing in its forks.
"""

import importlib
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shapeloom.config import run_main

MODULES = {
    "data": "data_prep.__main__", "clip": "prior.train_clip", "encoder": "encoder.train",
    "latents": "encoder.encode", "prior": "prior.train", "few": "prior.distill",
    "classifier": "prior.classifier", "samples": "sampling.__main__", "eval": "eval.__main__",
}  # fmt: skip
"""Folder of a run -> the module of its stage, in the order in which they are made."""
TINY = "train={steps: 8, batch_size: 4, warmup_steps: 2, precision: fp32, checkpoint_every: 3, log_every: 1}"
LATE = "train.picture_every=100"
SETTINGS = {
    "data": (
        "procedural={num_train: 8, num_val: 2, num_test: 2, num_judge: 5}", "num_views=4", "resolution=16",
        "num_points=512", "num_sdf=512", "shard_size=4", "workers=0",
    ),
    "clip": (
        "image_size=32", "image_width=32", "image_layers=1", "text_width=32", "text_layers=1", "embed_dim=16",
        TINY,
    ),
    "encoder": (
        "encoder={width: 32, heads: 2, num_layers: 1, num_points: 256, grid: 8}",
        "encoder.num_views=1",
        "decoder.projection={num_tokens: 16, channels: 8, rank: 32}",
        "decoder.field={geometry: {width: 16, num_layers: 2}, color: {width: 16, num_layers: 2}}",
        "losses={num_rays: 16, num_surface_points: 16, num_sdf_points: 32}", TINY, LATE,
    ),
    "latents": ("fidelity_size=8", "clip_views=2", "workers=0"),
    "prior": ("network={width: 32, depth: 1, heads: 2}", TINY, LATE),
    "few": ("steps=2", "substeps=2", TINY, LATE),
    "classifier": ("network={width: 16, depth: 1, heads: 2}", TINY, LATE),
    "samples": (
        "captions=2", "steps=2", "mesh={resolution: 16, texture_size: 16}",
        "turntable={frames: 2, size: 16, samples: {coarse: 4, fine: 0}}",
    ),
    "eval": (
        "reconstruction={max_assets: 1, views: 1, samples: {coarse: 4, fine: 0}, surface_points: 128, "
        "surface_resolution: 16, mesh: {resolution: 16}, pictures: 1, sheet: 0}",
        "judge.clip={num_views: 2, embed_dim: 16, image_size: 32, image_width: 32, image_layers: 1, "
        f"text_width: 32, text_layers: 1, {TINY.replace('=', ': ', 1)}}}",
        "generation={num_prompts: 2, steps: 2, batch_size: 2, views: 1, size: 16, "
        "samples: {coarse: 4, fine: 0}, sets: {max_samples: 2, points: 64, resolution: 16}, beside: 0}",
        "report.assets=2",
    ),
}  # fmt: skip
READS = {
    "clip": ("data",), "encoder": ("data",), "latents": ("data", "encoder", "clip"), "prior": ("latents",),
    "few": ("prior", "latents"), "classifier": ("prior", "latents"), "samples": ("prior", "encoder", "clip"),
    "eval": (),
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """How a command ended, and what it said."""

    code: int
    text: str

    @property
    def sentence(self) -> str:
        """The paragraph after "error:", or the last line of what was said."""
        _, found, last = self.text.rpartition("\nerror: ")
        return last.strip() if found else self.text.strip()[-300:]

    def check(self, *words: str, code: int | None = None) -> str:
        """Returns the sentence; AssertionError for a traceback, another end or a missing word."""
        assert "Traceback" not in self.text, self.text[-3000:]
        assert self.code == code if code is not None else self.code != 0, (self.code, self.text[-2000:])
        missing = [word for word in words if word not in self.text]
        assert not missing, f"{missing} not in: {self.text[-2000:]}"
        return self.sentence


def arguments(stage: str, run: Path, out: Path | None = None) -> list[str]:
    """The options of a stage of the run in folder `run`, which writes to `out` (by default in the run)."""
    settings = [f"{'teacher' if stage == 'few' and name == 'prior' else name}={run / name}"
                for name in READS.get(stage, ())]  # fmt: skip
    settings += [f"run={run}"] if stage == "eval" else []
    return ["--out", str(out or run / stage), "--set", *settings, *SETTINGS[stage]]


def command(stage: str, words: Sequence[str], *, before: Callable[[], None] = lambda: None) -> Told:
    """Runs a stage's command in a fork of this process. before: done in the fork first, to bring trouble."""
    module = importlib.import_module(MODULES[stage])

    def work() -> None:
        sys.argv = [MODULES[stage], *words]
        before()
        run_main(module.main)

    return forked(work)


def forked(work: Callable[[], None]) -> Told:
    """Calls `work` in a fork of this process, as if it were a command of its own."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            logging.getLogger("shapeloom").handlers.clear()  # they may write to the parent's stderr
            code = 0
            try:
                work()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return Told(os.waitstatus_to_exitcode(status), output.read().decode(errors="replace"))


def import_everything() -> None:
    """So that forks need not."""
    for module in MODULES.values():
        importlib.import_module(module)


def make_run(run: Path, stages: Sequence[str] = tuple(MODULES)) -> Path:
    """Makes a run of these stages and returns its folder."""
    for stage in stages:
        command(stage, arguments(stage, run)).check(code=0)
    return run


def copy(run: Path, to: Path, stages: Sequence[str] = tuple(MODULES)) -> Path:
    """A copy of some of a run's stages to do harm to."""
    for stage in stages:
        if (run / stage).is_dir():
            shutil.copytree(run / stage, to / stage)
    for path in run.iterdir():
        if path.is_file() and "eval" in stages:
            shutil.copy2(path, to)
    return to


def flip_byte(path: Path, place: float = 0.9) -> None:
    """Changes one bit of a file, at a share of its length."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file whose bytes are promised: no clocks, and no checkpoints, which hold some."""
    passing = {"meta.json", "metrics.jsonl", "metadata.json", "metrics.json", "report.html", "record.json"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in passing
        and not {"tensorboard", "state", "config.yaml"} & set(path.relative_to(folder).parts)
    }
