"""The folder that a stage writes: its resolved config, what it was made from, and whether it is finished.

`config.yaml` is the resolved config, `meta.json` says stage, status, seconds, commit, library versions and
the digests of the inputs; `metrics.jsonl` and TensorBoard events hold curves, `pictures/` pictures.
Running the same command again in the same folder resumes, or finds `done`.
"""

import hashlib
import importlib.metadata
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from shapeloom import __version__
from shapeloom.config import Config, UserError, load_config
from shapeloom.storage import AnyPath, write_atomic

_LIBRARIES = ("torch", "deepspeed", "numpy", "webdataset", "open_clip_torch", "trimesh")


def text_digest(text: str) -> str:
    """Returns the SHA-256 of a text as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_meta(folder: AnyPath, *, stage: str) -> dict[str, Any]:
    """Returns the meta.json of a finished `stage` run; raises UserError if there is none."""
    path = folder / "meta.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a finished {stage} run (it has no meta.json). Run that stage first."
        )
    meta = json.loads(path.read_text())
    if meta["stage"] != stage:
        raise UserError(f"{folder} holds a {meta['stage']} run, but a {stage} run is needed here.")
    if meta["status"] != "done":
        raise UserError(f"The {stage} run in {folder} is not finished. Run its command again to go on.")
    return meta


class Run:
    """One stage's folder. Make it with `Run.open`."""

    def __init__(self, folder: AnyPath, meta: dict[str, Any], *, writes: bool) -> None:
        self._folder, self.meta, self._writes = folder, meta, writes
        self._start = time.monotonic()
        self._writer: SummaryWriter | None = None

    @classmethod
    def open(
        cls,
        out: AnyPath,
        config: Config,
        *,
        stage: str,
        inputs: Mapping[str, str] | None = None,
        writes: bool = True,
    ) -> "Run":
        """Opens or makes the run folder `out`.

        inputs: name -> digest of what the stage reads. writes: False on ranks other than 0.
        Raises UserError if `out` was made by another stage, with another config, or from other inputs.
        """
        resolved = config.model_dump(mode="json")
        path = out / "meta.json"
        if path.is_file():
            meta = json.loads(path.read_text())
            _check_same(out, meta, stage, config, dict(inputs or {}))
            return cls(out, meta, writes=writes)
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file; name a folder.")
        meta = {
            "stage": stage,
            "status": "running",
            "seconds": 0.0,
            "shapeloom": __version__,
            "commit": _commit(),
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            "inputs": dict(inputs or {}),
        }
        if writes:
            write_atomic(out / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
            write_atomic(path, json.dumps(meta, indent=1))
        return cls(out, meta, writes=writes)

    def reopen(self, config: Config) -> None:
        """Makes the stage unfinished again, under `config`: there is more work to do in its folder."""
        self.meta["status"] = "running"
        self.save_progress()
        resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_atomic(self._folder / "config.yaml", resolved)

    @property
    def folder(self) -> Path:
        """Where the stage writes; not to be asked of one that writes to a URL."""
        assert isinstance(self._folder, Path)
        return self._folder

    @property
    def done(self) -> bool:
        """Whether the stage has finished in this folder."""
        return bool(self.meta["status"] == "done")

    def _tensorboard(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        return self._writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl and the same numbers to TensorBoard."""
        if not self._writes:
            return
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._tensorboard().add_scalar(name, value, step)

    def drop_scalars_after(self, step: int) -> None:
        """Removes lines of later steps from metrics.jsonl: a killed run's, which will be written again."""
        path = self.folder / "metrics.jsonl"
        if not self._writes or not path.is_file():
            return
        lines = path.read_text().splitlines(keepends=True)
        # A kill in the middle of a line leaves it without its end.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomic(path, "".join(kept))

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Saves uint8 [height, width, 3] images as pictures/NAME_STEP.png and in TensorBoard."""
        if not self._writes:
            return
        (self.folder / "pictures").mkdir(exist_ok=True)
        for name, image in images.items():
            Image.fromarray(image).save(self.folder / "pictures" / f"{name}_{step:07d}.png")
            self._tensorboard().add_image(name, image, step, dataformats="HWC")

    def note_peak_memory(self, num_bytes: int) -> None:
        """Keeps the highest of all processes' peaks in meta.json's `peak_memory_gb` (10^9 bytes)."""
        self.meta["peak_memory_gb"] = max(self.meta.get("peak_memory_gb", 0.0), round(num_bytes / 1e9, 3))

    def save_progress(self) -> None:
        """Adds the seconds since the last call to meta.json, so that an interrupted run's time counts."""
        now = time.monotonic()
        self.meta["seconds"] += now - self._start
        self._start = now
        self.note_peak_memory(peak_bytes())
        if self._writes:
            write_atomic(self._folder / "meta.json", json.dumps(self.meta, indent=1))

    def finish(self, **facts: Any) -> None:
        """Marks the stage as done and merges `facts` into meta.json."""
        self.meta.update(facts)
        self.meta["status"] = "done"
        self.save_progress()
        if self._writer is not None:
            self._writer.close()


def _check_same(
    out: AnyPath, meta: dict[str, Any], stage: str, config: Config, inputs: dict[str, str]
) -> None:
    advice = "Use another --out, or delete that folder to start over."
    if meta["stage"] != stage:
        raise UserError(f"{out} holds a {meta['stage']} run, so {stage} can't write there. {advice}")
    try:  # keys that are newer than the run have their defaults
        before = load_config(type(config), out / "config.yaml").model_dump(mode="json")
    except UserError:  # keys that are gone since
        before = yaml.safe_load((out / "config.yaml").read_text())
    changed = _differences(before, config.model_dump(mode="json"))
    if changed:
        raise UserError(f"{out} was made with another config ({'; '.join(changed)}). {advice}")
    for name, digest in inputs.items():
        if meta["inputs"].get(name) != digest:
            raise UserError(f"{out} was made from another {name}, which has changed since. {advice}")


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        return [
            text
            for name in names
            for text in _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if before == now else [f"{key} was {before!r}, now {now!r}"]


def peak_bytes() -> int:
    """Returns the most memory that this process or any one of its ended children held."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(each).ru_maxrss for each in who) * unit


def _commit() -> str:
    here = Path(__file__).parent
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
