"""The folder that a stage writes: its resolved config, what it was made from, and whether it is finished.

`config.yaml` is the resolved config, `meta.json` says stage, status, seconds, commit, library versions and
the digests of the inputs; `metrics.jsonl` and TensorBoard events hold curves, `pictures/` pictures.
Running the same command again in the same folder resumes, or finds `done`. While a stage works, its lock
keeps others out (shapeloom.locks). Inputs are compared by digest; where they lie is a note in config.yaml.
"""

import hashlib
import importlib.metadata
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from shapeloom import __version__, finished
from shapeloom.config import Config, UserError, load_config
from shapeloom.locks import FolderInUse, FolderLock, acquire
from shapeloom.log import get_logger
from shapeloom.storage import AnyPath, naming, read_json, write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = get_logger("runs")
_LIBRARIES = ("torch", "deepspeed", "numpy", "webdataset", "open_clip_torch", "trimesh")
MAY_CHANGE = {
    "learning_rate", "min_learning_rate", "grad_clip", "precision", "checkpoint_every", "log_every",
    "picture_every", "hang_seconds",
}  # fmt: skip
"""Keys of `train` with which an unfinished training may go on in its folder: what a divergence calls for, and
what changes nothing but how often something is written."""


def text_digest(text: str) -> str:
    """Returns the SHA-256 of a text as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_meta(folder: AnyPath, *, stage: str) -> dict[str, Any]:
    """Returns the meta.json of a finished `stage` run; raises UserError if there is none."""
    meta = _own_meta(folder)
    if meta is None:
        raise UserError(
            f"{folder} is not a finished {stage} run (it has no meta.json). Run that stage first."
        )
    if meta["stage"] != stage:
        raise UserError(f"{folder} holds a {meta['stage']} run, but a {stage} run is needed here.")
    if meta["status"] != "done":
        raise UserError(f"The {stage} run in {folder} is not finished. Run its command again to go on.")
    return meta


def read_metrics(folder: AnyPath) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, without those that a kill or a full disk left
    unfinished."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    values = []
    for line in lines:
        with suppress(ValueError):
            values.append(json.loads(line))
    return [value for value in values if isinstance(value, dict) and isinstance(value.get("step"), int)]


def lock_folder(folder: Path) -> FolderLock:
    """Takes the folder's lock; raises UserError that says who has it."""
    try:
        return acquire(folder)
    except FolderInUse as error:
        raise UserError(str(error)) from None


class Run:
    """One stage's folder, for a `with`. Make it with `Run.open`."""

    def __init__(self, folder: AnyPath, meta: dict[str, Any], *, writes: bool) -> None:
        self._folder, self.meta, self._writes = folder, meta, writes
        self._start = time.monotonic()
        self._writer: SummaryWriter | None = None
        self._first_step = 0
        self._lock: FolderLock | None = None

    @classmethod
    def open(
        cls,
        out: AnyPath,
        config: Config,
        *,
        stage: str,
        inputs: Mapping[str, str] | None = None,
        places: Sequence[str] = (),
        writes: bool = True,
    ) -> "Run":
        """Opens or makes the run folder `out`, and keeps other writers out of one that isn't done.

        inputs: name -> digest of what the stage reads. A config key of such a name says where it lies, which
        may change; so may the keys `places`. writes: False on ranks other than 0.
        Raises UserError if `out` is being written by another command, or holds files and no run, or was made
        by another stage, with another config, or from other inputs.
        """
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file; name a folder.")
        run = cls(out, _own_meta(out) or {}, writes=writes)
        given = dict(inputs or {})
        if run.meta:
            _check_same(out, run.meta, stage, config, given, places)
            if run.done and not (lost := _lost_weights(out, run.meta)):
                run._note_end()
                return run
            if run.done:
                log.warning("%s was done, but has lost %s since, which is made again", out, lost)
        elif writes:
            _refuse_foreign(out)
        try:
            run._take(stage, config, given, places)
        except BaseException:
            run.close()
            raise
        return run

    def _take(self, stage: str, config: Config, inputs: dict[str, str], places: Sequence[str]) -> None:
        """Locks the folder and writes what it is; what another command did there until now is looked at
        anew."""
        if self._writes:
            self._take_lock()
            self.meta = _own_meta(self._folder) or {}
        if self.meta:
            changes = _check_same(self._folder, self.meta, stage, config, inputs, places)
            if changes:
                log.warning("%s goes on with changes: %s", self._folder, "; ".join(changes))
                self.meta["changes"] = [*self.meta.get("changes", []), {"what": changes}]
            self.meta["status"] = "running"
        else:
            self.meta = {
                "stage": stage,
                "status": "running",
                "seconds": 0.0,
                "shapeloom": __version__,
                "commit": _commit(),
                "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
                "inputs": inputs,
            }
        if self._writes:
            # In this order: a folder with a config.yaml alone may be anyone's.
            write_atomic(self._folder / "meta.json", json.dumps(self.meta, indent=1))
            self._write_config(config)

    def _take_lock(self) -> None:
        if isinstance(self._folder, Path):  # object stores know no locks
            self._lock = lock_folder(self._folder)

    def _write_config(self, config: Config) -> None:
        resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_atomic(self._folder / "config.yaml", resolved)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = str(self._folder / "(one of its files)")
        self.close()

    def close(self) -> None:
        """Lets others write."""
        if self._writer is not None:
            with suppress(OSError):  # what is left to flush are pictures of curves
                self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def reopen(self, config: Config) -> None:
        """Makes the stage unfinished again, under `config`: there is more work to do in its folder."""
        if self._writes and self._lock is None:
            self._take_lock()
            self.meta = _own_meta(self._folder) or self.meta
        self.meta["status"] = "running"
        self.save_progress()
        if self._writes:
            self._write_config(config)

    @property
    def folder(self) -> Path:
        """Where the stage writes; not to be asked of one that writes to a URL."""
        assert isinstance(self._folder, Path)
        return self._folder

    @property
    def done(self) -> bool:
        """Whether the stage has finished in this folder."""
        return bool(self.meta["status"] == "done")

    def _tensorboard(self) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, and not every stage has curves

            # What a killed run has logged beyond its checkpoint is hidden: it will be logged again.
            purge = self._first_step + 1 if self._first_step else None
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)
        return self._writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl and the same numbers to TensorBoard."""
        if not self._writes:
            return
        path = self.folder / "metrics.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._tensorboard().add_scalar(name, value, step)

    def start_from(self, step: int) -> None:
        """Removes what metrics.jsonl says of later steps: a killed run's, which will be written again.

        Lines that were never finished go too.
        """
        self._first_step = step
        path = self.folder / "metrics.jsonl"
        if not self._writes or not path.is_file():
            return
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.folder) if line["step"] <= step]
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
        if not self._writes:
            return
        if self._lock is not None:
            try:
                self._lock.check()
            except FolderInUse as error:
                raise UserError(f"This command has lost its folder. {error}") from None
        write_atomic(self._folder / "meta.json", json.dumps(self.meta, indent=1))

    def finish(self, **facts: Any) -> None:
        """Marks the stage as done and merges `facts` into meta.json."""
        self.meta.update(facts)
        self.meta["status"] = "done"
        self.save_progress()
        if self._writer is not None:
            self._writer.close()
        self._note_end()

    def _note_end(self) -> None:
        if self._writes and isinstance(self._folder, Path):
            finished.note(self._folder)


def _own_meta(folder: AnyPath) -> dict[str, Any] | None:
    """The folder's meta.json; None if there is none. Raises UserError if it is damaged or isn't ours."""
    path = folder / "meta.json"
    advice = "Copy it back if you have a copy; or else delete the folder, or name another, and start over."
    try:
        meta = read_json(path, advice=advice)
    except FileNotFoundError:
        return None
    if not {"stage", "status", "seconds", "inputs"} <= meta.keys():
        raise UserError(
            f"{path} is not of Shapeloom, so nothing is written or read there. Name another folder."
        )
    return meta


def _refuse_foreign(out: AnyPath) -> None:
    # Names with a dot are this project's own leftovers (of a kill before meta.json) and file managers'.
    paths = [path for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    # Object stores may list folders whose files are gone.
    found = sorted(path.name for path in paths if path.is_file() or any(p.is_file() for p in path.rglob("*")))
    if found:
        raise UserError(
            f"--out {out} holds {len(found)} file(s) or folder(s), such as {found[0]}, and no run of "
            "Shapeloom (no meta.json), so nothing is written there. Name a new or an empty folder."
        )


def _lost_weights(out: AnyPath, meta: Mapping[str, Any]) -> str:
    """The weights that a finished training has lost, or ""."""
    if "weights_digest" in meta and not (out / "weights.safetensors").is_file():
        return "weights.safetensors"
    return ""


def _check_same(
    out: AnyPath, meta: dict[str, Any], stage: str, config: Config, inputs: dict[str, str],
    places: Sequence[str],
) -> list[str]:  # fmt: skip
    """Returns which of MAY_CHANGE are changed; raises UserError for anything else that is."""
    advice = "Use another --out, or delete that folder to start over."
    if meta["stage"] != stage:
        raise UserError(f"{out} holds a {meta['stage']} run, so {stage} can't write there. {advice}")
    changed = _changes(out, config)
    noted = {name for name in inputs if name in meta["inputs"]} | set(places)
    changed = {key: text for key, text in changed.items() if not noted & {key, key.rpartition(".")[2]}}
    for name in sorted(inputs.keys() | meta["inputs"].keys()):
        before, now = meta["inputs"].get(name), inputs.get(name)
        if before and now and before != now:
            raise UserError(f"{out} was made from another {name}, which has changed since. {advice}")
    allowed = {key for key in changed if key.rpartition(".")[2] in MAY_CHANGE and meta["status"] != "done"}
    refused = [text for key, text in changed.items() if key not in allowed]
    if refused:
        raise UserError(f"{out} was made with another config ({'; '.join(refused)}). {advice}")
    return [changed[key] for key in sorted(allowed)]


def _changes(out: AnyPath, config: Config) -> dict[str, str]:
    """Key -> what it was and is."""
    path = out / "config.yaml"
    if not path.is_file():  # killed between meta.json and this
        return {}
    try:  # keys that are newer than the run have their defaults
        before = load_config(type(config), path).model_dump(mode="json")
    except UserError:  # keys that are gone since
        try:
            before = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is damaged ({error}), so it can't be told what this run is. Copy it back, or "
                "delete it if you know that this command has the settings that the run was begun with."
            ) from error
    return _differences(before, config.model_dump(mode="json"))


def _differences(before: Any, now: Any, key: str = "") -> dict[str, str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found: dict[str, str] = {}
        for name in sorted(before.keys() | now.keys()):
            found |= _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        return found
    return {} if before == now else {key: f"{key} was {before!r}, now {now!r}"}


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
