"""One call in a process of its own, under limits: whatever it does, the caller goes on and learns why.

The call runs in a fork of this process, so that it starts in microseconds with everything imported and always
from the same state: what one call leaks, the next never meets. Fork from a process with one thread alone.

CPU time decides what took too long, since it hardly depends on what else the machine does; the wall clock
only ends what waits for ever. Memory is what the call adds in private writable pages (Linux's RLIMIT_DATA:
shared libraries and reserved address space don't count). Elsewhere than on Linux memory is not limited.
"""

import ctypes
import faulthandler
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, Literal, NoReturn, TypeVar

T = TypeVar("T")

STDERR_TAIL = 4000
"""Characters kept of what a lost call wrote last."""
EXIT_SECONDS = 10.0
"""Left to a call that has closed its pipe to be gone; how it goes tells why."""
_OWN_FRAMES = re.compile(r"  File .* in _serve\n(?:  File .*\n|  \.\.\.\n)*|^Extension modules: .*\n", re.M)
"""What faulthandler tells of the caller's side of a call, and of every C extension that is imported."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Quota:
    """What one call may use."""

    cpu_seconds: int
    """User and system time together."""
    wall_seconds: float
    memory_bytes: int
    file_bytes: int
    """Of any one file that it writes; bounds what it says on stderr too."""


@dataclass(frozen=True)
class Lost:
    """A call that ended without a result."""

    reason: Literal["cpu_time", "hang", "memory", "killed", "crash"]
    """`killed`: by a SIGKILL from outside, such as the system's when memory is short."""
    message: str
    last_report: Any
    """What the call reported last; None if nothing."""
    stderr: str
    """The end of what it wrote to stderr and stdout, C libraries included."""


@dataclass(frozen=True)
class Cost:
    """What calls used: a sum of CPU time, the highest of the peaks."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    """Of resident memory, what is shared with the caller included."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.cpu_seconds + other.cpu_seconds, max(self.peak_bytes, other.peak_bytes))


def call(function: Callable[[Callable[[Any], None]], T], quota: Quota) -> tuple[T | Lost, Cost]:
    """`function(report)` in a process of its own; its result (pickled on the way), or how it was lost.

    `report` takes a few words about where the function is. An exception in `function` is a bug and
    is raised here as RuntimeError, except MemoryError, which is a loss.
    """
    ours, theirs = Pipe(duplex=False)
    with tempfile.TemporaryFile() as output, ours:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            _serve(function, theirs, quota, output, parent)
        theirs.close()
        return _Listener(child, ours, quota, output).outcome()


class _Listener:
    """The caller's side of one call."""

    def __init__(self, child: int, pipe: Connection, quota: Quota, output: IO[bytes]) -> None:
        self.child, self.pipe, self.quota, self.output = child, pipe, quota, output
        self.last_report: Any = None

    def outcome(self) -> tuple[Any, Cost]:
        """Waits for the end, whatever it is."""
        answer, hung = None, True
        try:
            answer, hung = self._listen()
        finally:  # after KeyboardInterrupt too
            status, usage = self._wait(0.0 if hung else EXIT_SECONDS)
        scale = 1 if sys.platform == "darwin" else 1024
        cost = Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale)
        if answer is None:
            return self._lost(os.waitstatus_to_exitcode(status), cost, hung=hung), cost
        kind, value = answer
        if kind == "error":
            raise RuntimeError(f"a call in a process of its own failed:\n{value}")
        return value, cost

    def _listen(self) -> tuple[tuple[str, Any] | None, bool]:
        """("result" or "error", value), or None and whether the time is up."""
        deadline = time.monotonic() + self.quota.wall_seconds
        while self.pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                kind, value = self.pipe.recv()
            except (EOFError, OSError):
                return None, False
            if kind != "report":
                return (kind, value), False
            self.last_report = value
        return None, True

    def _wait(self, patience: float) -> tuple[int, resource.struct_rusage]:
        """Exit status and usage of the child, which is killed if it stays longer than `patience` seconds."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            child, status, usage = os.wait4(self.child, os.WNOHANG)
            if child:
                return status, usage
            time.sleep(0.001)
        os.kill(self.child, signal.SIGKILL)
        _, status, usage = os.wait4(self.child, 0)
        return status, usage

    def _lost(self, code: int, cost: Cost, *, hung: bool) -> Lost:
        end = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, end - (64 << 10)))
        stderr = _OWN_FRAMES.sub("", self.output.read().decode(errors="replace"))
        quota = self.quota
        if hung:
            how = ("hang", f"took longer than {quota.wall_seconds:g} seconds of the clock")
        elif code == -signal.SIGXCPU or (code == -signal.SIGKILL and cost.cpu_seconds >= quota.cpu_seconds):
            how = ("cpu_time", f"took more than {quota.cpu_seconds} seconds of CPU time")
        elif "bad_alloc" in stderr or "MemoryError" in stderr:
            how = ("memory", f"wanted more than {quota.memory_bytes / 1e6:.0f} MB of memory")
        elif code == -signal.SIGKILL:
            how = ("killed", "was killed from outside: by a person, or by a system short of memory")
        else:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            how = ("crash", f"ended its process ({name})")
        return Lost(*how, self.last_report, stderr[-STDERR_TAIL:])  # type: ignore[arg-type]


def _serve(
    function: Callable[[Callable[[Any], None]], Any],
    pipe: Connection,
    quota: Quota,
    output: IO[bytes],
    parent: int,
) -> NoReturn:
    """The child's whole life."""
    code = 1
    try:
        _confine(quota, output, pipe.fileno(), parent)
        pipe.send(("result", function(lambda message: pipe.send(("report", message)))))
        code = 0
    except MemoryError:
        os.write(2, b"MemoryError")
    except BrokenPipeError:  # the caller is gone
        pass
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
    finally:
        os._exit(code)  # no clean-up: everything open here is the caller's


def _confine(quota: Quota, output: IO[bytes], pipe: int, parent: int) -> None:
    """Ends with the caller, holds none of its files, speaks into `output`, and can't exceed the quota."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # the system short of memory ends this process first, not the run
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output.fileno(), 1), (output.fileno(), 2)):
        os.dup2(source, target)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
    # An inherited end of a pipe would hide the caller's own death from whoever listens there.
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    faulthandler.disable()  # or else `enable` trusts handlers that a library has replaced since
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGXCPU, file=2, chain=True)  # where it was when its time was up
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, quota.file_bytes)
    if _LIBC is not None:
        _limit(resource.RLIMIT_DATA, _private_bytes() + quota.memory_bytes)
    _limit(resource.RLIMIT_CPU, quota.cpu_seconds, grace=2)  # SIGXCPU, then SIGKILL


def _limit(kind: int, soft: int, *, grace: int = 0) -> None:
    highest = resource.getrlimit(kind)[1]
    hard = soft + grace if highest == resource.RLIM_INFINITY else min(soft + grace, highest)
    resource.setrlimit(kind, (min(soft, hard), hard))


def _private_bytes() -> int:
    """What RLIMIT_DATA counts already."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
