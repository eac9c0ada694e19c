"""Refines shapes by a 2-D diffusion model: score distillation into a latent, or into a field's own matrices.

    python -m sampling.refine --model RUN --prompt "a red chair" --out OUT
    python -m sampling.refine --model RUN --prompt "a red chair" --shape chair.safetensors --out OUT \\
        --set optimise=matrices layers=color

It starts from a sample of the prompt (--shape latent), a ball (none) or a file, and follows RUN/views or the
diffusers text-to-image folder that `guide` names. strip.png shows the way, metadata.json says how well the
shape fitted the prompt before and after. A command that was killed goes on where it was. See docs/refine.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from sampling.album import Album, Record, Wish, first_frame
from sampling.assets import read_shape
from sampling.config import load_pipeline
from sampling.edit import check_levels
from sampling.making import look_at, save_sample
from sampling.pictures import contact_sheet, png
from sampling.pipeline import ShapePipeline, check_prompt
from sampling.refine.config import RefineConfig
from sampling.refine.loading import load_guide, load_judge
from sampling.refine.refiner import Refiner
from sampling.refine.scores import scores
from sampling.refine.subject import blob
from sampling.shape import FOV, ShapeSample, read_latent
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.rendering.cameras import fitting_distance, ring
from shapeloom.runs import Run
from shapeloom.storage import file_digest, write_atomic

log = get_logger("refine")
STRIP_PICTURES = 8
STATE = "state.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shortcuts that people type daily."""
    parser.add_argument("--model", help="a run or saved pipeline folder, or a hub's owner/name")
    parser.add_argument("--prompt", help="what the shape is to be")
    parser.add_argument("--shape", help="where to start: latent (a sample), none (a ball) or a file")
    parser.add_argument("--guide", help="the 2-D model: views, or a diffusers text-to-image folder")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int)


def shortcuts(arguments: argparse.Namespace) -> list[str]:
    """Returns them as overrides of the config."""
    keys = ("model", "shape", "guide", "iterations", "seed")
    given: dict[str, Any] = {key: getattr(arguments, key) for key in keys}
    if arguments.prompt is not None:
        given["prompts"] = [arguments.prompt]
    # JSON is YAML, whatever words and paths hold.
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def starts(pipe: ShapePipeline, prompt: str, config: RefineConfig) -> list[ShapeSample]:
    """Returns the shapes that the particles start from."""
    num = config.particles
    match config.shape:
        case "latent":
            return pipe(
                prompt, num_samples=num, seed=config.seed, steps=config.steps, sampler=config.sampler,
                guidance_scale=config.guidance_scale, step_choice=config.step_choice,
                negative_prompt=config.negative_prompt, guidance=config.guidance,
            )  # fmt: skip
        case "none":
            return [blob(pipe.decoder, prompt, config.seed + i) for i in range(num)]
        case _:
            how: dict[str, Any] = {"steps": config.steps, "guidance_scale": config.guidance_scale}
            return [read_shape(pipe, Path(config.shape), seed=config.seed, **how)] * num


def kept_starts(pipe: ShapePipeline, prompt: str, config: RefineConfig, folder: Path) -> list[ShapeSample]:
    """Returns `starts`, from the files of a run that is resumed if it has them."""
    paths = [folder / f"start_{i:03d}.safetensors" for i in range(config.particles)]
    if all(path.is_file() for path in paths):
        return [read_latent(path, pipe.decoder) for path in paths]
    made = starts(pipe, prompt, config)
    for path, shape in zip(paths, made, strict=True):
        shape.save(path)
    return made


def optimise(refiner: Refiner, config: RefineConfig, run: Run) -> None:
    """Takes all steps from the last saved one on."""
    first = resume(refiner, run.folder / STATE)
    run.start_from(first)
    if first:
        log.info("resuming at step %d of %d", first, config.iterations)
    else:
        draw(refiner, 0, run)
    with progress(config.iterations, "steps", done=first) as bar:
        for number in range(first, config.iterations):
            facts, step = refiner.step(number), number + 1
            last = step == config.iterations
            if step % config.log_every == 0 or last:
                run.scalars(step, facts)
            if step % config.picture_every == 0 or last:
                draw(refiner, step, run)
            if step % config.checkpoint_every == 0 or last:
                data = to_safetensors(refiner.state(), metadata={"step": str(step)})
                write_atomic(run.folder / STATE, data)
                run.save_progress()
            bar.advance(note=f"gradient {facts['gradient']:.3f}")


def resume(refiner: Refiner, path: Path) -> int:
    """Loads the last saved state; returns how many steps it has taken, 0 without one."""
    if not path.is_file():
        return 0
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {})["step"])
        refiner.load(load_file(path))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it to refine from the beginning.") from error
    return step


def draw(refiner: Refiner, step: int, run: Run) -> None:
    """Saves a picture of each particle, from a place that goes round the shape in the course of the run."""
    config = refiner.config
    turn = min(STRIP_PICTURES - 1, STRIP_PICTURES * step // config.iterations)
    pose = ring(STRIP_PICTURES, distance=fitting_distance(FOV))[turn : turn + 1]
    shapes = refiner.subject.shapes(refiner.prompt)
    size = config.turntable.size
    run.pictures(
        step, {f"particle_{i:03d}": shape.render(pose, None, size, size)[0] for i, shape in enumerate(shapes)}
    )


def strip(folder: Path, number: int, *, size: int) -> bytes:
    """Returns a PNG of a particle's pictures in a row: at most STRIP_PICTURES, evenly, first and last too."""
    paths = sorted((folder / "pictures").glob(f"particle_{number:03d}_*.png"))
    chosen = paths
    if len(paths) > STRIP_PICTURES:
        places = torch.linspace(0, len(paths) - 1, STRIP_PICTURES).round().int().tolist()
        chosen = [paths[place] for place in places]
    labels = [f"step {int(path.stem.rpartition('_')[2])}" for path in chosen]
    pictures = [first_frame(path) for path in chosen]
    return png(contact_sheet(pictures, labels, size=size, columns=len(chosen)))


def save(refiner: Refiner, started: list[ShapeSample], judge: Any, config: RefineConfig, run: Run) -> int:
    """Writes strips, files and metadata.json; returns how many shapes score below their start."""
    shapes, album, below = refiner.subject.shapes(refiner.prompt), Album(run.folder), 0
    before, after = (scores(each, refiner.prompt, judge).tolist() for each in (started, shapes))
    for number, shape in enumerate(shapes):
        name = f"{number:03d}"
        write_atomic(run.folder / f"strip_{name}.png", strip(run.folder, number, size=config.turntable.size))
        wish = Wish(refiner.prompt, config.seed + number, "", refiner.prompt)
        mesh, surface = look_at(shape, config)
        stem = album.name_for(wish)
        record: Record = {
            "name": stem, "prompt": wish.prompt, "seed": wish.seed, "image": "", "label": wish.label,
            "fault": surface.fault, **save_sample(shape, mesh, run.folder, stem, config),
            "strip": f"strip_{name}.png", "start": f"start_{name}.safetensors", "judge": judge.name,
            "score_before": round(before[number], 5), "score_after": round(after[number], 5),
            "below_start": after[number] < before[number],
        }  # fmt: skip
        album.add(record)
        if record["below_start"]:
            below += 1
            log.warning(
                "%s fits its prompt less than its start does: %.3f before, %.3f after (by %s). The start is "
                "%s; other settings, or fewer iterations, may do better.",
                stem, before[number], after[number], judge.name, record["start"],
            )  # fmt: skip
    album.save_contact_sheets()
    return below


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, _ = parse_stage(
        RefineConfig, stage="sampling.refine", description=__doc__ or "", argv=argv,
        add_arguments=add_arguments, shortcuts=shortcuts,
    )  # fmt: skip
    if len(config.prompts) != 1:
        raise UserError('Say what the shape is to be, once: --prompt "a red chair".')
    prompt = check_prompt(config.prompts[0])
    if config.start is not None and not config.start.is_file():
        raise UserError(f"{config.start} does not exist; --shape is a file, latent or none.")
    start_logging()
    pipe = load_pipeline(config)
    if config.prior_share:
        check_levels(pipe)
    guide, judge = load_guide(config, pipe), load_judge(config, pipe)
    inputs = {"prior": pipe.prior.digest, "encoder": pipe.decoder.digest, "clip": pipe.clip.digest}
    inputs |= {"guide": guide.digest, "judge": judge.digest}
    if config.start is not None:
        inputs["shape"] = file_digest(config.start)
    with Run.open(out, config, stage="refine", inputs=inputs, places=("model", "shape", "judge")) as run:
        if run.done:
            log.info("%s already holds this refinement", out)
            return
        started = kept_starts(pipe, prompt, config, run.folder)
        refiner = Refiner(pipe, guide, started, prompt, config)
        optimise(refiner, config, run)
        below = save(refiner, started, judge, config, run)
        run.finish(num_objects=len(started), below_start=below)
    log.info(
        "%d shape(s) are in %s; strip_000.png shows the way, metadata.json the scores", len(started), out
    )


if __name__ == "__main__":
    run_main(main)
