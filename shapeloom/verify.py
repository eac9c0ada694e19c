"""Reading every byte of what a stage wrote: `python -m data_prep verify DIR` for anything but asset shards.

DIR may be latents, a training's folder (weights, checkpoints, log) or a whole run of several stages.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shapeloom.config import UserError
from shapeloom.records import checkpoint_problem
from shapeloom.runs import read_metrics
from shapeloom.shards import decode_member, read_manifest
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import AnyPath, file_digest, read_json
from shapeloom.weights import checked_digest, read_tensors


def verify_latents(folder: AnyPath) -> list[str]:
    """Everything that is wrong with latent shards, a line each: counts, digests, keys, finite numbers."""
    shards = LatentShards(folder, checked=False)
    problems = list(shards.problems)
    for path in shards.shards:
        if file_digest(path) != read_manifest(path)["sha256"]:
            problems.append(f"{path.name}: its bytes are not those of its manifest")
    counts = Counter(row.key for row in shards.rows)
    problems += [f"{key}: {count} samples have this key" for key, count in counts.items() if count > 1]
    for index, row in enumerate(shards.rows):
        place = f"{shards.shards[row.shard].name}: {row.key}"
        try:
            problems += [f"{place}: {problem}" for problem in _bad_members(shards, index)]
        except Exception as error:  # whatever a damaged member makes a decoder raise
            problems.append(f"{place}: {type(error).__name__}: {error}")
    return problems


def _bad_members(shards: LatentShards, index: int) -> Iterator[str]:
    names = list(shards.rows[index].members)
    for name, data in zip(names, shards.members(index, names), strict=True):
        array = decode_member(name, data)
        if isinstance(array, np.ndarray) and not np.isfinite(array).all():
            yield f"{name} holds numbers that are not finite"


def verify_training(folder: Path) -> list[str]:
    """Everything that is wrong with a trained folder's weights, checkpoints and log."""
    meta = read_json(folder / "meta.json", advice="Copy it again.")
    expected = {name: meta["weights_digest"] for name in ["weights.safetensors"] if "weights_digest" in meta}
    expected |= meta.get("extra_digests", {})
    problems = [text for name, digest in expected.items() if (text := _bad_weights(folder / name, digest))]
    state = folder / "state"
    for path in sorted(state.iterdir()) if state.is_dir() else ():
        if path.is_dir() and (problem := checkpoint_problem(path)):
            problems.append(f"checkpoint {path.name}: {problem}")
    log = folder / "metrics.jsonl"
    lines = [line for line in log.read_text(errors="replace").split("\n") if line] if log.is_file() else []
    if len(lines) != len(read_metrics(folder)):
        problems.append("metrics.jsonl has lines that were never finished (the next resume removes them)")
    return problems


def _bad_weights(path: Path, digest: str) -> str | None:
    try:
        checked_digest(path, digest)
        read_tensors(path)
    except UserError as error:
        return str(error)
    return None


def verify_run(folder: Path, verify_assets: Callable[[AnyPath], list[str]]) -> list[str]:
    """What is wrong with a folder of any stage, or with each stage's in a run; UserError if it is neither.

    verify_assets: data_prep's own check, for prepared assets.
    """
    header = folder / "dataset.json"
    if header.is_file():
        kind = read_json(header, advice="Run the stage that writes it again.").get("kind")
        return verify_latents(folder) if kind == "latents" else verify_assets(folder)
    if (folder / "meta.json").is_file():
        return verify_training(folder)
    parts = sorted(path for path in folder.glob("*") if _is_part(path))
    if not parts:
        raise UserError(f"{folder} holds nothing of Shapeloom that could be verified (no meta.json).")
    return [f"{part.name}: {problem}" for part in parts for problem in verify_run(part, verify_assets)]


def _is_part(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("meta.json", "dataset.json"))
