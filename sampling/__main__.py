"""Makes shapes from prompts or pictures, and writes them as GLB, PLY and GIF files, or others (`formats`).

    python -m sampling --config configs/sampling/tiny.yaml --model RUN --out RUN/samples \\
        --prompt "a red chair" --prompt "a blue mug" --num 4 --seed 0

A folder may be added to: objects that it holds already (same prompt or picture, same seed) stay as they are.
metadata.json lists them with their settings and files, and counts those that came out broken (`retries`: how
many more seeds such objects are given); contact_sheet.png shows them all. `--shard 2/8` makes every eighth
object, from the third on, in OUT/shard_002_of_008: eight machines make a batch of thousands.
"""

import argparse
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field as Key

from sampling.album import PORTRAIT_SIZE, Album, Record, Wish, count_faults
from sampling.export import MESH_SUFFIXES, TexturedMesh
from sampling.faults import FAULTS, Surface
from sampling.guidance import GuidanceConfig
from sampling.hub import fetch_package
from sampling.mesh import MeshConfig
from sampling.pictures import apng, gif, load_image, png, save_mp4
from sampling.pipeline import MAX_SEED, Picture, ShapePipeline, check_prompt
from sampling.portraits import portrait
from sampling.prompts import own_prompts
from sampling.shape import ShapeSample
from shapeloom.config import Config, UserError, load_config, parse_stage, run_main
from shapeloom.decoder import RenderConfig
from shapeloom.diffusion.samplers import SamplerName
from shapeloom.diffusion.steps import StepChoice
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.pictures import on_white
from shapeloom.runs import Run
from shapeloom.seed import derive_seed
from shapeloom.storage import file_digest, write_atomic

log = get_logger("sampling")

SHORT_SEEDS = 2**31
"""Seeds of retries are below this, so that they can be typed in again."""
Format = Literal["glb", "obj", "ply", "stl", "usdz", "gif", "mp4", "apng", "png", "safetensors"]


class TurntableConfig(Config):
    """The turntable of each object, as GIF, MP4 or APNG; a PNG is its first frame."""

    frames: int = Key(24, ge=1, le=720)
    size: int = Key(128, ge=16, le=2048, description="side in pixels")
    samples: RenderConfig = RenderConfig()


class SamplingConfig(Config):
    """What is sampled, from what, and how it is written."""

    model: str | None = Key(None, description="a run or saved pipeline folder, or a hub's owner/name")
    prior: Path | None = Key(None, description="folder of a finished prior.train; or `model`")
    view_prior: Path | None = Key(
        None, description="folder of a prior.train with predict=views: prompts go through pictures' vectors"
    )
    ema: float | None = Key(None, description="which average of the prior's weights; none: train.ema_decay's")
    encoder: Path | None = Key(None, description="folder of a finished encoder.train")
    clip: str | None = Key(None, description="folder of prior.train_clip, or an open_clip MODEL/TAG")
    prompts: list[str] = Key([], description="used when no --prompt, --prompts or --image is given")
    captions: int = Key(
        8, ge=1, description="without `prompts` either: so many captions that the prior was trained on"
    )
    num: int = Key(1, ge=1, description="objects a prompt; they get the seeds seed, seed + 1, ...")
    seed: int = Key(0, ge=0, le=MAX_SEED)
    steps: int = Key(32, ge=1, le=4096)
    guidance_scale: float = Key(3.0, ge=0)
    sampler: SamplerName = "heun"
    step_choice: StepChoice = "karras"
    negative_prompt: str = ""
    guidance: GuidanceConfig = GuidanceConfig()
    weaker: Path | None = Key(None, description="folder of a worse prior to guide away from (autoguidance)")
    classifier: Path | None = Key(
        None, description="folder of a prior.classifier, for guidance.classifier_scale"
    )
    retries: int = Key(
        0,
        ge=0,
        le=100,
        description="more seeds to try for an object that comes out broken (empty, in crumbs)",
    )
    batch_size: int = Key(8, ge=1, description="objects that are sampled at once")
    formats: list[Format] = Key(["gif", "glb", "ply"], min_length=1, description="files of each object")
    mesh: MeshConfig = MeshConfig()
    turntable: TurntableConfig = TurntableConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = Key(
        "auto", description="of the priors' networks; auto: bf16 on GPUs that have it"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shortcuts that people type daily."""
    parser.add_argument("--prompt", action="append", default=[], help="what to make; repeatable")
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt a line")
    parser.add_argument(
        "--image", type=Path, action="append", default=[],
        help="a PNG or JPEG to follow, beside each prompt or without one; repeatable",
    )  # fmt: skip
    parser.add_argument("--model", help="a run or saved pipeline folder, or a hub's owner/name")
    parser.add_argument("--shard", type=parse_shard, metavar="I/N", help="make every N-th object, from I on")
    parser.add_argument("--num", type=int, help="objects a prompt")
    parser.add_argument("--seed", type=int, help="the first object's seed")


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (index, count) of "2/8", index from 0; raises ArgumentTypeError for anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"a shard is I/N with I from 0 to N - 1, such as 0/8, not {text!r}")
    return int(match[1]), int(match[2])


def wishes(config: SamplingConfig, arguments: argparse.Namespace) -> tuple[list[Wish], dict[str, Picture]]:
    """Returns the objects that the command line and the config ask for, each once, and pictures by digest."""
    prompts = list(arguments.prompt)
    if arguments.prompts is not None:
        prompts += read_prompts(arguments.prompts)
    loaded = [(load_image(path), file_digest(path), path.stem) for path in arguments.image]
    pictures = {digest: picture for picture, digest, _ in loaded}
    names = {digest: name for _, digest, name in loaded} or {"": ""}
    prompts = prompts or ([""] if pictures else list(config.prompts) or captions_of(config))
    if not prompts:
        raise UserError(
            'Say what to make: --prompt "a red chair", --prompts FILE, --image FILE or `prompts`.'
        )
    if config.seed + config.num - 1 > MAX_SEED:
        raise UserError(f"Seeds end at {MAX_SEED}, but --seed {config.seed} --num {config.num} goes beyond.")
    texts = dict.fromkeys(check_prompt(prompt, may_be_empty=bool(pictures)) for prompt in prompts)
    seeds = range(config.seed, config.seed + config.num)
    every = [
        Wish(text, seed, image, text or name)
        for text in texts for image, name in names.items() for seed in seeds
    ]  # fmt: skip
    if arguments.shard is None:
        return every, pictures
    index, count = arguments.shard
    if not every[index::count]:
        raise UserError(f"There are {len(every)} objects to make, so shard {index}/{count} has none.")
    return every[index::count], pictures


def captions_of(config: SamplingConfig) -> list[str]:
    """Returns captions that the config's prior was trained on, if its latents are there."""
    prior = config.prior or (None if config.model is None else Path(config.model, "prior"))
    captions = [] if prior is None else own_prompts(prior, config.captions)
    if captions:
        log.info("no prompt was given, so these are %d captions of the training assets", len(captions))
    return captions


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
    prior, encoder, clip = config.prior, config.encoder, config.clip
    if config.model is not None:
        parts = fetch_package(config.model)
        prior, encoder, clip = prior or parts.prior, encoder or parts.encoder, clip or parts.clip
    if prior is None or encoder is None or clip is None:
        raise UserError(
            "Sampling needs --model RUN, or --set prior=RUN/prior encoder=RUN/encoder clip=RUN/clip: "
            "finished runs of prior.train, encoder.train and prior.train_clip."
        )
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda was asked for, but torch finds no CUDA device here; use device=cpu.")
    on_gpu = device == "cuda" and torch.cuda.is_bf16_supported()
    return ShapePipeline.load(
        prior=prior, encoder=encoder, clip=clip, view_prior=config.view_prior,
        weaker=config.weaker, classifier=config.classifier, ema=config.ema, device=device,
        bf16=on_gpu if config.precision == "auto" else config.precision == "bf16",
    )  # fmt: skip


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
    for kind in [kind for kind in files if f".{kind}" in MESH_SUFFIXES]:
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
    if not paths.keys() & {"gif", "mp4", "apng", "png"}:
        return
    number = table.frames if paths.keys() & {"gif", "mp4", "apng"} else 1
    frames = shape.turntable(number, table.size, samples=table.samples, alpha=True)
    if "png" in paths:
        write_atomic(paths["png"], png(frames[0]))
    if "apng" in paths:
        write_atomic(paths["apng"], apng(frames))
    if "gif" in paths:
        write_atomic(paths["gif"], gif(on_white(frames)))
    if "mp4" in paths:
        save_mp4(paths["mp4"], on_white(frames))


def make(
    pipeline: ShapePipeline, missing: Sequence[Wish], pictures: dict[str, Picture],
    config: SamplingConfig, run: Run, album: Album,
) -> None:  # fmt: skip
    """Samples batch by batch and writes object by object."""
    names = {"steps", "guidance_scale", "sampler", "step_choice", "negative_prompt", "guidance"}
    recorded = config.model_dump(mode="json", include=names)
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


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, arguments = parse_stage(
        SamplingConfig, stage="sampling", description=__doc__ or "", argv=argv, add_arguments=add_arguments
    )
    shortcuts = [
        f"{key}={value}" for key in ("num", "seed", "model") if (value := getattr(arguments, key)) is not None
    ]
    if shortcuts:
        overrides = [item for group in arguments.set for item in group]
        config = load_config(SamplingConfig, arguments.config, [*overrides, *shortcuts])
    start_logging()
    wanted, pictures = wishes(config, arguments)
    if arguments.shard is not None:
        out /= "shard_{:03d}_of_{:03d}".format(*arguments.shard)
    pipeline = load_pipeline(config)
    inputs = {
        "prior": pipeline.prior.digest, "encoder": pipeline.decoder.digest, "clip": pipeline.clip.digest
    }  # fmt: skip
    for name, other in (
        ("view_prior", pipeline.view_prior), ("weaker", pipeline.weaker), ("classifier", pipeline.classifier)
    ):  # fmt: skip
        if other is not None:
            inputs[name] = other.digest
    # A folder collects objects of one model and one set of settings; which ones is no part of that.
    kept = config.model_copy(update={"prompts": [], "captions": 8, "num": 1, "seed": 0})
    with Run.open(out, kept, stage="sampling", inputs=inputs, places=("model",)) as run:
        if run.done and all(map(Album(run.folder).holds, wanted)):
            log.info("%s already holds all %d objects", out, len(wanted))
            return
        run.reopen(kept)  # which keeps other writers out
        album = Album(run.folder)
        missing = [wish for wish in wanted if not album.holds(wish)]
        for word in sorted({word for wish in missing for word in pipeline.clip.unknown_words(wish.prompt)}):
            log.warning(
                "the CLIP of this run never saw %r in its training captions; it will be ignored", word
            )
        make(pipeline, missing, pictures, config, run, album)
        album.save_contact_sheets()
        run.finish(num_objects=len(album.records))
    counts = count_faults(album.records)
    if any(counts[fault] for fault in FAULTS):
        told = ", ".join(f"{counts[fault]} {fault}" for fault in FAULTS if counts[fault])
        log.warning(
            "of %d objects %s; metadata.json says which, retries=2 tries more seeds", counts["objects"], told
        )
    log.info("%d objects are in %s; contact_sheet.png shows them", len(album.records), out)


if __name__ == "__main__":
    run_main(main)
