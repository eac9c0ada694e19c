"""python -m benchmarks.drills.writers: two commands on one folder, and launchers that are killed.

For every stage a command is started, and when it has its folder a second one on the same: how long until the
second says so, in which words, and is what the first made the same as without it? Then two-process trainings
whose launcher is killed at random times: how long do its workers live?
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.drills import drill, kill_training
from benchmarks.drills.drill import MODULES, arguments, contents
from shapeloom.locks import NAME

MOST_SECONDS = 10.0


def start(words: Sequence[str], output: Path) -> subprocess.Popen:
    """A command of its own, which speaks into a file."""
    with output.open("wb") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)


def second_writer(stage: str, run: Path, folder: Path) -> str:
    """A line with the seconds until a second command has ended, and what it told."""
    module = MODULES[stage].removesuffix(".__main__")
    words = [sys.executable, "-m", module, *arguments(stage, run, folder / stage)]
    first = start(words, folder / "first.log")
    try:
        while not (folder / stage / NAME).exists() and first.poll() is None:
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGSTOP)  # so that it doesn't end meanwhile
        assert first.poll() is None, (folder / "first.log").read_text()[-2000:]
        began = time.monotonic()
        second = subprocess.run(words, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        os.killpg(first.pid, signal.SIGCONT)
        assert first.wait() == 0, (folder / "first.log").read_text()[-2000:]
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    told = drill.Told(second.returncode, second.stderr).check("is being written", code=2)
    assert contents(folder / stage) == contents(run / stage), f"{stage} made something else"
    assert not (folder / stage / NAME).exists()
    return f"{stage}: {seconds:.2f} s: {told}"


def kill_launchers(folder: Path, *, kills: int, seed: int = 0) -> Iterator[str]:
    """A line a kill, with how long the last of the two workers lived."""
    rng = random.Random(seed)
    data = kill_training.write_latents(folder / "latents")
    for number in range(kills):
        out = folder / f"killed {number}"
        launcher = start(
            kill_training.command("prior", data, out, 100_000, processes=2), folder / "launcher.log"
        )
        workers: list[psutil.Process] = []
        wanted = rng.randint(0, 6)  # after so many steps, or in the middle of starting
        deadline = time.monotonic() + (rng.uniform(4, 15) if wanted == 0 else 300)
        while time.monotonic() < deadline and launcher.poll() is None:
            workers = psutil.Process(launcher.pid).children(recursive=True)
            log = out / "metrics.jsonl"
            if wanted and log.is_file() and log.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.05)
        assert launcher.poll() is None, (folder / "launcher.log").read_text()[-2000:]
        launcher.kill()
        launcher.wait()
        began = time.monotonic()
        _, alive = psutil.wait_procs(workers, timeout=MOST_SECONDS)
        lived = time.monotonic() - began
        for process in alive:
            process.kill()
        assert not alive, f"{len(alive)} workers lived on for {MOST_SECONDS:g} s"
        yield f"kill {number + 1} ({wanted or 'no'} steps): {len(workers)} workers gone after {lived:.2f} s"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line a stage and a kill."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.writers", description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(MODULES)}; none: all")
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        drill.import_everything()
        run = drill.make_run(Path(name, "run"))
        for stage in given.stages or MODULES:
            sys.stdout.write(second_writer(stage, run, Path(name)).replace(name, "") + "\n")
            sys.stdout.flush()
        for line in kill_launchers(Path(name), kills=given.kills):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
