"""Makes shapes from prompts or pictures, and writes them as GLB, PLY and GIF files, or others (`formats`).

    python -m sampling --config configs/sampling/tiny.yaml --model RUN --out RUN/samples \\
        --prompt "a red chair" --prompt "a blue mug" --num 4 --seed 0
    python -m sampling ... --image front.png back.png --image other.jpg  # two objects: one by two pictures

A folder may be added to: objects that it holds already (same prompt or picture, same seed) stay as they are.
metadata.json lists them with their settings and files, and counts those that came out broken (`retries`: how
many more seeds such objects are given); contact_sheet.png shows them all. Pictures lose their background, and
NAME_seen.png shows what the model saw of them (`pictures`). A cluster makes thousands by `--executor ray`; or
by `--shard 2/8`, which makes every eighth batch (of `batch_size` objects), from the third on, in
OUT/shard_002_of_008, and `python -m sampling merge OUT --out ALL` in the end.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sampling import merge
from sampling.album import LIST, Album, Wish, count_faults
from sampling.config import SamplingConfig, captions_of, load_pipeline
from sampling.cutouts import load_image
from sampling.faults import FAULTS
from sampling.making import make
from sampling.pipeline import MAX_SEED, ShapePipeline, check_prompt
from sampling.prompts import read_prompts, read_table
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run, text_digest
from shapeloom.storage import file_digest

log = get_logger("sampling")


def shortcuts(arguments: argparse.Namespace) -> list[str]:
    """Returns what of these are keys of the config, as overrides."""
    given = {key: getattr(arguments, key) for key in ("num", "seed", "model")}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def asked_for(config: SamplingConfig, arguments: argparse.Namespace) -> list[tuple[str, tuple[Path, ...]]]:
    """Returns what the command line and the config ask for: (prompt, pictures), each with each of the others.

    Of a CSV file they belong together line by line.
    """
    prompts, images = list(arguments.prompt), [tuple(several) for several in arguments.image]
    if arguments.prompts is not None and arguments.prompts.suffix.lower() == ".csv":
        if prompts or images:
            raise UserError(f"{arguments.prompts} says it all: leave out --prompt and --image beside it.")
        return read_table(arguments.prompts)
    if arguments.prompts is not None:
        prompts += read_prompts(arguments.prompts)
    prompts = prompts or ([""] if images else list(config.prompts) or captions_of(config))
    return [(prompt, several) for prompt in prompts for several in images or [()]]


def wishes(
    config: SamplingConfig, arguments: argparse.Namespace
) -> tuple[list[Wish], dict[str, tuple[Path, ...]]]:
    """Returns the objects that are asked for, each once, and by digest where their pictures lie."""
    asked = asked_for(config, arguments)
    if not asked:
        raise UserError(
            'Say what to make: --prompt "a red chair", --prompts FILE, --image FILE or `prompts`.'
        )
    if config.seed + config.num - 1 > MAX_SEED:
        raise UserError(f"Seeds end at {MAX_SEED}, but --seed {config.seed} --num {config.num} goes beyond.")
    digests = {path: picture_digest(path) for _, several in asked for path in several}
    paths: dict[str, tuple[Path, ...]] = {}
    every: dict[Wish, None] = {}
    for prompt, several in asked:
        text = check_prompt(prompt, may_be_empty=bool(several))
        digest = "+".join(digests[path] for path in several)
        paths[digest] = several
        for seed in range(config.seed, config.seed + config.num):
            every[Wish(text, seed, digest, text or several[0].stem)] = None
    return list(every), paths


def batches_of(
    every: Sequence[Wish], size: int, shard: tuple[int, int] | None
) -> list[list[tuple[int, Wish]]]:
    """Returns what is sampled together, each object with its place among all; of a shard, its batches alone.

    Raises UserError if the shard has none.
    """
    numbered = list(enumerate(every))
    batches = [numbered[start : start + size] for start in range(0, len(numbered), size)]
    index, count = shard or (0, 1)
    if index >= len(batches):
        raise UserError(
            f"There are {len(every)} objects to make, in {len(batches)} batches of batch_size={size}, so "
            f"shard {index}/{count} has none. Ask for fewer shards, or for smaller batches."
        )
    return batches[index::count]


def picture_digest(path: Path) -> str:
    """Returns the digest of a picture's file; raises UserError if there is none."""
    if not path.is_file():
        raise UserError(f"The image {path} does not exist.")
    return file_digest(path)


def parse(argv: Sequence[str] | None) -> tuple[SamplingConfig, Path, argparse.Namespace]:
    """Returns the config with the shortcuts in it, the folder, and what else was typed."""
    config, out, arguments = parse_stage(
        SamplingConfig, stage="sampling", description=__doc__ or "", argv=argv,
        shortcuts=shortcuts,
    )  # fmt: skip
    if arguments.shard is not None:
        out /= "shard_{:03d}_of_{:03d}".format(*arguments.shard)
    return config, out, arguments


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: objects, or `merge`."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["merge"]:
        merge.main(words[1:])
        return
    config, out, arguments = parse(words)
    start_logging()
    every, paths = wishes(config, arguments)
    batches = batches_of(every, config.batch_size, arguments.shard)
    wanted = [wish for batch in batches for _, wish in batch]
    shown = {wish.image for wish in wanted if wish.image}
    pictures = {image: [load_image(path, config.pictures) for path in paths[image]] for image in shown}
    pipeline = load_pipeline(config)
    kept, inputs = _without_objects(config), pipeline.digests
    if arguments.shard is not None:  # whose objects are numbered by their place in the whole list
        inputs = inputs | {LIST: text_digest(json.dumps([[w.prompt, w.seed, w.image] for w in every]))}
    with Run.open(out, kept, stage="sampling", inputs=inputs, places=("model",)) as run:
        if run.done and all(map(Album(run.folder).holds, wanted)):
            log.info("%s already holds all %d objects", out, len(wanted))
            return
        run.reopen(kept)  # which keeps other writers out
        album = Album(run.folder)
        missing = [wish for wish in wanted if not album.holds(wish)]
        _warn(pipeline, missing)
        if arguments.shard is None:
            new = iter(range(album.next_number, album.next_number + len(wanted)))
            batches = [[(-1 if album.find(w) else next(new), w) for _, w in batch] for batch in batches]
        make(pipeline, batches, pictures, config, run, album, arguments.executor)
        album.save_contact_sheets()
        shard = {"shard": [*arguments.shard, len(every)]} if arguments.shard is not None else {}
        run.finish(num_objects=len(album.records), **shard)
    counts = count_faults(album.records)
    if any(counts[fault] for fault in FAULTS):
        told = ", ".join(f"{counts[fault]} {fault}" for fault in FAULTS if counts[fault])
        log.warning(
            "of %d objects %s; metadata.json says which, retries=2 tries more seeds", counts["objects"], told
        )
    log.info("%d objects are in %s; contact_sheet.png shows them", len(album.records), out)


def _without_objects(config: SamplingConfig) -> SamplingConfig:
    """A folder collects objects of one model and one set of settings; which ones is no part of that."""
    defaults = SamplingConfig()
    return config.model_copy(
        update={name: getattr(defaults, name) for name in ("prompts", "captions", "num", "seed")}
    )


def _warn(pipeline: ShapePipeline, missing: Sequence[Wish]) -> None:
    """Of what the model can't follow."""
    for word in sorted({word for wish in missing for word in pipeline.clip.unknown_words(wish.prompt)}):
        log.warning("the CLIP of this run never saw %r in its training captions; it will be ignored", word)
    most = max((wish.image.count("+") + 1 for wish in missing), default=1)
    if most > pipeline.prior.max_views:
        log.warning(
            "this prior was trained on %d of an object's pictures at a time and is shown %d: one trained "
            "with mixture.max_views=%d makes more of them",
            pipeline.prior.max_views, most, most,
        )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
