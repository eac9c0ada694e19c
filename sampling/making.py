"""Objects as they are made and written: samples batch by batch, tried again where they are broken."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

from sampling.album import PORTRAIT_SIZE, Album, Record, Wish
from sampling.config import SamplingConfig, TurntableConfig, load_pipeline
from sampling.export import TexturedMesh
from sampling.faults import FAULTS, Surface
from sampling.formats import MESH_FORMATS, PICTURE_FORMATS
from sampling.guidance import SampleSettings
from sampling.pictures import png, save_frames, side_by_side
from sampling.pipeline import Picture, ShapePipeline
from sampling.portraits import portrait
from sampling.shape import ShapeSample
from shapeloom.executors import Executor, check_written, everywhere, run_tasks
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


@dataclass(frozen=True)
class Batch:
    """Objects that are sampled together, and which of them are written.

    names: their file stems, "" for those that are there already: what is sampled together decides how numbers
    are rounded, so that files of a run that was stopped are those of one that wasn't.
    pictures: what each follows; empty where none follows any.
    """

    wishes: tuple[Wish, ...]
    names: tuple[str, ...]
    pictures: tuple[list[Picture], ...]
    config: SamplingConfig
    folder: Path


@lru_cache(1)
def _loaded(config: str) -> ShapePipeline:
    """What a worker keeps from one batch to the next. config: as JSON."""
    return load_pipeline(SamplingConfig.model_validate_json(config))


def make_batch(
    batch: Batch, report: Callable[[Record | str], None], pipeline: ShapePipeline | None = None
) -> list[Record]:
    """Samples a batch and writes its objects; returns their records, each of which is reported at once.

    pipeline: none: the one of the batch's config. Steps are reported too, as strings.
    """
    config = batch.config
    pipe = pipeline or _loaded(config.model_dump_json())
    shown = dict(zip(batch.wishes, batch.pictures, strict=True)) if batch.pictures else {}
    settings = {name: getattr(config, name) for name in SampleSettings.model_fields}

    def sample(wishes: Sequence[Wish], seeds: Sequence[int]) -> list[ShapeSample]:
        return pipe(
            [wish.prompt for wish in wishes], seeds=seeds,
            image=[shown[wish] for wish in wishes] if shown else None,
            on_step=lambda step: report(f"step {step + 1}/{config.steps}"), **settings,
        )  # fmt: skip

    shapes = sample(batch.wishes, [wish.seed for wish in batch.wishes])
    made = []
    for wish, name, shape in zip(batch.wishes, batch.names, shapes, strict=True):
        if name:
            made.append(_make_object(wish, name, shape, batch, sample, pipe.digests))
            report(made[-1])
    return made


def _make_object(
    wish: Wish, name: str, shape: ShapeSample, batch: Batch,
    sample: Callable[[Sequence[Wish], Sequence[int]], list[ShapeSample]], inputs: dict[str, str],
) -> Record:  # fmt: skip
    """Writes an object's files and returns its record."""
    began, config = time.monotonic(), batch.config
    shape, mesh, facts = sound(wish, shape, config, sample)
    facts |= save_sample(shape, mesh, batch.folder, name, config)
    if batch.pictures:  # what the model saw, for whoever wonders at what came of it
        facts["seen"] = f"{name}_seen.png"
        seen = side_by_side(batch.pictures[batch.wishes.index(wish)], size=PORTRAIT_SIZE)
        write_atomic(batch.folder / facts["seen"], png(seen))
    identity = {"name": name, "prompt": wish.prompt, "seed": wish.seed, "image": wish.image}
    recorded = config.model_dump(mode="json", include=set(SampleSettings.model_fields))
    seconds = round(time.monotonic() - began, 2)
    return {
        **identity, "label": wish.label, **facts, **recorded, "decode_seconds": seconds, "inputs": inputs
    }  # fmt: skip


def make(
    pipeline: ShapePipeline, batches: Sequence[Sequence[tuple[int, Wish]]],
    pictures: dict[str, list[Picture]], config: SamplingConfig, run: Run, album: Album,
    executor: Executor = "processes",
) -> None:  # fmt: skip
    """Makes what the album lacks of these batches, here or on Ray: the same files, if both use one thread.

    batches: each object with its number, which names it where the album doesn't know it.
    """
    tasks = [_task(batch, pictures, config, run.folder.absolute(), album) for batch in batches]
    tasks = [task for task in tasks if any(task.names)]
    with progress(sum(map(bool, (name for task in tasks for name in task.names))), "objects") as bar:

        def take(task: Batch, news: Record | str) -> None:
            if isinstance(news, str):
                bar.advance(0, news)
                return
            album.add(news)
            if news["fault"]:
                log.warning("%s is broken: %s", news["name"], FAULTS[news["fault"]])
            bar.advance(note=news["label"][:40])

        function = make_batch if executor == "ray" else partial(make_batch, pipeline=pipeline)
        try:
            for task, records in run_tasks(
                function, tasks, workers=0, on_report=take, executor=executor,
                preload=["sampling.making"], on_gpu=config.device != "cpu",
            ):  # fmt: skip
                for record in records if executor == "ray" else ():  # which passes no reports on
                    for file in record["files"].values():
                        check_written(task.folder / file)
                    take(task, record)
                run.save_progress()
        finally:
            album.save()


def _task(
    batch: Sequence[tuple[int, Wish]], pictures: dict[str, list[Picture]], config: SamplingConfig,
    folder: Path, album: Album,
) -> Batch:  # fmt: skip
    return Batch(
        tuple(wish for _, wish in batch),
        tuple("" if album.holds(wish) else album.name_for(wish, number) for number, wish in batch),
        tuple(pictures[wish.image] for _, wish in batch) if pictures else (),
        everywhere(config, "model", "clip"),
        folder,
    )


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
