"""Runs test files again and again on a tree that changes: each time in a fork, quickest tests first.

What tests import of other projects is imported once, here; the project's own modules by each fork. So a run
takes about a second and its tests' time, not the seconds that torch and DeepSpeed take to import. The first
run of test files (`measure`) notes what each test and each fixture takes. Runs share bytecode, which goes by
a file's size and time: change files with `written` alone.
"""

import gc
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

OTHERS = (
    "deepspeed", "torch", "open_clip", "sympy", "scipy.ndimage", "scipy.spatial", "trimesh", "PIL.Image",
    "safetensors.torch", "beartype", "jaxtyping", "upath", "yaml", "boto3", "rich.progress",
    "skimage.measure", "torch.utils.tensorboard",
)  # fmt: skip
"""What many tests import."""
MEGABYTES = 16000
"""That a run may take: DeepSpeed alone asks for several buckets of 2 GB, which it hardly touches."""
SPARE = 10
"""CPU seconds that a run has beside three times what its tests take."""
SLOWER = 100
"""Times as long as its CPU seconds a run may last by the clock: a loaded machine gives it little."""
_LATER = itertools.count(1)
"""So that no two texts of a file have the same time."""
Outcome = Literal["passed", "failed", "timed out"]


def import_others() -> None:
    """Imports what tests need of other projects, for the forks to come."""
    for name in OTHERS:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage as it ends, which would look through all of that


@contextmanager
def written(path: Path, text: str) -> Iterator[None]:
    """A file with another text, as long as the context lasts."""
    before, times = path.read_text(), path.stat()
    try:
        path.write_text(text)
        os.utime(path, (times.st_atime, times.st_mtime + 2 * next(_LATER)))
        yield
    finally:
        path.write_text(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def measure(tree: Path, tests: Sequence[Path], *, limit: float) -> tuple[Outcome, dict[str, float]]:
    """Runs test files of a tree that is unchanged, each to its end or for three times the limit.

    Returns the CPU seconds of each test and each fixture too, as far as it came.
    """
    notes = tree / "seconds.json"
    outcome = _forked(tree, tests, QuickestFirst({}, 3 * limit, notes), 900)
    return outcome, json.loads(notes.read_text()) if outcome == "passed" else {}


def run(tree: Path, tests: Sequence[Path], seconds: dict[str, float], *, limit: float) -> Outcome:
    """Runs the tests that `measure` came to, the quickest first, up to the first one that fails.

    limit: CPU seconds that they take together; the slowest are left out for it, the quickest never.
    """
    return _forked(tree, tests, QuickestFirst(seconds, limit, None), SPARE + int(3 * limit))


class QuickestFirst:
    """A pytest plugin: tests by what they and their fixtures took, or notes of that if it isn't known."""

    def __init__(self, seconds: dict[str, float], limit: float, notes: Path | None) -> None:
        self.seconds, self.limit, self.notes = seconds, limit, notes
        self.noted: dict[str, float] = {}
        self.starts: dict[Path, float] = {}

    @pytest.hookimpl(tryfirst=True)  # pytest then puts tests together that share a fixture's parameter
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.notes is not None:
            return

        def cost(item: Any, but: set[str]) -> float:
            return sum(self.seconds.get(name, 0.0) for name in {item.nodeid, *item.fixturenames} - but)

        items[:] = sorted(
            (item for item in items if item.nodeid in self.seconds), key=lambda item: cost(item, set())
        )
        total, made, num_kept = 0.0, set[str](), 0
        for item in items:
            total += cost(item, made)
            made |= set(item.fixturenames)
            if num_kept and total > self.limit:
                break
            num_kept += 1
        del items[num_kept:]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        with self._noted(fixturedef.argname):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        with self._noted(item.nodeid):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: Any) -> None:
        now = _cpu_seconds()
        if self.notes is not None and now - self.starts.setdefault(item.path, now) > self.limit:
            pytest.skip("its file has been measured for long enough")

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        start = _cpu_seconds()
        try:
            yield
        finally:
            self.noted[name] = max(self.noted.get(name, 0.0), _cpu_seconds() - start)

    def pytest_sessionfinish(self) -> None:
        if self.notes is not None:
            self.notes.write_text(json.dumps(self.noted))


def _cpu_seconds() -> float:
    """Of this process and of those that it started and waited for."""
    return sum(os.times()[:4])


def _forked(tree: Path, tests: Sequence[Path], plugin: QuickestFirst, cpu_seconds: int) -> Outcome:
    child = os.fork()
    if child == 0:
        try:
            _be_the_run(tree, tests, plugin, cpu_seconds)
        finally:
            os._exit(3)
    deadline = time.monotonic() + SLOWER * cpu_seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
                return "timed out"
            return "passed" if status == 0 else "failed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def _be_the_run(tree: Path, tests: Sequence[Path], plugin: QuickestFirst, cpu_seconds: int) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEGABYTES << 20, MEGABYTES << 20))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # which takes half a second
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    code = pytest.main([*options, *map(str, tests)], plugins=[plugin])
    os._exit(min(int(code), 255))
