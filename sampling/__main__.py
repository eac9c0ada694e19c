"""Makes shapes from prompts or a picture, and writes them as GLB, PLY and GIF files.

    python -m sampling --config configs/sampling/tiny.yaml --out RUN/samples \\
        --set prior=RUN/prior encoder=RUN/encoder clip=RUN/clip --prompt "a red chair" --num 4 --seed 0

A folder may be added to: objects that it holds already (same prompt or picture, same seed) stay as they are.
metadata.json lists them with their settings and files; contact_sheet.png shows them all.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field as Key

from sampling.mesh import MeshConfig
from sampling.pictures import contact_sheet, gif, load_image, png
from sampling.pipeline import MAX_SEED, ShapePipeline, ShapeSample, check_prompt
from shapeloom.config import Config, UserError, load_config, parse_stage, run_main
from shapeloom.decoder import RenderConfig
from shapeloom.diffusion.samplers import SamplerName
from shapeloom.diffusion.steps import StepChoice
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.runs import Run
from shapeloom.storage import file_digest, write_atomic

log = get_logger("sampling")

SCHEMA = 1
Record = dict[str, Any]


class TurntableConfig(Config):
    """The GIF of each object."""

    frames: int = Key(24, ge=1, le=720)
    size: int = Key(128, ge=16, le=2048, description="side in pixels")
    samples: RenderConfig = RenderConfig()


class SamplingConfig(Config):
    """What is sampled, from what, and how it is written."""

    prior: Path | None = Key(None, description="folder of a finished prior.train")
    view_prior: Path | None = Key(
        None, description="folder of a prior.train with predict=views: prompts go through pictures' vectors"
    )
    ema: float | None = Key(None, description="which average of the prior's weights; none: train.ema_decay's")
    encoder: Path | None = Key(None, description="folder of a finished encoder.train")
    clip: str | None = Key(None, description="folder of prior.train_clip, or an open_clip MODEL/TAG")
    prompts: list[str] = Key([], description="used when no --prompt, --prompts or --image is given")
    num: int = Key(1, ge=1, description="objects a prompt; they get the seeds seed, seed + 1, ...")
    seed: int = Key(0, ge=0, le=MAX_SEED)
    steps: int = Key(32, ge=1, le=4096)
    guidance_scale: float = Key(3.0, ge=0)
    sampler: SamplerName = "heun"
    step_choice: StepChoice = "karras"
    negative_prompt: str = ""
    batch_size: int = Key(8, ge=1, description="objects that are sampled at once")
    mesh: MeshConfig = MeshConfig()
    turntable: TurntableConfig = TurntableConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Wish:
    """One object to make. `image`: the picture's digest, or ""."""

    prompt: str
    seed: int
    image: str
    label: str

    def answered_by(self, record: Record) -> bool:
        """Whether a record of metadata.json is of this object."""
        return (self.prompt, self.seed, self.image) == (record["prompt"], record["seed"], record["image"])


class Album:
    """The objects of a folder: metadata.json is rewritten after each, so that a killed run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "metadata.json"
        self.records: list[Record] = []
        if self.path.is_file():
            saved = json.loads(self.path.read_text())
            if saved["schema"] != SCHEMA:
                raise UserError(
                    f"{self.path} has schema {saved['schema']}, but this version writes {SCHEMA}. "
                    "Use another --out."
                )
            self.records = saved["samples"]

    def find(self, wish: Wish) -> Record | None:
        """The record of an object, whether or not its files are there."""
        return next((record for record in self.records if wish.answered_by(record)), None)

    def holds(self, wish: Wish) -> bool:
        """Whether an object is recorded and all its files are there."""
        record = self.find(wish)
        return record is not None and all((self.folder / name).is_file() for name in record["files"].values())

    def name_for(self, wish: Wish) -> str:
        """The file stem of an object: its number in the folder, its words, its seed."""
        record = self.find(wish)
        if record is not None:
            return str(record["name"])
        number = 1 + max((int(record["name"].split("_")[0]) for record in self.records), default=-1)
        slug = re.sub(r"[^a-z0-9]+", "-", wish.label.lower()).strip("-")[:48].rstrip("-") or "object"
        return f"{number:03d}_{slug}_seed{wish.seed}"

    def add(self, record: Record) -> None:
        """Adds or replaces a record, and saves."""
        self.records = [old for old in self.records if old["name"] != record["name"]] + [record]
        self.records.sort(key=lambda each: int(each["name"].split("_")[0]))
        write_atomic(self.path, json.dumps({"schema": SCHEMA, "samples": self.records}, indent=1) + "\n")

    def save_contact_sheet(self) -> None:
        """Draws the first frame of every object's turntable."""
        frames, labels = [], []
        for record in self.records:
            path = self.folder / record["files"]["gif"]
            if path.is_file():
                with Image.open(path) as image:
                    frames.append(np.array(image.convert("RGB")))
                labels.append(record["label"])
        if frames:
            write_atomic(self.folder / "contact_sheet.png", png(contact_sheet(frames, labels)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shortcuts that people type daily."""
    parser.add_argument("--prompt", action="append", default=[], help="what to make; repeatable")
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt a line")
    parser.add_argument("--image", type=Path, help="a PNG or JPEG to follow, beside a prompt or without one")
    parser.add_argument("--num", type=int, help="objects a prompt")
    parser.add_argument("--seed", type=int, help="the first object's seed")


def wishes(config: SamplingConfig, arguments: argparse.Namespace) -> list[Wish]:
    """Returns the objects that the command line and the config ask for; each once."""
    prompts = list(arguments.prompt)
    if arguments.prompts is not None:
        prompts += read_prompts(arguments.prompts)
    image, label = "", ""
    if arguments.image is not None:
        load_image(arguments.image)
        image, label = file_digest(arguments.image), arguments.image.stem
        prompts = prompts or [""]
    prompts = prompts or list(config.prompts)
    if not prompts:
        raise UserError(
            'Say what to make: --prompt "a red chair", --prompts FILE, --image FILE or `prompts`.'
        )
    if config.seed + config.num - 1 > MAX_SEED:
        raise UserError(f"Seeds end at {MAX_SEED}, but --seed {config.seed} --num {config.num} goes beyond.")
    texts = dict.fromkeys(check_prompt(prompt, may_be_empty=bool(image)) for prompt in prompts)
    seeds = range(config.seed, config.seed + config.num)
    return [Wish(text, seed, image, text or label) for text in texts for seed in seeds]


def read_prompts(path: Path) -> list[str]:
    """Returns the lines of a text file that aren't empty; raises UserError if there is none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompts file {path} can't be read as UTF-8 text ({error}).") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"The prompts file {path} is empty; write one prompt a line.")
    return prompts


def load_pipeline(config: SamplingConfig) -> ShapePipeline:
    """Loads what the config names; raises UserError for what is missing or doesn't fit together."""
    if config.prior is None or config.encoder is None or config.clip is None:
        raise UserError(
            "Sampling needs --set prior=RUN/prior encoder=RUN/encoder clip=RUN/clip: finished runs of "
            "prior.train, encoder.train and prior.train_clip."
        )
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda was asked for, but torch finds no CUDA device here; use device=cpu.")
    return ShapePipeline.load(
        prior=config.prior, encoder=config.encoder, clip=config.clip, view_prior=config.view_prior,
        ema=config.ema, device=device,
    )  # fmt: skip


def save_sample(shape: ShapeSample, folder: Path, name: str, config: SamplingConfig) -> Record:
    """Writes an object's files and returns what metadata.json says of them."""
    table = config.turntable
    frames = shape.turntable(table.frames, table.size, samples=table.samples)
    files = {"gif": f"{name}.gif"}
    mesh = shape.mesh(config.mesh)
    for suffix in ("glb", "ply") if mesh.num_faces else ():
        files[suffix] = f"{name}.{suffix}"
        mesh.save(folder / files[suffix])
    if not mesh.num_faces:
        log.warning("%s has no surface (its field keeps one sign), so there is no mesh of it", name)
    write_atomic(folder / files["gif"], gif(frames))
    return {"files": files, "vertices": len(mesh.mesh.vertices), "faces": mesh.num_faces}


def make(
    pipeline: ShapePipeline, missing: Sequence[Wish], picture: UInt8[np.ndarray, "side side 3"] | None,
    config: SamplingConfig, run: Run, album: Album,
) -> None:  # fmt: skip
    """Samples batch by batch and writes object by object."""
    settings = config.model_dump(
        mode="json", include={"steps", "guidance_scale", "sampler", "step_choice", "negative_prompt"}
    )
    with progress(len(missing), "objects") as bar:
        for start in range(0, len(missing), config.batch_size):
            batch = missing[start : start + config.batch_size]
            shapes = pipeline(
                [wish.prompt for wish in batch],
                seeds=[wish.seed for wish in batch],
                image=picture,
                on_step=lambda step: bar.advance(0, f"step {step + 1}/{config.steps}"),
                **settings,
            )
            for wish, shape in zip(batch, shapes, strict=True):
                began = time.monotonic()
                name = album.name_for(wish)
                facts = save_sample(shape, run.folder, name, config)
                identity = {"name": name, "prompt": wish.prompt, "seed": wish.seed, "image": wish.image}
                decode_seconds = round(time.monotonic() - began, 2)
                album.add(
                    {**identity, "label": wish.label, **facts, **settings, "decode_seconds": decode_seconds,
                     "inputs": run.meta["inputs"]}
                )  # fmt: skip
                bar.advance(note=wish.label[:40])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, arguments = parse_stage(
        SamplingConfig, stage="sampling", description=__doc__ or "", argv=argv, add_arguments=add_arguments
    )
    shortcuts = [
        f"{key}={value}" for key in ("num", "seed") if (value := getattr(arguments, key)) is not None
    ]
    if shortcuts:
        overrides = [item for group in arguments.set for item in group]
        config = load_config(SamplingConfig, arguments.config, [*overrides, *shortcuts])
    wanted = wishes(config, arguments)
    start_logging()
    pipeline = load_pipeline(config)
    inputs = {
        "prior": pipeline.prior.digest, "encoder": pipeline.decoder.digest, "clip": pipeline.clip.digest
    }  # fmt: skip
    if pipeline.view_prior is not None:
        inputs["view_prior"] = pipeline.view_prior.digest
    # A folder collects objects of one model and one set of settings; which ones is no part of that.
    kept = config.model_copy(update={"prompts": [], "num": 1, "seed": 0})
    run = Run.open(out, kept, stage="sampling", inputs=inputs)
    album = Album(run.folder)
    missing = [wish for wish in wanted if not album.holds(wish)]
    if not missing and run.done:
        log.info("%s already holds all %d objects", out, len(wanted))
        return
    for word in sorted({word for wish in missing for word in pipeline.clip.unknown_words(wish.prompt)}):
        log.warning("the CLIP of this run never saw %r in its training captions; it will be ignored", word)
    picture = None if arguments.image is None else load_image(arguments.image)
    make(pipeline, missing, picture, config, run, album)
    album.save_contact_sheet()
    run.finish(num_objects=len(album.records))
    log.info("%d objects are in %s; contact_sheet.png shows them", len(album.records), out)


if __name__ == "__main__":
    run_main(main)
