"""Batches come in their order, not too early, and from several threads or processes as from one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from shapeloom import loading
from shapeloom.config import UserError
from shapeloom.loading import by_processes, by_threads, made_ahead, num_workers, on_device
from shapeloom.shards.order import ReadingOrder

GPU = torch.device("cuda")
MANY = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on fewer cores
Ahead = Callable[[Callable[[int], object], range, int], Iterator[tuple[int, object]]]


def threads(make: Callable[[int], object], steps: range, workers: int) -> Iterator[tuple[int, object]]:
    return by_threads(make, steps, workers=workers)


def processes(make: Callable[[int], object], steps: range, workers: int) -> Iterator[tuple[int, object]]:
    return by_processes(make, steps, workers=workers, pinned=False)


@pytest.mark.parametrize("workers", [1, 4])
def test_steps_come_in_order_and_no_more_than_the_workers_ahead(workers: int) -> None:
    made: list[int] = []

    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3))
        made.append(step)
        return 10 * step

    for step, value in by_threads(make, range(5, 25), workers=workers):
        assert value == 10 * step and max(made) <= step + workers
    assert sorted(made) == list(range(5, 25))


@MANY
def test_processes_make_tensors_in_the_steps_order() -> None:
    def make(step: int) -> tuple[int, list[dict[str, torch.Tensor]]]:
        time.sleep(0.002 * (step % 3))
        return os.getpid(), [{"x": torch.full((3,), step)}]

    makers = set()
    for step, (maker, (batch,)) in processes(make, range(5, 25), 3):
        assert batch["x"].tolist() == [step] * 3
        makers.add(maker)
    assert len(makers) == 3 and os.getpid() not in makers


@pytest.mark.parametrize("ahead", [threads, processes])
def test_what_a_batch_says_to_the_user_is_raised_at_its_step_and_the_rest_is_dropped(ahead: Ahead) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise UserError("shard 7 was cut off")
        return step

    steps = ahead(make, range(100), 2)
    assert [next(steps)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^shard 7 was cut off$"):
        next(steps)
    assert next(steps, None) is None


def test_a_fault_in_a_process_comes_with_its_traceback() -> None:
    def make(step: int) -> int:
        return [10, 11][step]

    steps = processes(make, range(3), 1)
    assert [next(steps)[1] for _ in range(2)] == [10, 11]
    with pytest.raises(IndexError, match=r"\[10, 11\]\[step\]"):
        next(steps)


def test_a_signal_to_all_processes_of_a_job_stops_no_batch_and_none_outlives_the_last() -> None:
    steps = processes(lambda step: os.getpid(), range(6), 2)
    makers = {next(steps)[1], next(steps)[1]}
    for maker in makers:
        assert isinstance(maker, int)
        os.kill(maker, signal.SIGTERM)
    assert [step for step, _ in steps] == [2, 3, 4, 5]
    for maker in makers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(str(maker)), 0)


@pytest.mark.parametrize("fault", ["[0][step]", "os.kill(os.getpid(), 9)"])
def test_an_error_in_a_process_ends_the_program(fault: str) -> None:
    """The traceback holds torch's loader, and Python waits for its other processes, which heed no SIGTERM."""
    program = (
        "import os\n"
        "from shapeloom.loading import by_processes\n"
        f"for made in by_processes(lambda step: step and {fault}, range(100), workers=2, pinned=False):\n"
        "    assert made == (0, 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "Error: " in ended.stderr


def test_processes_draw_nothing_from_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    assert list(processes(lambda step: step, range(2), 1)) == [(0, 0), (1, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_cpu_s_batches_are_made_by_its_own_process_and_stay_where_they_are() -> None:
    cpu, batch = torch.device("cpu"), {"x": torch.ones(3)}
    assert list(made_ahead(lambda step: os.getpid(), range(2), cpu)) == [(0, os.getpid()), (1, os.getpid())]
    assert on_device(batch, cpu)["x"] is batch["x"]


def test_a_gpu_has_its_process_s_cores_but_one_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for share, expected in ((4, 3), (32, 15), (1, 1)):
        monkeypatch.setattr("shapeloom.cores.usable", lambda share=share: share)
        assert num_workers() == expected


def test_without_shared_memory_threads_do_it_and_the_user_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "LEAST_SHARED", 1 << 62)
    assert list(made_ahead(lambda step: os.getpid(), range(2), GPU)) == [(0, os.getpid()), (1, os.getpid())]
    assert "--shm-size" in caplog.text


def test_a_gpu_s_batches_are_made_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LEAST_SHARED", 0)
    monkeypatch.setattr(loading, "by_processes", lambda *_, workers, pinned: iter([(workers, pinned)]))
    monkeypatch.setattr("shapeloom.cores.usable", lambda: 3)
    assert list(made_ahead(lambda step: step, range(2), GPU)) == [(2, True)]


def test_many_threads_read_in_the_order_of_one() -> None:
    sizes, numbers = [5, 0, 7, 3, 9, 4] * 4, range(600)
    alone = ReadingOrder(sizes, seed=3, window=2)
    expected = [(alone.index(n), alone.shards_from(n)) for n in numbers]
    shared = ReadingOrder(sizes, seed=3, window=2)

    def make(n: int) -> tuple[int, list[int]]:
        m = (n * 389) % 600  # far apart, so that passes and windows are forgotten and made again
        return shared.index(m), shared.shards_from(m)

    assert [value for _, value in by_threads(make, numbers, workers=8)] == [
        expected[n * 389 % 600] for n in numbers
    ]
