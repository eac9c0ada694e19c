"""The same function over many tasks: in a pool of processes on this machine, or on a Ray cluster.

Both outlive their workers: a task whose process (or, with Ray, whose machine) is killed is given to another
one. A task must therefore be safe to repeat, and to be at work twice for a while.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from shapeloom import cores
from shapeloom.config import Config, ConfigT, UserError
from shapeloom.log import get_logger
from shapeloom.options import Executor

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
Function = Callable[[TaskT, Callable[[Any], None]], ResultT]

log = get_logger("executors")
MAX_ATTEMPTS = 10
"""A task that has lost that many workers is to blame for it."""
SEEN_SECONDS = 60.0
"""What is written elsewhere is seen here after that time: NFS remembers for so long which files there are."""
_CREDENTIALS = ("AWS_", "FSSPEC_", "GOOGLE_", "GCS_", "AZURE_", "HF_")
"""How the names of variables begin by which fsspec's file systems find what they need."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "IGL_NUM_THREADS")


def run_tasks(
    function: Function[TaskT, ResultT],
    tasks: Sequence[TaskT],
    *,
    workers: int | None,
    on_report: Callable[[TaskT, Any], None],
    executor: Executor = "processes",
    preload: Sequence[str] = (),
    on_gpu: bool = False,
) -> Iterator[tuple[TaskT, ResultT]]:
    """Yields (task, `function(task, report)`) of every task as they finish.

    workers: processes on this machine (none: one a core), each with one thread; 0 runs in this process. Ray
    takes the CPUs that its cluster has (`on_gpu`: its GPUs, one a task, where it has any), gives its workers
    this process's credentials for storage, and passes no reports on. `preload`: modules that workers share.
    A task that loses its worker starts over in another one. A UserError, MemoryError or OSError in
    `function` is raised here as it is, any other exception, a bug, as RuntimeError.
    """
    if executor == "ray":
        yield from _run_on_ray(function, tasks, preload, on_gpu)
        return
    if workers == 0:
        for task in tasks:
            yield task, function(task, partial(on_report, task))
        return
    pool = _Pool(function, preload)
    try:
        yield from pool.run(tasks, min(workers or cores.usable(), len(tasks)), on_report)
    finally:
        pool.close()


def everywhere(config: ConfigT, *names: str) -> ConfigT:
    """A config for workers that were started in other folders: paths that are found here are made absolute.

    names: keys whose values are strings that may be paths, at any depth.
    """
    found: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Config):
            found[name] = everywhere(value, *names)
        elif isinstance(value, Path) and value.exists():
            found[name] = value.absolute()
        elif name in names and value is not None and os.path.exists(value):
            found[name] = os.path.abspath(value)
    return config.model_copy(update=found)


def check_written(path: Path) -> None:
    """Waits until a file that a task wrote is seen here: network file systems take a while to tell.

    Raises UserError if it never is: the other machine has a disk of its own.
    """
    end = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(
                f"{path} was written on another machine and isn't here: with --executor ray, what is written "
                "must lie on storage that all nodes share, at the same path."
            )
        time.sleep(0.2)
        if path.parent.is_dir():
            os.listdir(path.parent)  # asks the server anew


# ---------------------------------------------------------------- processes


class _Worker(Generic[TaskT]):
    def __init__(self, function: Function, context: Any) -> None:
        self.pipe, theirs = context.Pipe()
        with _single_threaded():
            # The fork server's environment is that of its own start, which may lack credentials set since.
            arguments = (function, theirs, dict(os.environ))
            self.process = context.Process(target=_serve, args=arguments, daemon=True)
            self.process.start()
        theirs.close()
        self.task: TaskT | None = None

    def give(self, task: TaskT) -> None:
        self.task = task
        self.pipe.send(task)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool(Generic[TaskT, ResultT]):
    """Workers that stay from one `run` to the next, with what they have loaded."""

    def __init__(self, function: Function[TaskT, ResultT], preload: Sequence[str]) -> None:
        self.function, self.tasks = function, deque[TaskT]()
        self.on_report: Callable[[TaskT, Any], None] = lambda *_: None
        # A fork server, unlike a fork, inherits no threads, and unlike a spawn imports everything once.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        self.workers: list[_Worker[TaskT]] = []
        self.losses: dict[int, int] = {}

    def run(
        self, tasks: Sequence[TaskT], count: int, on_report: Callable[[TaskT, Any], None]
    ) -> Iterator[tuple[TaskT, ResultT]]:
        self.tasks, self.on_report, self.losses = deque(tasks), on_report, {}
        for worker in list(self.workers):
            self._next(worker)
        while len(self.workers) < count:
            self._start()
        while busy := [worker for worker in self.workers if worker.task is not None]:
            ready = wait([worker.pipe for worker in busy])
            for worker in busy:
                if worker.pipe in ready:
                    yield from self._listen(worker)

    def _start(self) -> None:
        worker: _Worker[TaskT] = _Worker(self.function, self.context)
        self.workers.append(worker)
        self._next(worker)

    def _next(self, worker: _Worker[TaskT]) -> None:
        worker.task = None
        if self.tasks:
            task = self.tasks.popleft()
            try:
                worker.give(task)
            except BrokenPipeError:  # killed while it was idle
                worker.task = task
                self._replace(worker)

    def _listen(self, worker: _Worker[TaskT]) -> Iterator[tuple[TaskT, ResultT]]:
        task = worker.task
        assert task is not None
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        match kind:
            case "report":
                self.on_report(task, value)
            case "result":
                self._next(worker)
                yield task, value
            case "trouble":
                raise value
            case _:
                raise RuntimeError(f"a worker failed:\n{value}")

    def _replace(self, worker: _Worker[TaskT]) -> None:
        task = worker.task
        assert task is not None
        worker.end()
        self.workers.remove(worker)
        losses = self.losses[id(task)] = self.losses.get(id(task), 0) + 1
        if losses == MAX_ATTEMPTS:
            raise RuntimeError(
                f"{losses} workers were lost at one task; the last one's exit code was "
                f"{worker.process.exitcode}. Is the machine short of memory? The task: {task}"
            )
        log.warning("a worker was lost (exit code %s): its task starts over", worker.process.exitcode)
        self.tasks.appendleft(task)
        self._start()

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


def _serve(function: Function, pipe: Connection, environment: dict[str, str]) -> None:
    """A worker's life: tasks in, reports and results out, until the parent is gone."""
    os.environ.update(environment)
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
        except (UserError, MemoryError, OSError) as error:  # no bug: told as in one process
            pipe.send(("trouble", error))
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


# ---------------------------------------------------------------- Ray


def _run_on_ray(
    function: Function[TaskT, ResultT], tasks: Sequence[TaskT], preload: Sequence[str], on_gpu: bool
) -> Iterator[tuple[TaskT, ResultT]]:
    """On the cluster that RAY_ADDRESS names, or else on one that Ray finds or starts on this machine."""
    ray = _join_cluster()
    # Each task has one core for its own, so nothing may start more threads than that.
    threads = {"env_vars": dict.fromkeys(_THREAD_VARIABLES, "1")}
    unit = "GPU" if on_gpu and ray.cluster_resources().get("GPU") else "CPU"
    # As an argument: Ray shows the environments of its tasks to whoever looks.
    credentials = {name: value for name, value in os.environ.items() if name.startswith(_CREDENTIALS)}
    # Without max_calls, Ray ends a process after each task that has a GPU, with all that it has loaded.
    needs = {"num_cpus": 1, "num_gpus": 1 if unit == "GPU" else 0, "max_calls": 0}
    remote: Any = ray.remote(**needs, max_retries=MAX_ATTEMPTS, runtime_env=threads)(_in_ray_task)
    waiting = deque(tasks)
    running: dict[Any, TaskT] = {}
    while waiting or running:
        # A task's arguments live in this process until it is done: a million of them are not sent at once.
        while waiting and len(running) < max(16, 2 * int(ray.cluster_resources().get(unit, 0))):
            task = waiting.popleft()
            running[remote.remote(function, task, list(preload), credentials)] = task
        done, _ = ray.wait(list(running), num_returns=1)
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError | MemoryError | OSError):  # no bug: told as in one process
                raise cause from None
            raise RuntimeError(f"a task failed on Ray:\n{error}") from error
        yield running.pop(done[0]), result


def _join_cluster() -> Any:
    """Returns the module `ray`, connected. Raises UserError where there is none, or no way in."""
    token = _ray_token()
    # Ray heeds a token only in this mode, and only from the start; a cluster that wants none ignores it.
    # Otherwise Ray would write one into the home folder, for a cluster that it starts.
    os.environ.setdefault("RAY_AUTH_MODE", "token" if token else "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs Ray on every node: pip install 'shapeloom[ray]'.") from error
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        mode = os.environ["RAY_AUTH_MODE"]
        shown = f"the token of {token} was shown to it" if token and mode == "token" else "no token was shown"
        raise UserError(
            f"Ray's cluster can't be joined ({error}); {shown} (RAY_AUTH_MODE is {mode}). Is it running at "
            "that address (RAY_ADDRESS), with this version of Ray? If it wants a token, put the one that it "
            "was started with (`ray get-auth-token` there prints it) into RAY_AUTH_TOKEN here."
        ) from error
    return ray


def _ray_token() -> str:
    """Returns where Ray's token is, by Ray's own order of places, or nothing."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return str(path) if Path(path).is_file() else ""


_kept: list[tuple[Any, _Pool]] = []
"""In a process of Ray's: the pool of its last task, and what that was for."""


def _in_ray_task(
    function: Function[TaskT, ResultT], task: TaskT, preload: Sequence[str], credentials: dict[str, str]
) -> ResultT:
    """A pool of one worker within Ray's own, whose many threads no careful process would fork.

    It stays for the next task of that kind on that GPU, since models take longer to load than most tasks.
    """
    os.environ.update(credentials)
    kind = (function, credentials, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not _kept or _kept[0][0] != kind:
        while _kept:
            _kept.pop()[1].close()
        _kept.append((kind, _Pool(function, preload)))
    pool = _kept[0][1]
    try:
        ((_, result),) = pool.run([task], 1, lambda *_: None)
    except BaseException:
        _kept.clear()
        pool.close()
        raise
    return result
