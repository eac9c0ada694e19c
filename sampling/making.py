"""Objects as they are made and written: samples batch by batch, tried again where they are broken."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from sampling.album import PORTRAIT_SIZE, Album, Record, Wish
from sampling.config import SamplingConfig, TurntableConfig
from sampling.export import TexturedMesh
from sampling.faults import FAULTS, Surface
from sampling.formats import MESH_FORMATS, PICTURE_FORMATS
from sampling.guidance import SampleSettings
from sampling.pictures import png, save_frames, side_by_side
from sampling.pipeline import Picture, ShapePipeline
from sampling.portraits import portrait
from sampling.shape import ShapeSample
from shapeloom.log import get_logger, progress
from shapeloom.runs import Run
from shapeloom.seed import derive_seed
from shapeloom.storage import write_atomic

log = get_logger("sampling")
SHORT_SEEDS = 2**31
"""Seeds of retries are below this, so that they can be typed in again."""


def look_at(shape: ShapeSample, config: SamplingConfig) -> tuple[TexturedMesh | None, Surface]:
    """Returns an object's mesh, where more than its latent is asked for, and what its surface is like."""
    if set(config.formats) == {"safetensors"}:
        return None, shape.surface(config.mesh)
    mesh = shape.mesh(config.mesh)
    return mesh, mesh.mesh.surface


def save_sample(
    shape: ShapeSample, mesh: TexturedMesh | None, folder: Path, name: str, config: SamplingConfig
) -> Record:
    """Writes an object's files and returns what metadata.json says of them."""
    files = {kind: f"{name}.{kind}" for kind in config.formats}
    save_pictures(shape, {kind: folder / file for kind, file in files.items()}, config.turntable)
    if mesh is None:
        return {"files": files}
    for kind in [kind for kind in files if kind in MESH_FORMATS]:
        if mesh.num_faces:
            mesh.save(folder / files[kind])
        else:
            del files[kind]
    drawn = portrait(shape, mesh, size=PORTRAIT_SIZE, samples=config.turntable.samples)
    write_atomic(folder / f"{name}_portrait.png", png(drawn))
    own = mesh.mesh
    return {
        "files": files, "portrait": f"{name}_portrait.png", "vertices": len(own.vertices),
        "faces": mesh.num_faces, "max_faces": config.mesh.max_faces, "parts": own.num_parts,
        "watertight": own.watertight,
    }  # fmt: skip


def save_pictures(shape: ShapeSample, paths: dict[str, Path], table: TurntableConfig) -> None:
    """Writes those of `paths` (by kind) that are pictures, or the latent; each frame is rendered once."""
    if "safetensors" in paths:
        shape.save(paths["safetensors"])
    pictures = [kind for kind in paths if kind in PICTURE_FORMATS]
    if not pictures:
        return
    number = 1 if pictures == ["png"] else table.frames
    frames = shape.turntable(number, table.size, samples=table.samples, alpha=True)
    for kind in pictures:
        save_frames(paths[kind], frames)


def make(
    pipeline: ShapePipeline, missing: Sequence[Wish], pictures: dict[str, list[Picture]],
    config: SamplingConfig, run: Run, album: Album,
) -> None:  # fmt: skip
    """Samples batch by batch and writes object by object."""
    names = SampleSettings.model_fields.keys()
    recorded = config.model_dump(mode="json", include=set(names))
    with progress(len(missing), "objects") as bar:

        def sample(wishes: Sequence[Wish], seeds: Sequence[int]) -> list[ShapeSample]:
            return pipeline(
                [wish.prompt for wish in wishes],
                seeds=seeds,
                image=[pictures[wish.image] for wish in wishes] if pictures else None,
                on_step=lambda step: bar.advance(0, f"step {step + 1}/{config.steps}"),
                **{name: getattr(config, name) for name in names},
            )

        for start in range(0, len(missing), config.batch_size):
            batch = missing[start : start + config.batch_size]
            for wish, shape in zip(batch, sample(batch, [wish.seed for wish in batch]), strict=True):
                began = time.monotonic()
                name = album.name_for(wish)
                identity = {"name": name, "prompt": wish.prompt, "seed": wish.seed, "image": wish.image}
                shape, mesh, facts = sound(wish, shape, config, sample)
                facts |= save_sample(shape, mesh, run.folder, name, config)
                if wish.image:  # what the model saw, for whoever wonders at what came of it
                    facts["seen"] = f"{name}_seen.png"
                    shown = side_by_side(pictures[wish.image], size=PORTRAIT_SIZE)
                    write_atomic(run.folder / facts["seen"], png(shown))
                decode_seconds = round(time.monotonic() - began, 2)
                album.add(
                    {**identity, "label": wish.label, **facts, **recorded, "decode_seconds": decode_seconds,
                     "inputs": run.meta["inputs"]}
                )  # fmt: skip
                if facts["fault"]:
                    log.warning("%s is broken: %s", name, FAULTS[facts["fault"]])
                bar.advance(note=wish.label[:40])


def sound(
    wish: Wish, shape: ShapeSample, config: SamplingConfig,
    sample: Callable[[Sequence[Wish], Sequence[int]], list[ShapeSample]],
) -> tuple[ShapeSample, TexturedMesh | None, Record]:  # fmt: skip
    """Returns the shape or, where it is broken, the first of its next seeds' that isn't, or the last tried.

    With its mesh and what metadata.json says of it: the fault, and the seeds that were tried before.
    """
    tried: list[Record] = []
    while True:
        mesh, surface = look_at(shape, config)
        if not surface.fault or len(tried) == config.retries:
            facts = {"made_with_seed": shape.seed, "fault": surface.fault, "surface": asdict(surface)}
            return shape, mesh, facts | {"tried": tried}
        tried.append({"seed": shape.seed, "fault": surface.fault})
        # seed + 1 would be the prompt's next object's own.
        seed = derive_seed("retry", wish.seed, len(tried)) % SHORT_SEEDS
        (shape,) = sample([wish], [seed])
