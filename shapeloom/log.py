"""Logging and progress: one format for every stage, bars with an ETA on a terminal, lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SHOW_AFTER_SECONDS = 2.0
LINE_EVERY_SECONDS = 10.0


def get_logger(name: str) -> logging.Logger:
    """Returns the logger `name` below "shapeloom"; `start_logging` decides where it goes."""
    return logging.getLogger(f"shapeloom.{name}")


def start_logging(*, quiet: bool = False) -> None:
    """Sends the project's log to stderr with times; `quiet` (ranks other than 0) keeps warnings alone."""
    logger = logging.getLogger("shapeloom")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


class Bar:
    """A running count; made by `progress`."""

    def __init__(self, total: int, description: str, done: int, display: Progress | None) -> None:
        self.total, self.description, self.done = total, description, done
        self._first, self._start, self._last_line = done, time.monotonic(), time.monotonic()
        self._display, self._shown = display, False
        self._task = display.add_task(description, total=total, completed=done) if display else None

    def advance(self, n: int = 1, note: str = "") -> None:
        """Counts `n` more; `note` (such as the loss) is shown beside the bar."""
        self.done += n
        now = time.monotonic()
        if self._display is not None and self._task is not None:
            if not self._shown and now - self._start > SHOW_AFTER_SECONDS:
                self._shown = True
                self._display.start()
            text = f"{self.description}  {note}" if note else self.description
            self._display.update(self._task, completed=self.done, description=text)
        elif now - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = now
            rate = (self.done - self._first) / (now - self._start)
            eta = (self.total - self.done) / rate if rate > 0 else 0.0
            percent = 100 * self.done / max(self.total, 1)
            get_logger("progress").info(
                "%s %d/%d (%.0f%%), ETA %d:%02d%s", self.description, self.done, self.total, percent,
                eta // 60, eta % 60, f"  {note}" if note else "",
            )  # fmt: skip


@contextmanager
def progress(total: int, description: str, *, done: int = 0) -> Iterator[Bar]:
    """Shows `done` of `total` with an ETA, for work that takes longer than 2 seconds.

    A terminal gets a bar; a file or CI gets a line every 10 seconds.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(total, description, done, None)
        return
    display = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(), console=console,
    )  # fmt: skip
    try:
        yield Bar(total, description, done, display)
    finally:
        display.stop()
