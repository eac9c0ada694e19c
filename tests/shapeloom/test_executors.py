"""A crash or a hang costs one item, never the run."""

import os
import signal
import time
from dataclasses import dataclass, replace

import pytest

from shapeloom.executors import Death, run_tasks


@dataclass(frozen=True)
class Items:
    items: tuple[str, ...]
    skip: tuple[int, ...] = ()


def work(task: Items, report) -> str:
    done = ""
    for position, item in enumerate(task.items):
        report(position)
        if position in task.skip:
            continue
        match item:
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                time.sleep(60)
            case "bug":
                raise ZeroDivisionError("oops")
        done += item
    return done


def run(
    tasks: list[Items], workers: int | None = 2, seconds: float = 20.0
) -> tuple[list[str], list[Death], list]:
    deaths, reports = [], []

    def on_death(task: Items, death: Death) -> Items:
        deaths.append(death)
        return replace(task, skip=(*task.skip, death.last_report))

    results = run_tasks(
        work, tasks, workers=workers, on_death=on_death, seconds_between_reports=seconds,
        on_report=lambda task, position: reports.append(position),
    )  # fmt: skip
    return sorted(results), deaths, reports


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_tasks_are_done_and_reported(workers):
    results, deaths, reports = run([Items(("a", "b")), Items(("c",)), Items(("d", "e"))], workers)
    assert results == ["ab", "c", "de"]
    assert sorted(reports) == [0, 0, 0, 1, 1]
    assert deaths == []


def test_crash_leaves_out_its_item_alone():
    results, deaths, _ = run([Items(("a", "segfault", "b", "segfault")), Items(("c", "d"))])
    assert results == ["ab", "cd"]
    assert [(d.last_report, d.reason) for d in deaths] == [(1, "crash"), (3, "crash")]
    assert str(-signal.SIGSEGV) in deaths[0].message


def test_hang_is_ended_at_its_limit():
    start = time.monotonic()
    results, deaths, _ = run([Items(("a", "hang", "b")), Items(("c",))], seconds=2.0)
    assert results == ["ab", "c"]
    assert [(d.last_report, d.reason) for d in deaths] == [(1, "timeout")]
    assert time.monotonic() - start < 30


def test_exception_is_a_bug_and_surfaces():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: oops"):
        run([Items(("bug",))])
