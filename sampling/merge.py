"""Puts the folders of `python -m sampling --shard I/N` together, as one machine would have written them.

    python -m sampling merge OUT --out RUN/samples

Files are copied; metadata.json, contact sheets and the run's own files are written anew. No model is needed.
"""

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampling.album import LIST, Album, Record
from sampling.config import SamplingConfig
from shapeloom.config import UserError, load_config
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.runs import Run, read_meta
from shapeloom.storage import put_file, scratch_file

log = get_logger("sampling")
SHARDS = "shard_*_of_*"


@dataclass(frozen=True)
class Shard:
    """A finished folder of one shard. total: objects that all shards make together."""

    folder: Path
    index: int
    count: int
    total: int
    inputs: dict[str, str]
    config: SamplingConfig


def main(argv: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sampling merge", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a shard's folder, or one that holds them"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all objects")
    arguments = parser.parse_args(argv)
    start_logging()
    folders = [each for folder in arguments.folders for each in sorted(folder.glob(SHARDS)) or [folder]]
    merge([read_shard(folder) for folder in folders], arguments.out)


def read_shard(folder: Path) -> Shard:
    """Returns what a shard's folder is; raises UserError if it isn't one, or isn't finished."""
    meta: dict[str, Any] = read_meta(folder, stage="sampling")
    if "shard" not in meta:
        raise UserError(f"{folder} was not made with --shard, so there is nothing to merge it with.")
    index, count, total = meta["shard"]
    config = load_config(SamplingConfig, folder / "config.yaml")
    return Shard(folder, index, count, total, meta["inputs"], config)


def check_shards(shards: Sequence[Shard]) -> None:
    """Raises UserError, in one sentence, unless these are all shards of one list, each once."""
    first = shards[0]
    for other in shards[1:]:
        unlike = [f"inputs.{name}" for name in first.inputs if other.inputs.get(name) != first.inputs[name]]
        mine, its = (each.config.model_dump(mode="json", exclude={"model"}) for each in (first, other))
        unlike += [name for name in mine if mine[name] != its[name] and name not in first.inputs]
        if other.count != first.count:
            unlike.insert(0, f"the number of shards ({first.count} and {other.count})")
        if unlike:
            raise UserError(
                f"{first.folder} and {other.folder} are not of one command: they differ in "
                f"{', '.join(unlike[:5])}."
            )
    batches = -(-first.total // first.config.batch_size)
    found = Counter(shard.index for shard in shards)
    told = []
    for trouble, wrong in (("missing", lambda num: num < 1), ("there more than once", lambda num: num > 1)):
        those = [f"{i}/{first.count}" for i in range(min(first.count, batches)) if wrong(found[i])]
        told += [f"{', '.join(those)} {'is' if len(those) == 1 else 'are'} {trouble}"] if those else []
    if told:
        raise UserError(f"Of the shards of this list {' and '.join(told)}.")


def merge(shards: Sequence[Shard], out: Path) -> None:
    """Writes all shards' objects into one folder; goes on where it was stopped.

    Raises UserError for shards that are missing, doubled or of other lists, and for files that are gone.
    """
    check_shards(shards)
    first = shards[0]
    inputs = {name: digest for name, digest in first.inputs.items() if name != LIST}
    with Run.open(out, first.config, stage="sampling", inputs=inputs, places=("model",)) as run:
        if run.done and len(Album(run.folder).records) == first.total:
            log.info("%s already holds all %d objects", out, first.total)
            return
        run.reopen(first.config)
        album = Album(run.folder)
        found = [(shard, record) for shard in shards for record in Album(shard.folder).records]
        with progress(len(found), "copying objects") as bar:
            for shard, record in found:
                for name in files_of(record):
                    _copy(shard.folder / name, run.folder / name)
                album.add(record)
                bar.advance()
        album.save()
        album.save_contact_sheets()
        run.finish(num_objects=len(album.records))
    log.info("%d objects of %d shards are in %s", len(album.records), len(shards), out)


def files_of(record: Record) -> list[str]:
    """Returns the names of an object's files in its folder."""
    return [*record["files"].values(), *(record[name] for name in ("portrait", "seen") if name in record)]


def _copy(source: Path, target: Path) -> None:
    """Copies a file, unless it has been; its time is kept."""
    try:
        facts = source.stat()
        if target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (
            facts.st_size, facts.st_mtime,
        ):  # fmt: skip
            return
        with scratch_file(target) as scratch:
            shutil.copy2(source, scratch)
            put_file(scratch, target)
    except FileNotFoundError as error:
        raise UserError(f"{source} is gone: run its shard's command again, which makes it anew.") from error
