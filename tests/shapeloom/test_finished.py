"""A command with nothing left to do says so at once, and only then."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from shapeloom import finished
from shapeloom.finished import MOST_FILES, NAME, is_finished, note, note_read, remember


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stage's command that has ended well: it read data/ and a preset, and wrote out/."""
    (tmp_path / "data" / "shards").mkdir(parents=True)
    (tmp_path / "data" / "shards" / "0.tar").write_text("data")
    (tmp_path / "named_by_config").write_text("a")
    (tmp_path / "preset.yaml").write_text("steps: 3")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_text("weights")
    words = [
        "encoder.train", "--config", str(tmp_path / "preset.yaml"), "--out", str(tmp_path / "out"),
        "--set", f"data={tmp_path / 'data'}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", *words])
    monkeypatch.setattr(finished, "STARTED", time.time() + 1)  # after all that it reads was there
    monkeypatch.setattr(finished, "_read", set())  # what other tests' stages noted
    note_read({"a": [{"b": str(tmp_path / "named_by_config")}], "c": 1})
    note(tmp_path / "out")
    remember()
    return words


def test_the_same_command_is_finished(command: list[str]) -> None:
    assert is_finished(command)


@pytest.mark.parametrize(
    "path", ["data/shards/0.tar", "data/shards/1.tar", "preset.yaml", "named_by_config", "out/weights"]
)
def test_a_changed_file_is_looked_at_by_the_stage(command: list[str], tmp_path: Path, path: str) -> None:
    (tmp_path / path).write_text("changed since")
    assert not is_finished(command)


@pytest.mark.parametrize("path", ["data/shards/0.tar", "preset.yaml", "named_by_config", "out/weights"])
def test_a_lost_file_is_looked_at_by_the_stage(command: list[str], tmp_path: Path, path: str) -> None:
    (tmp_path / path).unlink()
    assert not is_finished(command)


def test_what_was_read_from_a_url_is_looked_at_by_the_stage(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / NAME).unlink()
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", *command, "latents=s3://bucket/latents"])
    note(tmp_path / "out")
    remember()
    assert not (tmp_path / "out" / NAME).exists()


def test_other_words_another_place_and_other_code_are_another_command(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_finished([*command, "train.steps=4"])
    assert not is_finished([*command, "--print-config"])
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert not is_finished(command)
    with monkeypatch.context() as patch:
        patch.setattr(finished, "__file__", str(tmp_path / "code" / "shapeloom" / "finished.py"))
        assert not is_finished(command)
    assert is_finished(command)


@pytest.mark.parametrize("path", ["data/shards/1.tar", "preset.yaml", "named_by_config"])
def test_what_changed_while_the_command_ran_is_looked_at_again(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    time.sleep(0.05)  # the file system's clock is coarse
    monkeypatch.setattr(finished, "STARTED", time.time())
    for is_changed in (False, True):
        (tmp_path / "out" / NAME).unlink()
        if is_changed:
            time.sleep(0.05)
            (tmp_path / path).write_text("moved here just now")
            os.utime(tmp_path / path, (0, 0))  # as a copy that keeps times leaves it
        note(tmp_path / "out")
        remember()
        assert (tmp_path / "out" / NAME).exists() != is_changed
        (tmp_path / "out" / NAME).touch()


def test_a_lock_and_a_damaged_note_change_nothing_but_who_is_asked(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "out" / ".lock").write_text("{}")
    assert is_finished(command)
    (tmp_path / "out" / NAME).write_text(json.dumps({"command": command})[:-5])
    assert not is_finished(command)


def test_too_many_files_are_the_stage_s_to_look_at(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished, "MOST_FILES", 3)
    assert MOST_FILES > 3 and not is_finished(command)


def test_a_failed_command_is_not_remembered(tmp_path: Path) -> None:
    done = _run(tmp_path, "data=nowhere")
    assert done.returncode == 2 and not (tmp_path / "out" / NAME).exists()


def test_a_finished_stage_says_so_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    for name in ("assets/a", "assets/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.off").write_text("OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n" + _FACES)
    first = _run(tmp_path)
    assert first.returncode == 0, first.stderr
    again = _run(tmp_path)
    assert again.returncode == 0 and "is already done" in again.stderr
    assert not _imported("torch", again) and not _imported("pydantic", again)
    Image.new("RGB", (8, 8)).save(tmp_path / "assets" / "texture.png")
    assert _imported("pydantic", _run(tmp_path))


_FACES = "3 0 2 1\n3 0 1 3\n3 1 2 3\n3 0 3 2\n"


def _run(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable, "-X", "importtime", "-m", "data_prep", "--config", "configs/data_prep/smoke.yaml",
        "--out", str(folder / "out"), "--set", f"assets={folder / 'assets'}", "workers=0", *settings,
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ})


def _imported(name: str, done: subprocess.CompletedProcess[str]) -> bool:
    return re.search(rf"\|\s+{name}\n", done.stderr) is not None
