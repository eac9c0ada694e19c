"""The processes of a run watch one another: none waits for one that is lost.

Each gives a sign of life every two seconds, to a small server in the main process, from a thread that goes on
while the process computes. The main process watches all, the others watch it. Whoever is silent for 40 s,
fails, or takes no step for `hang_seconds`, ends the run: every process ends itself, one on each machine says
in one sentence who it was, where, and how to go on. Exit code 75 (EX_TEMPFAIL) asks launchers to start the
job again. Standard library alone.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, runtime_checkable

EXIT_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: given again, the same command may succeed."""
PERIOD_SECONDS = 2.0
SILENT_SECONDS = 40.0
"""Far more than a thread waits for the interpreter's lock; with the rest below a minute from fault to end."""
GRACE_SECONDS = 3.0
"""For the others' own words, where all fail alike."""
HANG_SECONDS = 1800.0
_END = "end"


class TryAgain(Exception):
    """What is nobody's mistake here, such as a lost process; the text is for users. Exit code EXIT_AGAIN."""


@runtime_checkable
class Store(Protocol):
    """What is needed of torch's TCPStore."""

    def set(self, key: str, value: str, /) -> None: ...

    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


class Watch:
    """This process's part; `start` begins it."""

    def __init__(
        self, store: Store, rank: int, hosts: Sequence[str], *, hang_seconds: float,
        end: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        """hosts: of each rank. end: told what to say ("" on all but one of a machine) and the code."""
        self.hang_seconds = hang_seconds
        self.before_end: Callable[[], None] = lambda: None
        self._store, self._rank, self._hosts, self._end = store, rank, list(hosts), end
        self._step, self._doing, self._saved = 0, "starting", ""
        self._beats, self._over = 0, threading.Event()
        now = time.monotonic()
        self._moved, self._last_look = now, now
        self._heard = dict.fromkeys(range(len(hosts)) if rank == 0 else [0], now)
        self._seen: dict[int, tuple[int, int, str]] = {}
        self._told: list | None = None
        self._closed = False
        self._gone: list[int] = []

    def start(self) -> None:
        """Begins to give signs of life and to look for those of others."""
        for target in (self._exchange, self._look):
            threading.Thread(target=target, name="watch of the run", daemon=True).start()

    def doing(self, what: str, *, step: int) -> None:
        """Notes progress: `step` steps are done, and now this process is doing `what`."""
        self._step, self._doing, self._moved = step, what, time.monotonic()

    def saved(self, what: str) -> None:
        """Notes the newest checkpoint: "step 100, in RUN/state"."""
        self._saved = what

    def how_to_go_on(self) -> str:
        """The end of a sentence on a run that was interrupted."""
        done = f"The last step here was {self._step}; " if self._step else ""
        saved = f"the newest checkpoint is of {self._saved}" if self._saved else "there is no checkpoint yet"
        text = f"{done}{saved}. "
        return (
            f"{text[0].upper()}{text[1:]}Give the same command on the machines that are left, in any number, "
            "if the launcher doesn't start it again by itself: it goes on from there (docs/clusters.md)."
        )

    def lost_peer(self) -> str:
        """What to say where a collective has failed, after the other's own words have had time to come: then
        this process ends by them, with its code, and this never returns."""
        self._over.wait(GRACE_SECONDS + 3 * PERIOD_SECONDS)
        return (
            "Another process of this run has ended, and this one can't go on without it. Its own last words, "
            f"above or in its log, say why. {self.how_to_go_on()}"
        )

    def fail(self, text: str, code: int) -> None:
        """Tells the others that this process ends for a reason of its own."""
        self._over.set()
        said = f"The process of {self._name(self._rank)} has ended, and the others with it. Its words: {text}"
        with suppress(Exception):  # they may be gone
            self._post(said, code, [])

    def stop(self) -> None:
        """Tells the others that this process is done, and looks no more."""
        if not self._over.is_set():
            self._over.set()
            self._doing = "done"
            with suppress(Exception):
                self._beat()

    # -------------------------------------------------------------- the thread that exchanges

    def _exchange(self) -> None:
        while not self._over.is_set():
            try:
                self._beat()
                self._read()
            except Exception:  # of several classes of torch's; the main process's store is gone
                self._closed = True
                return
            self._over.wait(PERIOD_SECONDS)

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(_key(self._rank), json.dumps([self._beats, self._step, self._doing]))

    def _read(self) -> None:
        ranks = list(self._heard)
        *beats, end = self._store.multi_get([*map(_key, ranks), _END])
        for rank, beat in zip(ranks, beats, strict=True):
            found = tuple(json.loads(beat))
            if found != self._seen.get(rank):
                self._seen[rank], self._heard[rank] = found, time.monotonic()
        if self._told is None and end:
            self._told = json.loads(end)

    def _post(self, text: str, code: int, gone: list[int]) -> None:
        self._store.set(_END, json.dumps([text, code, gone, self._hosts[self._rank]]))

    # -------------------------------------------------------------- the thread that judges

    def _look(self) -> None:
        while not self._over.wait(min(1.0, PERIOD_SECONDS)):
            now = time.monotonic()
            # Where this process was stopped itself, or its machine slept, all start anew.
            if now - self._last_look > max(3.0, SILENT_SECONDS / 4):
                self._heard, self._moved = dict.fromkeys(self._heard, now), now
            self._last_look = now
            if self._told is not None:
                self._obey(self._told)
            elif self._closed:
                self._without_main()
            elif text := self._silence(now) or self._standstill(now):
                _within(1.0, partial(self._post, text, EXIT_AGAIN, self._gone))
                if self._rank == 0:
                    time.sleep(2 * PERIOD_SECONDS)  # in which the others read it here
                self._finish(text, EXIT_AGAIN)

    def _silence(self, now: float) -> str:
        self._gone = silent = [
            rank for rank, heard in self._heard.items()
            if rank != self._rank and now - heard > SILENT_SECONDS and not self._is_done(rank)
        ]  # fmt: skip
        if silent:
            names, one = " and ".join(map(self._name, silent)), len(silent) == 1
            return (
                f"{names} {'has' if one else 'have'} given no sign of life for {SILENT_SECONDS:.0f} s: "
                f"{'its' if one else 'their'} machine, network or process is lost. {self.how_to_go_on()}"
            )
        return ""

    def _standstill(self, now: float) -> str:
        patience = self.hang_seconds + (0 if self._rank == 0 else 4 * PERIOD_SECONDS)  # it knows more
        if now - self._moved > patience and self._doing != "starting":
            others = {r: beat for r, beat in self._seen.items() if r != self._rank and not self._is_done(r)}
            doing = [f"{self._name(self._rank)} is {self._doing}"]
            doing += [f"{self._name(rank)} is {what}" for rank, (_, _, what) in sorted(others.items())[:8]]
            return (
                f"No step has ended for {self.hang_seconds:.0f} s (train.hang_seconds), though all processes "
                f"are alive: {'; '.join(doing)}. {self.how_to_go_on()}"
            )
        return ""

    def _is_done(self, rank: int) -> bool:
        return rank in self._seen and self._seen[rank][2] == "done"

    def _without_main(self) -> None:
        """The store has closed: the main process has ended, in peace if this one does so as well."""
        if self._is_done(0) or self._over.wait(2 * GRACE_SECONDS):
            return
        self._gone = [0]
        self._finish(
            f"The process of {self._name(0)} has ended, and the others can't go on without it. Its own last "
            f"words, there, say why. {self.how_to_go_on()}", EXIT_AGAIN,
        )  # fmt: skip

    def _obey(self, end: list) -> None:
        text, code, self._gone, said_on = end
        if not self._over.wait(GRACE_SECONDS):
            self._finish("" if said_on == self._hosts[self._rank] else text, code)

    def _finish(self, text: str, code: int) -> None:
        if not self._over.is_set():
            self._over.set()
            _within(2.0, self.before_end)  # its files may be what hangs
            self._end(text if self._speaks() else "", code)

    def _speaks(self) -> bool:
        """Whether this is the first process of its machine that is still there."""
        host = self._hosts[self._rank]
        return self._rank == min(
            r for r, its in enumerate(self._hosts) if its == host and r not in self._gone
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"


def first_words(size: int) -> dict[str, str]:
    """What the store must hold before any process reads it."""
    return {_END: "", **{_key(rank): json.dumps([0, 0, "starting"]) for rank in range(size)}}


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _within(seconds: float, work: Callable[[], None]) -> None:
    def quietly() -> None:
        with suppress(Exception):
            work()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


def end_process(text: str, code: int) -> None:
    """Says `text` and ends this process at once, whatever its other threads wait for."""
    if text:
        with suppress(OSError):
            sys.stderr.write(f"\nerror: {text[0].upper()}{text[1:]}\n")
            sys.stderr.flush()
    os._exit(code)


current: Watch | None = None
"""This process's, once it has joined others."""


def tell_failure(text: str, code: int) -> None:
    """Tells the other processes of the run, if there are any, that this one ends."""
    if current is not None:
        current.fail(text, code)
