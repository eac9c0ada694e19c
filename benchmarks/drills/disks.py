"""python -m benchmarks.drills.disks [STAGE ...]: every stage on a disk that fills up, at 20 places.

The stage writes to a file system of its own (tmpfs, so this wants root), whose size is a random share of
what the stage writes in all. When it has failed, the disk gets its space and the command is given again:
every file must then have the bytes of a run that met no trouble, and what was told must name the disk.
At last the disk is mounted read-only.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.drills import drill
from benchmarks.drills.drill import arguments, command, contents

PAGE = 4096


@contextmanager
def disk(at: Path, size: int) -> Iterator[Path]:
    """A mounted file system of so many bytes; unmounted at the end."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def remount(at: Path, options: str) -> None:
    """Changes a mounted disk's size or mode."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(at)], check=True)


def written(folder: Path) -> int:
    """Bytes of all files, in whole pages."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def fill_up(stage: str, run: Path, folder: Path, places: int, rng: random.Random) -> Iterator[str]:
    """Yields the different sentences; AssertionError for another byte, a traceback or a nameless disk."""
    total, expected = written(run / stage), contents(run / stage)
    sentences: dict[str, int] = {}
    failed = 0
    for _ in range(places):
        size = PAGE * rng.randint(1, max(1, total // PAGE))
        with disk(folder / "disk", size) as at:
            words = arguments(stage, run, at / stage)
            told = command(stage, words)
            if told.code:
                failed += 1
                sentence = told.check(str(at), "full", code=1)
                key = "".join(c for c in sentence.replace(str(at), "DISK") if not c.isdigit())
                sentences[key] = sentences.get(key, 0) + 1
            remount(at, "size=1g")
            command(stage, words).check(code=0)
            found = contents(at / stage)
            different = [name for name in expected | found if expected.get(name) != found.get(name)]
            assert not different, (stage, size, different)
    yield f"{stage}: {failed} of {places} commands met a full disk of {total / 1e6:.2f} MB; same bytes after"
    yield from (f"  {count} x {key}" for key, count in sentences.items())


def read_only(stage: str, run: Path, folder: Path) -> str:
    """What is told where --out can't be written."""
    with disk(folder / "disk", 1 << 30) as at:
        remount(at, "ro")
        return command(stage, arguments(stage, run, at / stage)).check(str(at), "read-only", code=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what users read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.disks", description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(drill.MODULES)}; none: all")
    parser.add_argument("--places", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    drill.import_everything()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        run = drill.make_run(Path(name, "run"))
        for stage in given.stages or drill.MODULES:
            for line in fill_up(stage, run, Path(name), given.places, rng):
                sys.stdout.write(line.replace(name, "") + "\n")
            sys.stdout.write(f"  read-only: {read_only(stage, run, Path(name)).replace(name, '')}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
