"""Makes shapes from prompts or pictures, and writes them as GLB, PLY and GIF files, or others (`formats`).

    python -m sampling --config configs/sampling/tiny.yaml --model RUN --out RUN/samples \\
        --prompt "a red chair" --prompt "a blue mug" --num 4 --seed 0
    python -m sampling ... --image front.png back.png --image other.jpg  # two objects: one by two pictures

A folder may be added to: objects that it holds already (same prompt or picture, same seed) stay as they are.
metadata.json lists them with their settings and files, and counts those that came out broken (`retries`: how
many more seeds such objects are given); contact_sheet.png shows them all. `--shard 2/8` makes every eighth
object, from the third on, in OUT/shard_002_of_008: eight machines make a batch of thousands. Pictures lose
their background, and NAME_seen.png shows what the model saw of them (`pictures`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sampling.album import Album, Wish, count_faults
from sampling.config import SamplingConfig, captions_of, load_pipeline
from sampling.cutouts import load_image
from sampling.faults import FAULTS
from sampling.making import make
from sampling.pipeline import MAX_SEED, Picture, check_prompt
from sampling.prompts import read_prompts, read_table
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run
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
) -> tuple[list[Wish], dict[str, list[Picture]]]:
    """Returns the objects that are asked for, each once, and their pictures by digest."""
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
    chosen = list(every)
    if arguments.shard is not None:
        index, count = arguments.shard
        chosen = chosen[index::count]
        if not chosen:
            raise UserError(f"There are {len(every)} objects to make, so shard {index}/{count} has none.")
    shown = {wish.image: paths[wish.image] for wish in chosen if wish.image}
    return chosen, {
        digest: [load_image(path, config.pictures) for path in several] for digest, several in shown.items()
    }


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
    """The command line."""
    config, out, arguments = parse(argv)
    start_logging()
    wanted, pictures = wishes(config, arguments)
    pipeline = load_pipeline(config)
    # A folder collects objects of one model and one set of settings; which ones is no part of that.
    defaults = SamplingConfig()
    kept = config.model_copy(
        update={name: getattr(defaults, name) for name in ("prompts", "captions", "num", "seed")}
    )
    with Run.open(out, kept, stage="sampling", inputs=pipeline.digests, places=("model",)) as run:
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
        most = max((wish.image.count("+") + 1 for wish in missing), default=1)
        if most > pipeline.prior.max_views:
            log.warning(
                "this prior was trained on %d of an object's pictures at a time and is shown %d: one trained "
                "with mixture.max_views=%d makes more of them",
                pipeline.prior.max_views, most, most,
            )  # fmt: skip
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
