"""What the world does to a command (full disks, lost files, no memory), told as what, where and what to
do."""

import errno
import os
import shutil
import traceback
from json import JSONDecodeError
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_LOST = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN}
_AGAIN = "Then give the same command again: it goes on from what is finished."
_NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory", "std::bad_alloc")
_NO_PEER = (
    "Connection closed by peer", "Connection reset by peer", "Application timeout caused pair closure",
    "Timed out waiting",
)  # fmt: skip
"""How gloo says that another process has ended or can't be reached."""
_NO_ROOM = ("PytorchStreamWriter failed", "unexpected pos", "iostream error", "os error 28")
"""How torch and safetensors say that a file could not be written to its end: without errno or name."""


def explain(error: BaseException) -> str | None:
    """Returns a sentence for users; None for what only a mistake in the code can have raised."""
    chain = _causes(error)
    for each in chain:
        text = str(each)
        if isinstance(each, MemoryError) or any(words in text for words in _NO_MEMORY):
            return _memory(each)
        if is_no_room(each):
            return _full(None, text.splitlines()[0])
        if isinstance(each, OSError) and each.errno is not None:
            return _system(each)
        if isinstance(each, JSONDecodeError):
            return f"A JSON file is damaged ({each}){_place(error)}. Copy it again, or make it again."
        if type(each).__name__ == "SafetensorError":
            return f"A .safetensors file is damaged ({each}){_place(error)}. Copy it again, or make it again."
        if is_lost_peer(each):
            return (
                "Another process of this run has ended, and this one can't go on without it. Its own last "
                "words, above or in its log, say why. The same command goes on from the last checkpoint."
            )
        if "EADDRINUSE" in text:
            return "The port of this run is taken by another: set MASTER_PORT to a free one."
    return None


def is_lost_peer(error: BaseException) -> bool:
    """Whether torch says of a collective that another process has gone."""
    return type(error).__name__ == "DistBackendError" or any(words in str(error) for words in _NO_PEER)


def is_no_room(error: BaseException) -> bool:
    """Whether a library's exception without errno means that the disk is full."""
    return any(words in str(error) for words in _NO_ROOM)


def _causes(error: BaseException) -> list[BaseException]:
    """The error and those it was raised from; not those that were merely being handled."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__
    return found


def _system(error: OSError) -> str | None:
    name = None if error.filename is None else os.fsdecode(error.filename)
    where, reason = name or "A file", error.strerror or str(error)
    match error.errno:
        case number if number in _FULL:
            return _full(name, reason)
        case number if number in _FORBIDDEN:
            return (
                f"{where} can't be read or written: {reason}{_place(error)}. Check who owns it and whether "
                f"the disk is mounted read-only, or use another --out. {_AGAIN}"
            )
        case errno.ENOENT | errno.ENOTDIR:
            return (
                f"{where} is not there{_place(error)}. Check the path; if it was deleted or moved while "
                "this ran, run the stage that writes it again."
            )
        case number if number in _LOST:
            return f"{where}: {reason}{_place(error)}. The disk or its connection failed: mend that. {_AGAIN}"
        case errno.EMFILE | errno.ENFILE:
            return f"Too many open files ({where}). Raise the limit (`ulimit -n 65536`). {_AGAIN}"
        case errno.ENOMEM:
            return _memory(error)
        case errno.EISDIR | errno.EEXIST | errno.ENOTEMPTY | errno.ENAMETOOLONG | errno.ELOOP:
            return f"{where}: {reason}{_place(error)}. Use another path, or remove what is there."
        case errno.EADDRINUSE:
            return "The port of this run is taken by another: set MASTER_PORT to a free one."
    return None


def _full(name: str | None, reason: str) -> str:
    disk = _disk(name)
    free = f" ({shutil.disk_usage(disk).free / 1e6:,.1f} MB free)" if disk else ""
    what = f"{name} couldn't be written to its end: " if name else ""
    return (
        f"{what}the disk that holds {disk or '--out'} is full{free}, or a limit or quota is reached: "
        f"{reason}. Make space, or move the run to a larger disk. {_AGAIN}"
    )


def _disk(name: str | None) -> Path | None:
    """The nearest folder that exists."""
    if name is None or "://" in name:
        return None
    return next((folder for folder in Path(name).absolute().parents if folder.is_dir()), None)


def _memory(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    what = "The GPU's memory" if "CUDA" in text else "Memory"
    return (
        f"{what} is exhausted ({text}){_place(error)}. Lower the batch: batch_size, or for a trainer "
        "train.batch_size (or raise train.accumulation, which computes the same steps in smaller parts); or "
        f"use fewer workers or a larger machine. {_AGAIN}"
    )


def _place(error: BaseException) -> str:
    """Where in this project it was met, for reports of bugs."""
    root = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(root) and "site-packages" not in path.parts:
            return f" (met in {path.relative_to(root)}, line {frame.lineno})"
    return ""
