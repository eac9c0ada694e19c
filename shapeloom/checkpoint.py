"""Checkpoints of a run: `state/STEP/` holds DeepSpeed's files, `state/latest` names the valid one.

`latest` is renamed into place after everything else is on disk, so a kill at any moment leaves either the
old checkpoint or the new one. Only a run's own checkpoints are ever loaded (they are pickles); all that
anything else loads is `weights.safetensors`.
"""

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from shapeloom.distributed import World, barrier, convert_checkpoint, load_engine, save_engine
from shapeloom.storage import file_digest, write_atomic

KEEP = 2


def save_state(engine: Any, folder: Path, step: int, facts: dict[str, Any], world: World) -> None:
    """Saves the engine and `facts` as the run's newest checkpoint and removes all but the newest two."""
    state = folder / "state"
    tag = f"{step:08d}"
    if world.is_main:
        shutil.rmtree(state / tag, ignore_errors=True)  # what a kill in the middle of a save left
    barrier(world)
    save_engine(engine, state, tag, facts)
    barrier(world)
    if world.is_main:
        (state / tag / "world_size").write_text(str(world.size))
        write_atomic(state / "latest", tag)
        saved = sorted(path for path in state.iterdir() if path.is_dir())
        for path in saved[:-KEEP]:
            shutil.rmtree(path, ignore_errors=True)
    barrier(world)


def prepare_state(folder: Path, zero_stage: int, world: World) -> bool:
    """Makes the run's newest checkpoint fit for this number of processes; returns whether it was converted.

    Only ZeRO 1-3 split a checkpoint, so only theirs are converted, and only for another number of processes.
    """
    state = folder / "state"
    latest = state / "latest"
    if not latest.is_file() or not zero_stage:
        return False
    tag = latest.read_text()
    size = state / tag / "world_size"
    other = size.is_file() and int(size.read_text()) != world.size
    if other and world.is_main:
        converted = f"{tag}-universal"
        shutil.rmtree(state / converted, ignore_errors=True)
        convert_checkpoint(state, tag, converted)
        write_atomic(latest, converted)
    barrier(world)
    return latest.read_text().endswith("-universal")


def load_state(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Loads the run's newest valid checkpoint and returns its facts, or None if there is none."""
    latest = folder / "state" / "latest"
    if not latest.is_file():
        return None
    return load_engine(engine, folder / "state", latest.read_text())


def extra_weights(decay: float) -> str:
    """Returns the file name of an average of another length than weights.safetensors holds."""
    return f"weights_ema{decay:g}.safetensors"


def save_weights(folder: Path, weights: dict[str, Tensor], name: str = "weights.safetensors") -> str:
    """Writes the weights atomically and returns the file's SHA-256."""
    path = folder / name
    write_atomic(path, save({name: value.contiguous() for name, value in weights.items()}))
    return file_digest(path)
