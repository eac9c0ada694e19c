"""Processes that watch one another: silence, failure and standstill end all, in one sentence a machine."""

import threading
import time
from collections.abc import Callable

import pytest

from shapeloom import watch
from shapeloom.watch import EXIT_AGAIN, Watch


class Shared:
    """A store in this process; `dead`: its machine answers nothing, `closed`: its process ended."""

    def __init__(self, size: int) -> None:
        self.values, self.dead, self.closed = dict(watch.first_words(size)), False, False

    def _answer(self) -> None:
        if self.closed:
            raise ConnectionError("closed")
        while self.dead:
            time.sleep(0.01)

    def set(self, key: str, value: str) -> None:
        self._answer()
        self.values[key] = value

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self._answer()
        return [self.values[key].encode() for key in keys]


class Ends:
    """What each rank says at its end, and with which code."""

    def __init__(self) -> None:
        self.all: dict[int, tuple[str, int]] = {}
        self._news = threading.Condition()

    def of(self, rank: int) -> Callable[[str, int], None]:
        def end(text: str, code: int) -> None:
            with self._news:
                self.all[rank] = text, code
                self._news.notify_all()

        return end

    def wait_for(self, *ranks: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: set(ranks) <= self.all.keys(), timeout=20), self.all


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Starts a run of processes on the given hosts: (watches, what they said, their store)."""
    monkeypatch.setattr(watch, "PERIOD_SECONDS", 0.05)
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.1)
    started: list[Watch] = []

    def start(*hosts: str, hang_seconds: float = 60.0) -> tuple[list[Watch], Ends, Shared]:
        store, ends = Shared(len(hosts)), Ends()
        for rank in range(len(hosts)):
            started.append(Watch(store, rank, hosts, hang_seconds=hang_seconds, end=ends.of(rank)))
            started[-1].start()
        return started, ends, store

    yield start
    for each in started:
        each._over.set()


def test_a_silent_process_ends_all_others_once_a_machine(run) -> None:
    watches, ends, _ = run("a", "a", "b", "b", "c")
    for each in watches:
        each.doing("in the middle of a step", step=12)
        each.saved("step 10, in RUN")
    watches[4]._over.set()  # gives no more signs of life
    ends.wait_for(0, 1, 2, 3)
    assert {code for _, code in ends.all.values()} == {EXIT_AGAIN}
    for rank in (0, 2):
        text = ends.all[rank][0]
        assert "rank 4 on c has given no sign of life" in text and "last step here was 12" in text
        assert "checkpoint is of step 10, in RUN" in text and "same command" in text
    assert ends.all[1][0] == ends.all[3][0] == ""


def test_a_main_process_whose_machine_is_lost_is_named_by_the_others(run) -> None:
    watches, ends, store = run("a", "b")
    time.sleep(0.2)
    watches[0]._over.set()
    store.dead = True
    ends.wait_for(1)
    assert "rank 0 on a has given no sign of life" in ends.all[1][0]
    store.dead = False


def test_a_main_process_that_was_killed_ends_the_others(run) -> None:
    watches, ends, store = run("a", "b")
    watches[0]._over.set()
    store.closed = True
    ends.wait_for(1)
    assert "rank 0 on a has ended" in ends.all[1][0] and ends.all[1][1] == EXIT_AGAIN


def test_a_failure_of_one_is_told_to_all_with_its_words_and_code(run) -> None:
    watches, ends, _ = run("a", "b", "b")
    watches[1].fail("there is no data here.", 2)
    ends.wait_for(0, 2)
    text, code = ends.all[0]
    assert code == 2 and text.endswith("there is no data here.") and "rank 1 on b" in text
    assert ends.all[2] == ("", 2)  # its machine has read it


def test_processes_that_are_done_are_not_missed(run) -> None:
    watches, ends, store = run("a", "b", "c")
    watches[2].stop()
    time.sleep(0.2)
    watches[0].stop()
    time.sleep(0.1)
    store.closed = True
    time.sleep(1.0)
    assert ends.all == {}


def test_a_step_that_does_not_end_is_told_with_what_each_is_doing(run) -> None:
    watches, ends, _ = run("a", "b", hang_seconds=1.0)
    watches[0].doing("in the middle of a step", step=7)
    watches[1].doing("waiting for its batch", step=7)
    ends.wait_for(0, 1)
    assert "No step has ended" in ends.all[0][0] and "rank 1 on b is waiting for its batch" in ends.all[0][0]


def test_slow_starts_and_steps_within_the_limit_are_left_alone(run) -> None:
    watches, ends, _ = run("a", "b", hang_seconds=0.8)
    time.sleep(1.0)  # still starting
    for step in range(6):
        for each in watches:
            each.doing("in the middle of a step", step=step)
        time.sleep(0.2)
    assert ends.all == {}
