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


class Placed(Config):
    data: Path = Path("a")
    train: Settings = Settings()
    learning_rate: float = 1.0


def test_a_run_may_be_moved_with_what_it_reads(tmp_path: Path) -> None:
    given = {"stage": "s", "inputs": {"data": "digest"}}
    with Run.open(tmp_path / "r", Placed(), **given) as run:
        run.save_progress()
    (tmp_path / "r").rename(tmp_path / "moved")
    with Run.open(tmp_path / "moved", Placed(data=Path("/elsewhere/b")), **given) as run:
        run.finish()
    with pytest.raises(UserError, match="another data"):
        Run.open(tmp_path / "moved", Placed(data=Path("b")), stage="s", inputs={"data": "other"})
    with pytest.raises(UserError, match="data was '/elsewhere/b'"):
        Run.open(tmp_path / "moved", Placed(data=Path("b")), stage="s")  # without a digest it is what counts


def test_an_unfinished_training_may_change_its_rate_and_keeps_a_note_of_it(tmp_path: Path) -> None:
    Run.open(tmp_path / "r", Placed(), stage="s").close()
    with pytest.raises(UserError, match=r"train\.steps was 3, now 4"):
        Run.open(tmp_path / "r", Placed(train=Settings(steps=4), learning_rate=0.1), stage="s")
    with Run.open(tmp_path / "r", Placed(learning_rate=0.1), stage="s") as run:
        assert run.meta["changes"] == [{"what": ["learning_rate was 1.0, now 0.1"]}]
        run.finish()
    with pytest.raises(UserError, match=r"learning_rate was 0\.1, now 0\.2"):
        Run.open(tmp_path / "r", Placed(learning_rate=0.2), stage="s")


def test_a_folder_with_files_and_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")
    with pytest.raises(UserError, match=r"such as config\.yaml"):
        Run.open(tmp_path, Settings(), stage="s")
    (tmp_path / "meta.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="not of Shapeloom"):
        Run.open(tmp_path, Settings(), stage="s")
    assert (tmp_path / "config.yaml").read_text() == "mine: 1"


def test_a_kill_before_the_config_was_written_costs_nothing(tmp_path: Path) -> None:
    Run.open(tmp_path / "r", Settings(), stage="s").close()
    (tmp_path / "r" / "config.yaml").unlink()
    Run.open(tmp_path / "r", Settings(), stage="s").close()
    assert (tmp_path / "r" / "config.yaml").is_file()


def test_a_damaged_meta_is_named(tmp_path: Path) -> None:
    Run.open(tmp_path / "r", Settings(), stage="s").close()
    path = tmp_path / "r" / "meta.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        Run.open(path.parent, Settings(), stage="s")
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        read_meta(path.parent, stage="s")


def test_a_finished_training_that_lost_its_weights_is_unfinished(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", Settings(), stage="s") as run:
        (run.folder / "weights.safetensors").touch()
        run.finish(weights_digest="d")
    assert Run.open(tmp_path / "r", Settings(), stage="s").done
    (tmp_path / "r" / "weights.safetensors").unlink()
    with Run.open(tmp_path / "r", Settings(), stage="s") as run:
        assert not run.done
