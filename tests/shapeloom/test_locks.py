"""One writer a folder, whichever machine the other is on, and no writer for ever."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from shapeloom import locks
from shapeloom.config import Config, UserError
from shapeloom.finished import stage_command
from shapeloom.locks import NAME, STALE_SECONDS, FolderInUse, Holder, acquire, refusal
from shapeloom.runs import Run


class Settings(Config):
    steps: int = 3


@pytest.fixture
def other() -> Holder:
    """A process of this machine that is alive and isn't this one."""
    parent = os.getppid()
    started = locks._started(parent)
    return replace(locks._me(), token="other", pid=parent, started=str(started))


def leave(folder: Path, holder: Holder, *, age: float = 0.0) -> None:
    """A lock of another process, `age` seconds after its last sign of life."""
    (folder / NAME).write_text(json.dumps(asdict(holder)))
    os.utime(folder / NAME, (time.time() - age, time.time() - age))


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path, other: Holder) -> None:
    leave(tmp_path, other, age=10 * STALE_SECONDS)  # on the same machine the process alone counts
    with pytest.raises(FolderInUse, match=f"process {other.pid} on {other.host}"):
        acquire(tmp_path)
    assert "another --out" in str(refusal(tmp_path))
    with pytest.raises(UserError, match="is being written by another command"):
        Run.open(tmp_path, Settings(), stage="s")
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path: Path, other: Holder) -> None:
    leave(tmp_path, replace(other, started="1"))  # the number was used again
    assert refusal(tmp_path) is None
    with acquire(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_another_machine_s_lock_lives_as_long_as_its_heartbeat(tmp_path: Path, other: Holder) -> None:
    there = replace(other, machine="another boot", host="node7", started="1")
    leave(tmp_path, there, age=0.5 * STALE_SECONDS)
    with pytest.raises(FolderInUse, match=r"node7.*last sign of life"):
        acquire(tmp_path)
    leave(tmp_path, there, age=2 * STALE_SECONDS)
    acquire(tmp_path).release()


def test_a_damaged_lock_counts_until_it_is_old(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    with pytest.raises(FolderInUse):
        acquire(tmp_path)
    old = time.time() - 2 * STALE_SECONDS
    os.utime(tmp_path / NAME, (old, old))
    acquire(tmp_path).release()


def test_without_hard_links_a_lock_holds_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Holder
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with acquire(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    leave(tmp_path, other)
    with pytest.raises(FolderInUse):
        acquire(tmp_path)


def test_a_holder_that_was_robbed_writes_no_more(tmp_path: Path, other: Holder) -> None:
    with Run.open(tmp_path / "r", Settings(), stage="s") as run:
        leave(tmp_path / "r", other)
        with pytest.raises(UserError, match="has lost its folder"):
            run.save_progress()


def test_many_at_once_get_it_one_after_the_other(tmp_path: Path) -> None:
    """Eight processes, each of which adds one to a number while it has the lock."""
    (tmp_path / "number").write_text("0")
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); import locks; from pathlib import Path\n"
        "folder = Path(sys.argv[1]); done = 0\n"
        "while done < 5:\n"
        "    try: lock = locks.acquire(folder)\n"
        "    except locks.FolderInUse: time.sleep(0.001); continue\n"
        "    number = int((folder / 'number').read_text()); time.sleep(0.001)\n"
        "    (folder / 'number').write_text(str(number + 1)); lock.release(); done += 1\n"
    )
    # The module alone, without the package and its torch.
    words = [sys.executable, "-c", script, str(tmp_path), str(Path(locks.__file__).parent)]
    processes = [subprocess.Popen(words) for _ in range(8)]
    assert [process.wait(120) for process in processes] == [0] * 8
    assert (tmp_path / "number").read_text() == "40"


def test_a_second_command_says_so_before_torch_is_imported(tmp_path: Path, other: Holder) -> None:
    leave(tmp_path, other)
    for stage in ("data_prep", "prior.train", "encoder.encode", "sampling", "eval"):
        words = [sys.executable, "-X", "importtime", "-m", stage, "--out", str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "is being written by another command" in done.stderr, done.stderr
        assert re.search(r"\|\s+shapeloom\.locks\n", done.stderr)
        assert not re.search(r"\|\s+(torch|pydantic)\n", done.stderr)


def test_the_launcher_says_so_before_it_starts_anything(tmp_path: Path, other: Holder) -> None:
    leave(tmp_path, other)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/started"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    words = ["bash", "launch/torchrun.sh", "prior.train", "--out", str(tmp_path)]
    environment = {**os.environ, "VENV": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2 and "is being written by another command" in done.stderr, done.stderr
    (started,) = (tmp_path / "started").read_text().splitlines()
    assert started.startswith("-m prior.train")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python", "-m", "prior.train", "--out", "a"], Path("a")),
        (["python", "-m", "data_prep", "--set", "x=1", "--out=b"], Path("b")),
        (["python", "-m", "data_prep", "--out", "s3://bucket/a"], None),
        (["python", "-m", "torch.distributed.run", "-m", "prior.train", "--out", "a"], None),
        (["python", "-m", "data_prep", "verify", "a"], None),
        (["python", "script.py", "--out", "a"], None),
        (["python", "-m"], None),
    ],
)
def test_the_folder_is_known_from_the_words_typed(words: list[str], expected: Path | None) -> None:
    assert locks.named_folder(stage_command(words)) == expected


def test_a_worker_ends_with_its_launcher(tmp_path: Path) -> None:
    """The launcher is killed while its worker imports torch, and another while it computes."""
    worker = "import shapeloom, time; open(r'{}', 'w').write('up'); time.sleep(600)"
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1"}
    up = tmp_path / "up"
    script = worker.format(up)
    launcher = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {script!r}])\n"
        "print(child.pid, flush=True); child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        deadline = time.monotonic() + 120
        while not up.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert up.exists() and locks._started(pid) is not None
        process.kill()
    deadline = time.monotonic() + 60
    while locks._started(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert locks._started(pid) is None
