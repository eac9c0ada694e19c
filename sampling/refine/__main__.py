"""Refines shapes by a model of pictures, whose gradient goes into a latent or a field's own matrices.

    python -m sampling.refine --model RUN --prompt "a red chair" --out OUT
    python -m sampling.refine --model RUN --prompt "a red chair" --shape chair.safetensors --out OUT \\
        --set optimise=matrices layers=color

It starts from a sample of the prompt (--shape latent), a ball (none) or a file, and follows the model's own
CLIP or the diffusion model of pictures that `guide` names. strip.png shows the way, metadata.json says how
well the shape fitted the prompt before and after. A command that was killed goes on where it was. See
docs/refine.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sampling.album import Album, Record, Wish
from sampling.config import load_pipeline
from sampling.edit import check_levels
from sampling.making import look_at, save_sample
from sampling.pipeline import check_prompt
from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.loading import load_guide, load_judge
from sampling.refine.mesh_stage import MeshRefiner
from sampling.refine.scores import mesh_score
from sampling.refine.work import Refined, kept_starts, optimise, refine, strip
from sampling.shape import ShapeSample
from shapeloom.clip import Clip
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run
from shapeloom.storage import file_digest, write_atomic

log = get_logger("refine")


def shortcuts(arguments: argparse.Namespace) -> list[str]:
    """Returns them as overrides of the config."""
    keys = ("model", "shape", "guide", "iterations", "seed")
    given: dict[str, Any] = {key: getattr(arguments, key) for key in keys}
    if arguments.prompt is not None:
        given["prompts"] = [arguments.prompt]
    # JSON is YAML, whatever words and paths hold.
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def save(
    done: list[Refined], distiller: Distiller, judge: Clip, config: RefineConfig, run: Run
) -> list[Record]:
    """Writes strips, files and metadata.json; returns the records of shapes that score below their start."""
    prompt, album, below = distiller.prompt, Album(run.folder), []
    for number, refined in enumerate(done):
        write_atomic(run.folder / f"strip_{number:03d}.png", refined.strip)
        wish = Wish(prompt, config.seed + number, "", prompt)
        mesh, surface = look_at(refined.shape, config)
        name = album.name_for(wish)
        record: Record = {
            "name": name, "prompt": prompt, "seed": wish.seed, "image": "", "label": prompt,
            "fault": surface.fault, **save_sample(refined.shape, mesh, run.folder, name, config),
            "strip": f"strip_{number:03d}.png", "start": f"start_{number:03d}.safetensors",
            "judge": refined.judge, "score_before": round(refined.before, 5),
            "score_after": round(refined.after, 5), "below_start": refined.is_worse,
        }  # fmt: skip
        if config.mesh_stage.iterations:
            record |= mesh_stage(distiller, refined.shape, number, name, judge, config, run)
        album.add(record)
        worse = [part for part in ("", "mesh_") if record.get(f"{part}below_start")]
        if worse:
            below.append(record)
        for part in worse:
            log.warning(
                "%s%s fits its prompt less than what it started from: %.3f before, %.3f after (by %s). The "
                "start is %s; other settings, or fewer iterations, may do better.",
                name, "'s mesh" if part else "", record[f"{part}score_before"], record[f"{part}score_after"],
                judge.name, record["start"],
            )  # fmt: skip
    album.save_contact_sheets()
    return below


def mesh_stage(
    distiller: Distiller, shape: ShapeSample, number: int, name: str, judge: Clip, config: RefineConfig,
    run: Run,
) -> Record:  # fmt: skip
    """Refines a shape's mesh, writes it as NAME_mesh.glb, and returns what metadata.json says of it."""
    stage, textured = f"mesh{number:03d}", shape.mesh(config.mesh)
    if not textured.num_faces:
        log.warning("%s has no surface, so there is no mesh to refine", name)
        return {}
    mesh = MeshRefiner(textured, distiller, config)
    before = mesh_score(mesh, distiller.prompt, judge)
    steps = config.mesh_stage.iterations
    optimise(mesh, steps, config, run, name=stage, before=config.iterations + number * steps)
    after = mesh_score(mesh, distiller.prompt, judge)
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
    if config.prior_weight:
        check_levels(pipe)
    guide, judge = load_guide(config, pipe), load_judge(config.model, pipe, config.judge)
    if guide.digest == judge.digest:
        raise UserError(
            "The judge is the very CLIP that guide=clip follows, so its scores would say nothing. Evaluate "
            "the run (python -m eval), which trains RUN/eval/judge on other assets, or name another CLIP: "
            "judge=..."
        )
    inputs = {"prior": pipe.prior.digest, "encoder": pipe.decoder.digest, "clip": pipe.clip.digest}
    inputs |= {"guide": guide.digest, "judge": judge.digest}
    if config.start is not None:
        inputs["shape"] = file_digest(config.start)
    if config.image is not None:
        inputs["image"] = file_digest(config.image)
    if config.style is not None:
        if not config.style.is_file():
            raise UserError(f"style: {config.style} does not exist.")
        inputs["style"] = file_digest(config.style)
    if isinstance(config.region, Path):
        if not config.region.is_file():
            raise UserError(f"region: {config.region} does not exist.")
        inputs["region"] = file_digest(config.region)
    places = ("model", "shape", "judge", "guide", "image", "style")
    with Run.open(out, config, stage="refine", inputs=inputs, places=places) as run:
        if run.done:
            log.info("%s already holds this refinement", out)
            return
        started = kept_starts(pipe, prompt, config, run.folder)
        distiller = Distiller(guide, prompt, config)
        done = refine(pipe, started, distiller, judge, config, run)
        below = save(done, distiller, judge, config, run)
        run.finish(num_objects=len(started), below_start=len(below))
    log.info(
        "%d shape(s) are in %s; strip_000.png shows the way, metadata.json the scores", len(started), out
    )


if __name__ == "__main__":
    run_main(main)
