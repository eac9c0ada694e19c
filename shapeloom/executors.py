"""A pool of processes that outlives its workers: a task that crashes or hangs costs its worker, not the run.

`concurrent.futures` breaks the whole pool when a worker dies. Here each worker has its own pipe, so the
parent knows which task it was at and what it last reported.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
Function = Callable[[TaskT, Callable[[Any], None]], ResultT]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "IGL_NUM_THREADS")


@dataclass(frozen=True)
class Death:
    """How a worker ended before its task did."""

    last_report: Any
    """What the task reported last; None if nothing."""
    reason: str
    """"crash" or "timeout"."""
    message: str


def run_tasks(
    function: Function[TaskT, ResultT],
    tasks: Sequence[TaskT],
    *,
    workers: int | None,
    on_report: Callable[[TaskT, Any], None],
    on_death: Callable[[TaskT, Death], TaskT],
    seconds_between_reports: float,
    preload: Sequence[str] = (),
) -> Iterator[ResultT]:
    """Yields `function(task, report)` of every task as they finish.

    workers: processes (none: one a core), each with one thread; 0 runs in this process, without protection.
    A worker that dies, or is silent for longer than `seconds_between_reports` and is then ended, makes
    `on_death(task, death)` say what to run in place of its task. `preload`: modules that the workers share.
    An exception in `function` is a bug and is raised here.
    """
    if workers == 0:
        for task in tasks:
            yield function(task, partial(on_report, task))
        return
    count = min(workers or os.cpu_count() or 1, len(tasks))
    pool = _Pool(function, deque(tasks), on_report, on_death, seconds_between_reports, preload)
    try:
        yield from pool.run(count)
    finally:
        pool.close()


class _Worker(Generic[TaskT]):
    def __init__(self, function: Function, context: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        with _single_threaded():
            self.process.start()
        theirs.close()
        self.task: TaskT | None = None
        self.last_report: Any = None
        self.heard = time.monotonic()

    def give(self, task: TaskT) -> None:
        self.task, self.last_report, self.heard = task, None, time.monotonic()
        self.pipe.send(task)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool(Generic[TaskT, ResultT]):
    def __init__(
        self,
        function: Function[TaskT, ResultT],
        tasks: deque[TaskT],
        on_report: Callable[[TaskT, Any], None],
        on_death: Callable[[TaskT, Death], TaskT],
        limit: float,
        preload: Sequence[str],
    ) -> None:
        self.function, self.tasks, self.limit = function, tasks, limit
        self.on_report, self.on_death = on_report, on_death
        # A fork server, unlike a fork, inherits no threads, and unlike a spawn imports everything once.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        self.workers: list[_Worker[TaskT]] = []

    def run(self, count: int) -> Iterator[ResultT]:
        self.workers = [_Worker(self.function, self.context) for _ in range(count)]
        for worker in self.workers:
            self._next(worker)
        while busy := [worker for worker in self.workers if worker.task is not None]:
            patience = max(0.0, min(w.heard for w in busy) + self.limit - time.monotonic())
            ready = wait([w.pipe for w in busy], timeout=min(patience, 1.0))
            for worker in busy:
                if worker.pipe in ready:
                    yield from self._listen(worker)
                elif time.monotonic() - worker.heard > self.limit:
                    message = f"took longer than {self.limit:g} seconds"
                    self._replace(worker, Death(worker.last_report, "timeout", message))

    def _next(self, worker: _Worker[TaskT]) -> None:
        worker.task = None
        if self.tasks:
            worker.give(self.tasks.popleft())

    def _listen(self, worker: _Worker[TaskT]) -> Iterator[ResultT]:
        assert worker.task is not None
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            message = f"ended the process that prepared it (exit code {worker.process.exitcode})"
            self._replace(worker, Death(worker.last_report, "crash", message))
            return
        worker.heard = time.monotonic()
        match kind:
            case "report":
                worker.last_report = value
                self.on_report(worker.task, value)
            case "result":
                self._next(worker)
                yield value
            case _:
                raise RuntimeError(f"a worker failed:\n{value}")

    def _replace(self, worker: _Worker[TaskT], death: Death) -> None:
        assert worker.task is not None
        self.tasks.appendleft(self.on_death(worker.task, death))
        worker.end()
        fresh: _Worker[TaskT] = _Worker(self.function, self.context)
        self.workers[self.workers.index(worker)] = fresh
        self._next(fresh)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


def _serve(function: Function, pipe: Connection) -> None:
    """A worker's life: tasks in, reports and results out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("result", function(task, lambda message: pipe.send(("report", message)))))
        except BrokenPipeError:  # the parent is gone
            return
        except Exception:
            pipe.send(("error", traceback.format_exc()))


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread a worker: spinning OpenMP teams on shared cores run many times slower."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
