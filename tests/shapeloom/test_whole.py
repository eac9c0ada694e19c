"""What is read is what was written: shards by their header, weights and checkpoints by their digests."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_prep.checks import verify
from shapeloom.config import UserError
from shapeloom.executors import run_tasks
from shapeloom.records import RECORD, checkpoint_problem, write_record
from shapeloom.runs import read_metrics
from shapeloom.shards import AssetShards, dataset_is_whole, list_shards, manifest_path, read_back, write_shard
from shapeloom.storage import file_digest
from shapeloom.verify import verify_run
from shapeloom.weights import checked_digest, read_tensors


@pytest.fixture
def balls(ball_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ball_dataset, tmp_path / "balls"))


def lose(folder: Path) -> None:
    shard = list_shards(folder)[1]
    shard.unlink()
    manifest_path(shard).unlink()


def cut(folder: Path) -> None:
    shard = list_shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-512])


def swap(folder: Path) -> None:
    """Another shard of as many samples, with a manifest of its own."""
    first, second = list_shards(folder)
    write_shard(second, [{**sample, "__key__": f"x{i}"} for i, sample in enumerate(list(read_back(first)))])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lose, r"shards/000001\.tar is missing; dataset\.json counts 12 assets, the shards have 6"),
        (cut, r"shards/000001\.tar has \d+ bytes in place of \d+"),
        (swap, r"written over other shards than these"),
    ],
)
def test_a_data_set_that_is_not_whole_is_not_read(balls: Path, harm: Callable, words: str) -> None:
    assert dataset_is_whole(balls)
    harm(balls)
    assert not dataset_is_whole(balls)
    with pytest.raises(UserError, match=words):
        AssetShards(balls, "train")
    assert AssetShards(balls, checked=False).problems


def test_a_data_set_from_before_shards_were_listed_is_read(balls: Path) -> None:
    header = json.loads((balls / "dataset.json").read_text())
    del header["shards"]
    (balls / "dataset.json").write_text(json.dumps(header))
    assert len(AssetShards(balls)) == 12
    lose(balls)
    with pytest.raises(UserError, match="counts 12 assets"):
        AssetShards(balls)


def test_weights_are_told_apart_by_a_single_bit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a.x": torch.ones(3), "b.x": torch.zeros(2)}, path)
    digest = checked_digest(path, None)
    assert checked_digest(path, digest) == digest == file_digest(path)
    assert read_tensors(path, "b.").keys() == {"x"}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.safetensors isn't the file that its run wrote"):
        checked_digest(path, digest)
    path.write_bytes(data[:10])
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged"):
        read_tensors(path)
    save_file({"x": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(UserError, match=r"NaN or infinity \(in x\)"):
        read_tensors(path)
    path.unlink()
    for call in (lambda: checked_digest(path, digest), lambda: read_tensors(path)):
        with pytest.raises(UserError, match="is missing"):
            call()


def test_a_checkpoint_is_what_its_record_says(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.pt").write_bytes(b"numbers")
    assert checkpoint_problem(tmp_path) == "it was never finished"
    write_record(tmp_path, {"step": 3})
    assert checkpoint_problem(tmp_path) is None
    (tmp_path / "part" / "a.pt").write_bytes(b"numbera")
    assert "another digest" in str(checkpoint_problem(tmp_path))
    (tmp_path / "part" / "a.pt").write_bytes(b"number")
    assert "6 bytes in place of 7" in str(checkpoint_problem(tmp_path))
    (tmp_path / "part" / "a.pt").unlink()
    assert "part/a.pt is missing" in str(checkpoint_problem(tmp_path))
    (tmp_path / RECORD).write_text("{")
    assert "record.json is damaged" in str(checkpoint_problem(tmp_path))


def test_a_log_is_read_up_to_its_half_lines(tmp_path: Path) -> None:
    whole, broken = ['{"step": 1, "a": 2}', '{"step": 3, "a": 1}'], ['{"step": 2, "a"', "[3]", '{"a": 1}']
    lines = [whole[0], *broken, "\x00\x00", whole[1], '{"st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_whole_run_is_verified_stage_by_stage(balls: Path) -> None:
    run = balls.parent
    trained = run / "encoder"
    trained.mkdir()
    save_file({"x": torch.ones(2)}, trained / "weights.safetensors")
    meta = {"stage": "encoder", "weights_digest": file_digest(trained / "weights.safetensors")}
    (trained / "meta.json").write_text(json.dumps(meta))
    assert verify_run(run, lambda folder: []) == []
    (trained / "weights.safetensors").write_bytes(b"")
    (trained / "state" / "00000003").mkdir(parents=True)
    found = verify_run(run, lambda folder: ["it is bad"])
    assert found[0] == "balls: it is bad" and "isn't the file" in found[1]
    assert found[2] == "encoder: checkpoint 00000003: it was never finished"
    with pytest.raises(UserError, match="nothing of Shapeloom"):
        verify_run(trained / "state", verify)


def _fail(task: int, report: Callable) -> None:
    raise OSError(28, "No space left on device", "/some/file") if task == 1 else UserError("Do this.")


@pytest.mark.parametrize(("task", "kind"), [(1, OSError), (2, UserError)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_s_trouble_is_its_caller_s(task: int, kind: type[Exception], workers: int) -> None:
    with pytest.raises(kind) as told:
        list(run_tasks(_fail, [task], workers=workers, on_report=lambda *_: None))
    if isinstance(told.value, OSError):
        assert told.value.filename == "/some/file" and told.value.errno == 28
