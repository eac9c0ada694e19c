"""What the command and the web page have in common: where a refinement starts, its steps, what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from sampling.album import first_frame
from sampling.assets import read_shape
from sampling.pictures import contact_sheet, png
from sampling.pipeline import ShapePipeline
from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.mesh_stage import MeshRefiner
from sampling.refine.refiner import Refiner
from sampling.refine.scores import scores
from sampling.refine.subject import blob
from sampling.shape import FOV, ShapeSample, read_latent
from shapeloom.clip import Clip
from shapeloom.config import UserError
from shapeloom.log import get_logger, progress
from shapeloom.rendering.cameras import ring
from shapeloom.runs import Run
from shapeloom.storage import write_atomic
from shapeloom.viewpoints import fitting_distance

log = get_logger("refine")
STRIP_PICTURES = 8

OnStep = Callable[[int, int], None]
"""Called before each step with how many are done, and of how many; may raise to stop the work."""


@dataclass(frozen=True)
class Refined:
    """A shape, what it was before, and how well both fit the prompt (mean cosine of 8 views, by `judge`)."""

    shape: ShapeSample
    start: ShapeSample
    before: float
    after: float
    strip: bytes
    """PNG: the way there, from a camera that goes round it."""
    judge: str

    @property
    def is_worse(self) -> bool:
        """Whether it fits the prompt less than what it started from."""
        return self.after < self.before


def refine(
    pipe: ShapePipeline, started: list[ShapeSample], distiller: Distiller, judge: Clip, config: RefineConfig,
    run: Run, *, on_step: OnStep = lambda done, total: None,
) -> list[Refined]:  # fmt: skip
    """Returns the shapes that the starts become, from the run's last saved step on."""
    refiner = Refiner(pipe, started, distiller, config)
    optimise(refiner, config.iterations, config, run, name="field", before=0, on_step=on_step)
    shapes = refiner.subject.shapes(distiller.prompt)
    before, after = (scores(each, distiller.prompt, judge).tolist() for each in (started, shapes))
    size = config.turntable.size
    return [
        Refined(shape, start, before[i], after[i], strip(run.folder, f"field_{i:03d}", size=size), judge.name)
        for i, (shape, start) in enumerate(zip(shapes, started, strict=True))
    ]


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
    stage: Stage, iterations: int, config: RefineConfig, run: Run, *, name: str, before: int,
    on_step: OnStep = lambda done, total: None,
) -> None:  # fmt: skip
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
            on_step(number, iterations)
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
