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
from safetensors import SafetensorError, safe_open
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
from sampling.refine.distiller import Distiller
from sampling.refine.loading import load_guide, load_judge
from sampling.refine.mesh_stage import MeshRefiner
from sampling.refine.refiner import Refiner
from sampling.refine.scores import mesh_score, scores
from sampling.refine.subject import blob
from sampling.shape import FOV, ShapeSample, read_latent
from shapeloom.clip import Clip
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.rendering.cameras import ring
from shapeloom.runs import Run
from shapeloom.storage import file_digest, write_atomic
from shapeloom.viewpoints import fitting_distance

log = get_logger("refine")
STRIP_PICTURES = 8


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
            path = Path(config.shape)
            return [read_shape(pipe, path, seed=config.seed, pictures=config.pictures, **how)] * num


def kept_starts(pipe: ShapePipeline, prompt: str, config: RefineConfig, folder: Path) -> list[ShapeSample]:
    """Returns `starts`, from the files of a run that is resumed if it has them."""
    paths = [folder / f"start_{i:03d}.safetensors" for i in range(config.particles)]
    if all(path.is_file() for path in paths):
        return [read_latent(path, pipe.decoder) for path in paths]
    made = starts(pipe, prompt, config)
    for path, shape in zip(paths, made, strict=True):
        shape.save(path)
    return made


Stage = Refiner | MeshRefiner


def optimise(
    stage: Stage, iterations: int, config: RefineConfig, run: Run, *, name: str, before: int
) -> None:
    """Takes all steps of a stage from the last saved one on.

    name: of its state and pictures. before: steps of earlier stages, from which metrics.jsonl goes on.
    """
    path = run.folder / f"state_{name}.safetensors"
    first = resume(stage, path)
    if first < iterations:
        run.start_from(before + first)
    if first:
        log.info("resuming %s at step %d of %d", name, first, iterations)
    else:
        draw(stage, 0, iterations, run, name, config)
    with progress(iterations, f"steps of {name}", done=first) as bar:
        for number in range(first, iterations):
            facts, step = stage.step(number), number + 1
            last = step == iterations
            if step % config.log_every == 0 or last:
                run.scalars(before + step, facts)
            if step % config.picture_every == 0 or last:
                draw(stage, step, iterations, run, name, config)
            if step % config.checkpoint_every == 0 or last:
                write_atomic(path, to_safetensors(stage.state(), metadata={"step": str(step)}))
                run.save_progress()
            bar.advance(note=f"gradient {facts['gradient']:.3f}")


def resume(stage: Stage, path: Path) -> int:
    """Loads the last saved state; returns how many steps it has taken, 0 without one."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {})["step"])
        stage.load(load_file(path))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it to refine from the beginning.") from error
    return step


def draw(stage: Stage, step: int, iterations: int, run: Run, name: str, config: RefineConfig) -> None:
    """Saves a picture of each particle, from a place that goes round the shape in the course of the run."""
    turn = min(STRIP_PICTURES - 1, STRIP_PICTURES * step // iterations)
    pose = ring(STRIP_PICTURES, distance=fitting_distance(FOV))[turn : turn + 1]
    shown = stage.pictures(pose, config.turntable.size)
    run.pictures(step, {f"{name}_{i:03d}": picture for i, picture in enumerate(shown)})


def strip(folder: Path, name: str, *, size: int) -> bytes:
    """Returns a PNG of a particle's pictures in a row: at most STRIP_PICTURES, evenly, first and last too."""
    paths = sorted((folder / "pictures").glob(f"{name}_*.png"))
    chosen = paths
    if len(paths) > STRIP_PICTURES:
        places = torch.linspace(0, len(paths) - 1, STRIP_PICTURES).round().int().tolist()
        chosen = [paths[place] for place in places]
    labels = [f"step {int(path.stem.rpartition('_')[2])}" for path in chosen]
    pictures = [first_frame(path) for path in chosen]
    return png(contact_sheet(pictures, labels, size=size, columns=len(chosen)))


def save(
    refiner: Refiner, started: list[ShapeSample], judge: Clip, config: RefineConfig, run: Run
) -> list[Record]:
    """Writes strips, files and metadata.json; returns the records of shapes that score below their start."""
    prompt, size = refiner.distiller.prompt, config.turntable.size
    shapes, album = refiner.subject.shapes(prompt), Album(run.folder)
    before, after = (scores(each, prompt, judge).tolist() for each in (started, shapes))
    below = []
    for number, shape in enumerate(shapes):
        write_atomic(
            run.folder / f"strip_{number:03d}.png", strip(run.folder, f"field_{number:03d}", size=size)
        )
        wish = Wish(prompt, config.seed + number, "", prompt)
        mesh, surface = look_at(shape, config)
        name = album.name_for(wish)
        record: Record = {
            "name": name, "prompt": prompt, "seed": wish.seed, "image": "", "label": prompt,
            "fault": surface.fault, **save_sample(shape, mesh, run.folder, name, config),
            "strip": f"strip_{number:03d}.png", "start": f"start_{number:03d}.safetensors",
            "judge": judge.name, "score_before": round(before[number], 5),
            "score_after": round(after[number], 5), "below_start": after[number] < before[number],
        }  # fmt: skip
        if config.mesh_stage.iterations:
            record |= mesh_stage(refiner, shape, number, name, judge, run)
        album.add(record)
        if record["below_start"] or record.get("mesh_below_start"):
            below.append(record)
            log.warning(
                "%s fits its prompt less than what it started from: %.3f before, %.3f after (by %s). The "
                "start is %s; other settings, or fewer iterations, may do better.",
                name, before[number], record.get("mesh_score_after", after[number]), judge.name,
                record["start"],
            )  # fmt: skip
    album.save_contact_sheets()
    return below


def mesh_stage(
    refiner: Refiner, shape: ShapeSample, number: int, name: str, judge: Clip, run: Run
) -> Record:  # fmt: skip
    """Refines a shape's mesh, writes it as NAME_mesh.glb, and returns what metadata.json says of it."""
    config, stage = refiner.config, f"mesh{number:03d}"
    textured = shape.mesh(config.mesh)
    if not textured.num_faces:
        log.warning("%s has no surface, so there is no mesh to refine", name)
        return {}
    mesh = MeshRefiner(textured, refiner.distiller, config)
    before = mesh_score(mesh, refiner.distiller.prompt, judge)
    steps = config.mesh_stage.iterations
    optimise(mesh, steps, config, run, name=stage, before=config.iterations + number * steps)
    after = mesh_score(mesh, refiner.distiller.prompt, judge)
    mesh.result().save(run.folder / f"{name}_mesh.glb")
    picture = strip(run.folder, f"{stage}_000", size=config.turntable.size)
    write_atomic(run.folder / f"strip_{stage}.png", picture)
    return {
        "mesh": f"{name}_mesh.glb", "mesh_strip": f"strip_{stage}.png", "mesh_score_before": round(before, 5),
        "mesh_score_after": round(after, 5), "mesh_below_start": after < before,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, _ = parse_stage(
        RefineConfig, stage="sampling.refine", description=__doc__ or "", argv=argv,
        shortcuts=shortcuts,
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
    if config.image is not None:
        inputs["image"] = file_digest(config.image)
    with Run.open(
        out, config, stage="refine", inputs=inputs, places=("model", "shape", "judge", "guide", "image")
    ) as run:
        if run.done:
            log.info("%s already holds this refinement", out)
            return
        started = kept_starts(pipe, prompt, config, run.folder)
        refiner = Refiner(pipe, started, Distiller(guide, prompt, config), config)
        optimise(refiner, config.iterations, config, run, name="field", before=0)
        below = save(refiner, started, judge, config, run)
        run.finish(num_objects=len(started), below_start=len(below))
    log.info(
        "%d shape(s) are in %s; strip_000.png shows the way, metadata.json the scores", len(started), out
    )


if __name__ == "__main__":
    run_main(main)
