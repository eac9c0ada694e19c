"""What can go wrong with a run is told in words, and nothing is lost: the drills, each at its smallest."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.drills.runs import DRILLS


def test_every_drill_is_told_in_words(tmp_path: Path) -> None:
    """In a process of its own: the drills fork, which wants one without other tests' threads."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.drills.runs"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, drill in DRILLS.items():
        told = done.stdout.partition(f"\n{name}: {drill.__doc__}\n")[2]
        assert told.startswith("  - "), f"{name} told nothing: {done.stdout[-2000:]}"
