"""Checkpoints of a run: `state/STEP/` holds DeepSpeed's files, `state/latest` names the newest whole one.

`record.json`, written when all of a checkpoint's files are there, lists them with their sizes and digests,
and `latest` is renamed into place after it, so a kill at any moment leaves either the old checkpoint or the
new one. A checkpoint that isn't what its record says is passed over for the one before. DeepSpeed's files are
pickles, but are read by torch's restricted loader (shapeloom.distributed.load_engine), which takes numbers
and no code, whoever wrote them. All that anything else loads is `weights.safetensors`.
"""

import errno
import os
import pickle
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from shapeloom.config import UserError
from shapeloom.distributed import (
    World,
    any_process,
    barrier,
    convert_checkpoint,
    from_all,
    from_main,
    load_engine,
    save_engine,
)
from shapeloom.log import get_logger
from shapeloom.records import RECORD, checkpoint_problem, write_record
from shapeloom.storage import file_digest, read_json, write_atomic
from shapeloom.troubles import is_no_room

log = get_logger("checkpoint")
KEEP = 2
UNIVERSAL = "-universal"
"""Ends the name of a checkpoint of ZeRO 1-3 that was made fit for any number of processes."""


def save_state(
    engine: Any, folder: Path, step: int, facts: dict[str, Any], world: World, *, healthy_until: int
) -> None:
    """Saves the engine and `facts` as the run's newest checkpoint.

    Of the others the newest is kept, and the newest that isn't later than step `healthy_until`.
    """
    state = folder / "state"
    tag = f"{step:08d}"
    if world.is_main:
        shutil.rmtree(state / tag, ignore_errors=True)  # what a kill in the middle of a save left
    barrier(world)
    try:
        save_engine(engine, state, tag, facts)
    except BaseException as error:
        shutil.rmtree(state / tag, ignore_errors=True)  # it takes the space that the next try needs
        if is_no_room(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(state / tag)) from None
        raise
    barrier(world)
    if world.is_main:
        write_record(state / tag, {"step": step, "world_size": world.size})
        write_atomic(state / "latest", tag)
        _remove_old(state, step, healthy_until)
    barrier(world)


def _remove_old(state: Path, step: int, healthy_until: int) -> None:
    """Removes what isn't kept, and later steps: of a future that was given up by starting before it."""
    saved = sorted(path for path in state.iterdir() if path.is_dir())
    past = [path for path in saved if _step(path) <= step]
    kept = past[-KEEP:] + [path for path in past if _step(path) <= healthy_until][-1:]
    for path in saved:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    number = path.name.removesuffix(UNIVERSAL)
    return int(number) if number.isdigit() else -1


def choose_state(folder: Path, world: World, *, until: int | None = None) -> str | None:
    """Returns the name of the newest checkpoint that is whole; None if there is none to go on from.

    until: the last step that it may be of; none: any. The main process looks, and the others follow it.
    Raises UserError if no checkpoint can be read, or if a process doesn't see the chosen one.
    """
    problem = None
    tag = None
    if world.is_main:
        try:
            tag = _choose(folder / "state", until)
        except UserError as error:
            problem = str(error)
    tag, problem = from_main((tag, problem), world)
    if problem is not None:
        raise UserError(problem)
    sees = tag is None or (folder / "state" / tag).is_dir()
    blind = [host for host, fine in from_all((socket.gethostname(), sees), world) if not fine]
    if blind:
        raise UserError(
            f"The checkpoint {folder / 'state' / str(tag)} isn't there on {', '.join(sorted(set(blind)))}: "
            "--out must lie on storage that all machines share, at the same path."
        )
    return tag


def _choose(state: Path, until: int | None) -> str | None:
    latest = state / "latest"
    if not latest.is_file():
        return None
    newest = latest.read_text()
    known = sorted((path for path in state.iterdir() if path.is_dir()), reverse=True)
    # First the one that `latest` names; anything later was never finished.
    known = [path for path in known if path.name <= newest]
    if until is not None:
        known = [path for path in known if _step(path) <= until]
        log.warning(
            "going back to before the divergence: %s", f"step {_step(known[0])}" if known else "the beginning"
        )
        if not known:
            return None
    problems: list[str] = []
    for path in known:
        problem = checkpoint_problem(path)
        if problem is None:
            if problems:
                log.warning("%s; going on from the one before, %s", "; ".join(problems), path.name)
            return path.name
        problems.append(f"the checkpoint {path} can't be read: {problem}")
    raise UserError(
        f"None of the checkpoints in {state} can be read ({'; '.join(problems) or newest + ' is missing'}). "
        f"Copy one back, or delete {state} to train from the beginning."
    )


def prepare_state(folder: Path, tag: str | None, zero_stage: int, world: World) -> str | None:
    """Makes a checkpoint fit for this number of processes; returns the name of the one to load.

    Only ZeRO 1-3 split a checkpoint, so only theirs are converted, and only for another number of processes.
    """
    state = folder / "state"
    if tag is None or not zero_stage or tag.endswith(UNIVERSAL):
        return tag
    written_for = from_main(_world_size(state / tag) if world.is_main else None, world)
    if written_for == world.size:
        return tag
    converted = f"{tag}{UNIVERSAL}"
    problem = ""
    if world.is_main:
        shutil.rmtree(state / converted, ignore_errors=True)
        try:
            convert_checkpoint(state, tag, converted)
        except pickle.UnpicklingError as error:
            problem = _not_numbers(state / tag, error)
        else:
            write_record(state / converted, {"step": _step(state / tag), "world_size": None})
            write_atomic(state / "latest", converted)
    if problem := from_main(problem, world):
        raise UserError(problem)
    return converted


def _world_size(folder: Path) -> int:
    if (folder / RECORD).is_file():
        return int(read_json(folder / RECORD, advice="Delete that checkpoint.")["world_size"])
    return int((folder / "world_size").read_text())


def load_state(engine: Any, folder: Path, tag: str, world: World) -> dict[str, Any]:
    """Loads a checkpoint and returns its facts; raises UserError if it holds more than numbers."""
    facts: dict[str, Any] = {}
    problem = ""
    try:
        facts = load_engine(engine, folder / "state", tag)
    except pickle.UnpicklingError as error:
        problem = _not_numbers(folder / "state" / tag, error)
    if any_process(bool(problem), world):
        raise UserError(problem or f"Another process could not load {folder / 'state' / tag}.")
    return facts


def _not_numbers(checkpoint: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    what = f" (it asks for {found[1]})" if found else ""
    return (
        f"{checkpoint} holds more than numbers{what}, so it could run code and wasn't loaded. No checkpoint "
        f"of Shapeloom does. Delete {checkpoint.parent} to train from the beginning."
    )


def extra_weights(decay: float) -> str:
    """Returns the file name of an average of another length than weights.safetensors holds."""
    return f"weights_ema{decay:g}.safetensors"


def save_weights(folder: Path, weights: dict[str, Tensor], name: str = "weights.safetensors") -> str:
    """Writes the weights atomically and returns the file's SHA-256."""
    path = folder / name
    write_atomic(path, save({name: value.contiguous() for name, value in weights.items()}))
    return file_digest(path)
