"""Batches made ahead of their step, by threads, and how they come to the device."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from shapeloom import cores

T = TypeVar("T")
Batch = dict[str, Tensor]
MAX_WORKERS = 8
"""Of one process on a GPU: decoding releases the interpreter's lock for the most part, not for all of it."""


def num_workers(device: torch.device) -> int:
    """Threads that make batches: one beside the cores that train; for a GPU, this process's cores."""
    if device.type == "cpu":
        return 1
    return min(MAX_WORKERS, cores.usable())


def made_ahead(make: Callable[[int], T], steps: range, *, workers: int) -> Iterator[tuple[int, T]]:
    """Yields (step, make(step)) in their order; while one is used, the next `workers` are made.

    `make` must be safe from several threads. What it raises is raised at its step.
    """
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


def ready(batch: Batch, device: torch.device) -> Batch:
    """The batch where a GPU can fetch it by itself: in pinned memory. On the CPU it stays as it is."""
    return {name: value.pin_memory() for name, value in batch.items()} if device.type == "cuda" else batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; from pinned memory without waiting for the copies."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
