"""Run folders: resumed by the same command, refused by any other."""

import json
from pathlib import Path

import pytest

from shapeloom.config import Config, UserError
from shapeloom.runs import Run, read_meta
from shapeloom.storage import write_atomic


class Settings(Config):
    steps: int = 3


def test_a_run_is_reopened_and_its_seconds_add_up(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", Settings(), stage="s", inputs={"data": "d"})
    run.save_progress()
    before = run.meta["seconds"]
    again = Run.open(tmp_path / "r", Settings(), stage="s", inputs={"data": "d"})
    assert not again.done
    again.finish(extra=1)
    meta = read_meta(tmp_path / "r", stage="s")
    assert meta["seconds"] >= before
    assert (meta["status"], meta["extra"]) == ("done", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": Settings(steps=4)}, "steps was 3, now 4"),
        ({"stage": "other"}, "holds a s run"),
        ({"inputs": {"data": "e"}}, "another data"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    given = {"config": Settings(), "stage": "s", "inputs": {"data": "d"}}
    for arguments in (given, {**given, **change}):
        config, stage, inputs = arguments["config"], arguments["stage"], arguments["inputs"]
        if arguments is given:
            Run.open(tmp_path / "r", config, stage=stage, inputs=inputs)
        else:
            with pytest.raises(UserError, match=message):
                Run.open(tmp_path / "r", config, stage=stage, inputs=inputs)


def test_a_run_from_before_a_key_was_there_has_its_default(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", Settings(), stage="s")
    write_atomic(run.folder / "config.yaml", "{}\n")
    Run.open(tmp_path / "r", Settings(), stage="s")
    with pytest.raises(UserError, match="steps was 3, now 4"):
        Run.open(tmp_path / "r", Settings(steps=4), stage="s")
    write_atomic(run.folder / "config.yaml", "{gone: 1}\n")
    with pytest.raises(UserError, match="gone was 1, now None; steps was None, now 3"):
        Run.open(tmp_path / "r", Settings(), stage="s")


def test_an_unfinished_or_missing_run_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished s run"):
        read_meta(tmp_path, stage="s")
    Run.open(tmp_path / "r", Settings(), stage="s")
    with pytest.raises(UserError, match="is not finished"):
        read_meta(tmp_path / "r", stage="s")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    write_atomic(path, json.dumps(1))

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, json.dumps(2))
    assert json.loads(path.read_text()) == 1


def test_curves_of_a_killed_run_lose_what_will_be_written_again(tmp_path: Path) -> None:
    run = Run.open(tmp_path, Settings(), stage="line")
    for step in range(1, 6):
        run.scalars(step, {"loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed here
    run.start_from(3)
    run.scalars(4, {"loss": 0.0})
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
