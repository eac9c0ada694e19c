"""A command that was given before and has nothing left to do says so without importing anything heavy.

When a command ends well, `OUT/.finished.json` notes what was typed and a digest of the names, sizes and times
of all files that it depends on: the project's code, OUT, and whatever its words and its resolved config name.
The same command with the same digest is done; for any other the stage itself looks, by content, and so where
anything that it names is a URL. Standard library alone.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from shapeloom.locks import named_folder

STAGES = {"data_prep", "encoder", "prior", "sampling", "serving", "eval"}
NAME = ".finished.json"
MOST_FILES = 50_000
"""More files than that aren't looked through; the stage itself is asked."""
STARTED = time.time()
ASKS = {"-h", "--help", "--print-config"}


class TooManyFiles(Exception):
    """There are more than MOST_FILES to look at."""


def stage_command(argv: Sequence[str]) -> list[str]:
    """What follows -m in `python -m STAGE ...`; [] for any other command."""
    words = list(argv)
    after = words[words.index("-m") + 1 :] if "-m" in words[:-1] else []
    return after if after and after[0].partition(".")[0] in STAGES else []


_ended: list[Path] = []
_read: set[str] = set()


def note(folder: Path) -> None:
    """Says that the stage has nothing left to do in `folder`."""
    _ended[:] = [folder]


def note_read(config: object) -> None:
    """Says what the stage may read: all strings of its resolved config, of which some are paths."""
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        for each in config:
            note_read(each)
    if isinstance(config, str):
        _read.add(config)


def remember() -> None:
    """Writes down what was noted, once the command has ended well.

    Not for what isn't a stage's command, for one that names URLs, for too many files, or where the folder
    can't be written; nor if what it read has changed since it began: it may have seen what was there before.
    """
    command = stage_command(sys.orig_argv)
    if not command or not _ended:
        return
    folder, words = _ended.pop(), {*_read, *_named(command[1:])} - {""}
    if any("://" in word for word in words):
        return
    found = sorted({*map(os.path.abspath, filter(os.path.exists, words))})
    with suppress(TooManyFiles, OSError):
        if _newest([*_code(), *found], beside=folder) >= STARTED:
            return
        facts = {"command": command, "cwd": os.getcwd(), "paths": found, "digest": _digest(folder, found)}
        aside = folder / f"{NAME}.{os.getpid()}"
        aside.write_text(json.dumps(facts))
        aside.replace(folder / NAME)


def is_finished(command: Sequence[str]) -> bool:
    """Whether the command (STAGE, OPTION, ...) was the last to end in its folder, and nothing has changed."""
    folder = named_folder(command)
    if folder is None or ASKS & set(command):
        return False
    try:
        facts = json.loads((folder / NAME).read_text())
        if (facts["command"], facts["cwd"]) != (list(command), os.getcwd()):
            return False
        return bool(facts["digest"] == _digest(folder, facts["paths"]))
    except (OSError, ValueError, KeyError, TypeError, TooManyFiles):
        return False


def told(command: Sequence[str]) -> str:
    """Returns the line that says so."""
    clock = time.strftime("%H:%M:%S")
    return f"{clock} shapeloom.{command[0].partition('.')[0]}: {named_folder(command)} is already done\n"


def _named(command: Sequence[str]) -> set[str]:
    """Words, and what follows a = in them."""
    return {*command, *(word.partition("=")[2] for word in command)}


def _digest(folder: Path, paths: Sequence[str]) -> str:
    """Of names, sizes and times of the project's code, and of all files in and beneath folder and paths."""
    sha, num = hashlib.sha256(sys.version.encode()), 0
    for top in (*_code(), str(folder), *paths):
        sha.update(f"\n{top}\n".encode(errors="replace"))
        for name, facts in _files(top):
            num += 1
            if num > MOST_FILES:
                raise TooManyFiles
            sha.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode(errors="replace"))
    return sha.hexdigest()


def _code() -> list[str]:
    root = Path(__file__).parents[1]
    return [str(root / name) for name in sorted({"shapeloom", *STAGES})]


def _newest(tops: Sequence[str], *, beside: Path) -> float:
    """When a file in or beneath tops, but not in the folder `beside`, was last written or moved there."""
    own = os.path.join(os.path.abspath(beside), "")
    found = (facts for top in tops for name, facts in _files(top) if not name.startswith(own))
    return max((max(facts.st_mtime, facts.st_ctime) for facts in found), default=0.0)


def _files(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """A file, or those beneath a folder in order of name; none whose name begins with a dot, no caches."""
    if not os.path.isdir(top):
        yield top, os.stat(top)
        return
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        for name in sorted(names):
            if name[0] != ".":
                path = os.path.join(folder, name)
                yield path, os.stat(path)
