"""Batches come in their order, not too early, and from several threads as from one."""

import time

import pytest
import torch

from shapeloom.loading import made_ahead, num_workers, on_device, ready
from shapeloom.shards.order import ReadingOrder


@pytest.mark.parametrize("workers", [1, 4])
def test_steps_come_in_order_and_no_more_than_the_workers_ahead(workers: int) -> None:
    made: list[int] = []

    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3))
        made.append(step)
        return 10 * step

    for step, value in made_ahead(make, range(5, 25), workers=workers):
        assert value == 10 * step and max(made) <= step + workers
    assert sorted(made) == list(range(5, 25))


def test_what_a_batch_raises_is_raised_at_its_step_and_the_rest_is_dropped() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise KeyError(step)
        return step

    steps = made_ahead(make, range(100), workers=2)
    assert [next(steps)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(steps)
    assert next(steps, None) is None


def test_a_cpu_has_one_worker_and_its_batches_stay_where_they_are() -> None:
    cpu, batch = torch.device("cpu"), {"x": torch.ones(3)}
    assert num_workers(cpu) == 1
    assert ready(batch, cpu)["x"] is batch["x"] and on_device(batch, cpu)["x"] is batch["x"]


def test_a_gpu_has_its_process_s_cores_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for share, expected in ((4, 4), (32, 8), (1, 1)):
        monkeypatch.setattr("shapeloom.cores.usable", lambda share=share: share)
        assert num_workers(torch.device("cuda")) == expected


def test_many_threads_read_in_the_order_of_one() -> None:
    sizes, numbers = [5, 0, 7, 3, 9, 4] * 4, range(600)
    alone = ReadingOrder(sizes, seed=3, window=2)
    expected = [(alone.index(n), alone.shards_from(n)) for n in numbers]
    shared = ReadingOrder(sizes, seed=3, window=2)

    def make(n: int) -> tuple[int, list[int]]:
        m = (n * 389) % 600  # far apart, so that passes and windows are forgotten and made again
        return shared.index(m), shared.shards_from(m)

    assert [value for _, value in made_ahead(make, numbers, workers=8)] == [
        expected[n * 389 % 600] for n in numbers
    ]
