"""Edits of shapes, each with a strip of pictures: variations, new looks, and walks between shapes or prompts.

    python -m sampling.edits vary --model RUN --out DIR --shape chair.safetensors --prompt "a blue chair"
    python -m sampling.edits vary ... --shape chair.glb --layers color --strength 1   # a new look alone
    python -m sampling.edits between --model RUN --out DIR --shape a.safetensors --shape b.glb --num 7
    python -m sampling.edits morph --model RUN --out DIR --prompt "a red chair" --prompt "a red mug" --num 7

A shape is a latent (.safetensors, as `python -m sampling --set formats=[safetensors]` and the web page write
it), a 3D file or a picture. strip.png shows what an edit starts from, then what it makes; `formats` are the
files of each. Running the same command again says that it is done.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field as Key

from sampling.album import file_stem
from sampling.assets import read_shape
from sampling.config import SamplingConfig, load_pipeline
from sampling.edit import Layers, check_levels, interpolate, morph, strip, vary
from sampling.making import look_at, save_sample
from sampling.pictures import png
from sampling.pipeline import MAX_SEED, ShapePipeline
from sampling.shape import ShapeSample
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run
from shapeloom.storage import file_digest, write_atomic

log = get_logger("edits")


class EditConfig(SamplingConfig):
    """An edit; `num` is of variations, or of the steps of a walk with both ends."""

    edit: Literal["vary", "between", "morph"] = Key(
        "vary", description="variations of a shape, a walk between two shapes, or one between two prompts"
    )
    shapes: list[Path] = Key(
        [], description="latents (.safetensors), 3D files or pictures: vary 1, between 2"
    )
    num: int = Key(5, ge=1, le=64, description="variations, or steps of a walk with both ends")
    strength: float = Key(0.6, gt=0, le=1, description="of vary: the share of the noise that is walked again")
    layers: Layers = Key("all", description="of vary: what changes")
    to_seed: int | None = Key(
        None, ge=0, le=MAX_SEED, description="of morph: the last one's seed; none: seed"
    )


def shortcuts(arguments: argparse.Namespace) -> list[str]:
    """Returns them as overrides of the config."""
    given: dict[str, Any] = {
        "edit": arguments.edit, "model": arguments.model, "strength": arguments.strength,
        "layers": arguments.layers, "num": arguments.num, "seed": arguments.seed,
        "to_seed": arguments.to_seed, "shapes": arguments.shape or None,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    # A preset's prompts are of objects to make. JSON is YAML, whatever words and paths hold.
    given["prompts"] = arguments.prompt
    return [f"{key}={json.dumps(value, default=str)}" for key, value in given.items()]


def check(config: EditConfig) -> None:
    """Raises UserError unless the edit has the shapes and prompts that it needs."""
    shapes, prompts = {"vary": (1, 1), "between": (2, 0), "morph": (0, 2)}[config.edit]
    if (len(config.shapes), len(config.prompts)) != (shapes, prompts):
        raise UserError(
            f"{config.edit} takes {shapes} --shape and {prompts} --prompt, but got {len(config.shapes)} and "
            f"{len(config.prompts)}."
        )
    if config.edit != "vary" and config.num < 2:
        raise UserError(f"A walk has 2 steps or more, its ends, not {config.num}.")
    missing = [str(path) for path in config.shapes if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} does not exist.")


def edit(pipe: ShapePipeline, config: EditConfig) -> tuple[list[ShapeSample], list[ShapeSample]]:
    """Returns what an edit starts from, and what it makes."""
    how: dict[str, Any] = {"steps": config.steps, "guidance_scale": config.guidance_scale}
    shapes = [
        read_shape(pipe, path, seed=config.seed, pictures=config.pictures, **how) for path in config.shapes
    ]
    match config.edit:
        case "vary":
            made = vary(
                pipe, shapes[0], config.prompts[0], strength=config.strength, layers=config.layers,
                num_samples=config.num, seed=config.seed, sampler=config.sampler, **how,
            )  # fmt: skip
            return shapes, made
        case "between":
            return [], interpolate(pipe, shapes[0], shapes[1], num_samples=config.num)
        case "morph":
            last = config.seed if config.to_seed is None else config.to_seed
            first, other = config.prompts
            made = morph(
                pipe, (first, other), seeds=(config.seed, last), num_samples=config.num,
                sampler=config.sampler, **how,
            )  # fmt: skip
            return [], made


def save(
    config: EditConfig, started: Sequence[ShapeSample], made: Sequence[ShapeSample], folder: Path
) -> None:
    """Writes strip.png, the files of each shape that was made, and edits.json, which lists them."""
    records = []
    for number, shape in enumerate(made):
        mesh, surface = look_at(shape, config)
        facts = save_sample(
            shape, mesh, folder, f"{number:03d}_{file_stem(shape.prompt, shape.seed)}", config
        )
        records.append({"prompt": shape.prompt, "seed": shape.seed, "fault": surface.fault, **facts})
    labels = ["from: " + (shape.prompt or "picture") for shape in started]
    if config.edit == "vary":
        labels += [f"{shape.prompt}, seed {shape.seed}" for shape in made]
    else:
        labels += [f"{number / (len(made) - 1):.0%} {shape.prompt}" for number, shape in enumerate(made)]
    write_atomic(folder / "strip.png", png(strip([*started, *made], labels, size=config.turntable.size)))
    write_atomic(folder / "edits.json", json.dumps(records, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, _ = parse_stage(
        EditConfig, stage="sampling.edits", description=__doc__ or "", argv=argv,
        shortcuts=shortcuts,
    )  # fmt: skip
    check(config)
    start_logging()
    pipe = load_pipeline(config)
    if config.edit != "between":
        check_levels(pipe)
    inputs = {"prior": pipe.prior.digest, "encoder": pipe.decoder.digest, "clip": pipe.clip.digest}
    inputs |= {f"shape {number}": file_digest(path) for number, path in enumerate(config.shapes)}
    with Run.open(out, config, stage="edits", inputs=inputs, places=("model", "shapes")) as run:
        if run.done:
            log.info("%s already holds this edit", out)
            return
        started, made = edit(pipe, config)
        save(config, started, made, run.folder)
        run.finish(num_objects=len(made))
    log.info("%d shapes are in %s; strip.png shows them", len(made), out)


if __name__ == "__main__":
    run_main(main)
