"""A lost worker costs its task's work so far, never the run; Ray does the same across machines."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from shapeloom import executors
from shapeloom.config import Config, UserError
from shapeloom.executors import _in_ray_task, check_written, everywhere, run_tasks


@dataclass(frozen=True)
class Items:
    items: tuple[str, ...]
    marks: Path | None = None
    """Folder in which a task notes that it was there."""


def work(task: Items, report) -> str:
    done = ""
    for position, item in enumerate(task.items):
        report(position)
        match item:
            case "killed":
                mark = task.marks / "killed"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "always killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "bug":
                raise ZeroDivisionError("oops")
        done += item[0]
    return done


def run(tasks: list[Items], workers: int | None = 2) -> tuple[list[str], list]:
    reports = []
    results = run_tasks(
        work, tasks, workers=workers, on_report=lambda task, position: reports.append(position)
    )
    return sorted(result for _, result in results), reports


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_tasks_are_done_and_reported(workers):
    results, reports = run([Items(("a", "b")), Items(("c",)), Items(("d", "e"))], workers)
    assert results == ["ab", "c", "de"]
    assert sorted(reports) == [0, 0, 0, 1, 1]


def test_task_of_a_killed_worker_starts_over(tmp_path):
    results, reports = run([Items(("a", "killed", "b"), tmp_path), Items(("c", "d"))])
    assert results == ["akb", "cd"]
    assert sorted(reports) == [0, 0, 0, 1, 1, 1, 2]


def test_task_that_loses_every_worker_is_named():
    with pytest.raises(RuntimeError, match=r"10 workers were lost.*always killed"):
        run([Items(("always killed",)), Items(("a",))])


def test_exception_is_a_bug_and_surfaces():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: oops"):
        run([Items(("bug",))])


def worker_number(task: str, report) -> int:
    if task == "bug":
        raise ZeroDivisionError
    return os.getpid()


def test_ray_s_next_task_finds_what_the_last_one_has_loaded():
    first, second = (_in_ray_task(worker_number, "a", [], {"AWS_PROFILE": "x"}) for _ in range(2))
    assert first == second != os.getpid()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        _in_ray_task(worker_number, "bug", [], {"AWS_PROFILE": "x"})
    assert not executors._kept
    third = _in_ray_task(worker_number, "a", [], {"AWS_PROFILE": "x"})
    assert third != first
    assert _in_ray_task(worker_number, "a", [], {"AWS_PROFILE": "y"}) != third  # others' credentials
    executors._kept.pop()[1].close()


def test_what_another_machine_wrote_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "SEEN_SECONDS", 0.3)
    with pytest.raises(UserError, match="isn't here: with --executor ray"):
        check_written(tmp_path / "folder" / "file")
    seen = iter([False, False, True])
    monkeypatch.setattr(Path, "exists", lambda path: next(seen))
    check_written(tmp_path / "file")


class Inner(Config):
    file: str = "kept"
    kind: str = "kept"


class Outer(Config):
    folder: Path = Path("kept")
    lost: Path = Path("lost")
    name: str = "kept"
    inner: Inner = Inner()


def test_paths_that_are_here_are_made_absolute_and_words_stay_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    found = everywhere(Outer(), "file")
    assert found.folder == tmp_path / "kept" and found.inner.file == str(tmp_path / "kept")
    assert (found.lost, found.name, found.inner.kind) == (Path("lost"), "kept", "kept")
