"""Batches made ahead of their step, and how they come to the device."""

import atexit
import multiprocessing
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shapeloom import cores
from shapeloom.config import UserError
from shapeloom.log import get_logger

T = TypeVar("T")
Batch = dict[str, Tensor]
MAX_WORKERS = 15
"""Of one process on a GPU."""
SHARED, LEAST_SHARED = Path("/dev/shm"), 1 << 30
"""What processes hand batches over in, and the bytes below which they don't."""


def num_workers() -> int:
    """Processes that make batches for a GPU: this process's cores but the one that feeds it."""
    return min(MAX_WORKERS, max(1, cores.usable() - 1))


def made_ahead(make: Callable[[int], T], steps: range, device: torch.device) -> Iterator[tuple[int, T]]:
    """Yields (step, make(step)) in their order; while one is used, the next are made.

    For a GPU by processes, forked from this one, that must not touch a GPU: a step takes it less than one
    core needs for a batch. For a CPU by a thread beside those that train. What `make` raises is raised at
    its step.
    """
    if device.type == "cpu":
        return by_threads(make, steps, workers=1)
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    if free < LEAST_SHARED:
        get_logger("loading").warning(
            "batches are made by threads of one process, several times slower than by processes: these need "
            "%d MB of shared memory, and %s has %d free. Give the container more (docker run --shm-size=8g).",
            LEAST_SHARED >> 20, SHARED, free >> 20,
        )  # fmt: skip
        return by_threads(make, steps, workers=num_workers())
    return by_processes(make, steps, workers=num_workers(), pinned=True)


def by_threads(make: Callable[[int], T], steps: range, *, workers: int) -> Iterator[tuple[int, T]]:
    """Yields (step, make(step)); the next `workers` are made meanwhile. `make` must be safe from threads."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting.extend(pool.submit(make, step) for step in steps[:workers])
            for step in steps:
                made = waiting.popleft().result()
                if step + workers in steps:
                    waiting.append(pool.submit(make, step + workers))
                yield step, made
        finally:
            for future in waiting:
                future.cancel()


class _Steps(Dataset[tuple[Any, UserError | None]]):
    """What `make` returns, or its word to the user; other errors come with the worker's traceback."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> tuple[Any, UserError | None]:
        try:
            return self.make(step), None
        except UserError as error:
            return None, error


def by_processes(
    make: Callable[[int], T], steps: range, *, workers: int, pinned: bool
) -> Iterator[tuple[int, T]]:
    """Yields (step, make(step)); the next `workers` are made meanwhile.

    pinned: tensors come in pinned memory, where a GPU fetches them by itself.
    """
    loader = DataLoader(
        _Steps(make), batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=1,
        collate_fn=_unchanged, pin_memory=pinned, multiprocessing_context="fork",
        worker_init_fn=_heed_no_signal, generator=torch.Generator(),  # none is drawn from the global one
    )  # fmt: skip
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    own = set(multiprocessing.active_children()) - others

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it an error
        for process in own:
            process.kill()

    # Python ends by sending SIGTERM to such processes, which heed none, and waiting for them: for ever, where
    # the traceback of an error of one of them holds the loader that would end the others.
    atexit.register(kill)
    for step, (made, error) in zip(steps, batches, strict=True):
        if error is not None:
            raise error
        yield step, made


def _unchanged(value: T) -> T:
    return value


def _heed_no_signal(worker: int) -> None:
    """Batch systems send SIGTERM to all of a job's processes; the one that trains has its state to save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; from pinned memory without waiting for the copies."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
