"""One writer a folder: a lock file that needs no flock, so that it holds on shared file systems too.

`OUT/.lock` says who writes there: host, process, when it began and what it runs. It is made by hard link,
which either succeeds or finds another's, and its holder touches it every few seconds. It counts as left
behind when its process is gone (seen from the same machine), or has given no sign of life for two minutes
(from any other). Standard library alone: a second command is refused before anything heavy is imported.
"""

import atexit
import json
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

NAME = ".lock"
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
"""Far more than a heartbeat: network file systems show another machine's changes up to a minute late."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. machine: of which process numbers mean the same; started: tells reused numbers
    apart."""

    token: str
    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    started: str = ""
    since: str = "an unknown time"
    command: str = ""

    def refusal(self, folder: Path, age: float) -> str:
        """What the second writer reads. age: seconds since the last sign of life."""
        here = self.machine == _machine()
        hint = "" if here else (
            f" Its last sign of life is {max(0.0, age):.0f} s old; if that machine is gone, try again once "
            f"it is {STALE_SECONDS:.0f} s."
        )  # fmt: skip
        return (
            f"{folder} is being written by another command: process {self.pid} on {self.host}, since "
            f"{self.since} ({self.command}). Wait for it, end it, or use another --out.{hint}"
        )


class FolderInUse(Exception):
    """Another command holds the lock; the text is for users."""


class FolderLock:
    """A held lock; made by `acquire`."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        self.path, self._holder, self._owner = folder / NAME, holder, os.getpid()
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="lock heartbeat", daemon=True).start()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                if _read(self.path) == self._holder:
                    os.utime(self.path)

    def check(self) -> None:
        """Raises FolderInUse if another has taken the lock over, as after a long suspension."""
        found = _read(self.path)
        if found is not None and found != self._holder:
            raise FolderInUse(found.refusal(self.path.parent, _age(self.path)))

    def release(self) -> None:
        """Lets others write. Does nothing in a fork of the process that took it."""
        self._released.set()
        if os.getpid() == self._owner:
            with suppress(OSError):
                if _read(self.path) == self._holder:
                    self.path.unlink()


_held: dict[Path, FolderLock] = {}


def acquire(folder: Path) -> FolderLock:
    """Takes the lock of `folder`, which is made if need be; raises FolderInUse if another process has it.

    A process that has it already gets it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    holder = _me()
    text = json.dumps(asdict(holder))
    while not _create(path, text):
        found = _read(path)
        if found is None:
            continue  # released just now
        if _is_mine(found):
            holder = found
            break
        age = _age(path, probe=True)
        if _alive(found, age):
            raise FolderInUse(found.refusal(folder, age))
        _remove_stale(path, found)
    known = _held.get(folder.resolve())
    if known is not None and known._holder == holder and not known._released.is_set():
        return known
    _held[folder.resolve()] = lock = FolderLock(folder, holder)
    atexit.register(lock.release)
    return lock


def named_folder(words: Sequence[str]) -> Path | None:
    """The --out among a stage's options; None if there is none, and for a URL."""
    found = [b for a, b in pairwise(words) if a == "--out"]
    found += [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
    return Path(found[-1]) if found and "://" not in found[-1] else None


def refusal(folder: Path) -> str | None:
    """What to tell a second writer; None if nobody writes there. Changes nothing."""
    try:
        found = _read(folder / NAME)
        age = _age(folder / NAME)
    except OSError:
        return None
    if found is None or _is_mine(found) or not _alive(found, age):
        return None
    return found.refusal(folder, age)


def restarted() -> bool:
    """Whether a launcher has started this job again by itself: torchrun its processes, or Slurm the job."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count not in ("", "0") for count in counts)


def _create(path: Path, text: str) -> bool:
    """Whether the lock is ours now: written aside and linked, which on NFS too only one can do."""
    aside = path.with_name(f"{NAME}.{secrets.token_hex(6)}")
    try:
        aside.write_text(text)
        try:
            os.link(aside, path)
        except FileExistsError:
            # A repeated request of NFS fails although the first one, whose answer was lost, linked.
            return aside.stat().st_nlink == 2
        except OSError:  # no hard links here: FAT, some mounts of object stores
            try:
                with path.open("x") as file:
                    file.write(text)
            except FileExistsError:
                return False
        return True
    finally:
        aside.unlink(missing_ok=True)


def _remove_stale(path: Path, stale: Holder) -> None:
    """Moves the lock aside, and back if it isn't the stale one any more: another was as quick."""
    aside = path.with_name(f"{NAME}.{secrets.token_hex(6)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != stale:
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """None: there is no lock. One that can't be understood (half written, damaged) has only its text."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return Holder(token=text)


def _age(path: Path, *, probe: bool = False) -> float:
    """Seconds since the last sign of life. probe: by the file system's own clock, which may not be ours."""
    now = time.time()
    if probe:
        clock = path.with_name(f"{NAME}.{secrets.token_hex(6)}")
        try:
            clock.touch()
            now = clock.stat().st_mtime
        finally:
            clock.unlink(missing_ok=True)
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _alive(holder: Holder, age: float) -> bool:
    if holder.machine and holder.machine == _machine():
        return _started(holder.pid) == holder.started
    return age < STALE_SECONDS


def _is_mine(holder: Holder) -> bool:
    return (holder.machine, holder.pid, holder.started) == (_machine(), os.getpid(), _started(os.getpid()))


def _me() -> Holder:
    words = sys.orig_argv[1:] or sys.argv
    pid = os.getpid()
    return Holder(
        token=secrets.token_hex(8), host=socket.gethostname(), machine=_machine(), pid=pid,
        started=str(_started(pid)), since=time.strftime("%Y-%m-%d %H:%M:%S"),
        command=shlex.join(["python", *words])[:200],
    )  # fmt: skip


@lru_cache
def _machine() -> str:
    """What process numbers belong to: on Linux a boot of a kernel and a namespace (containers have their
    own)."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process began, as the system counts; "" where that can't be asked; None if it is gone."""
    try:
        # After the name in brackets, which may hold anything: state (3rd), ..., start time (22nd).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
