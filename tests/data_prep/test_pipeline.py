"""One asset can take its process down, and no more; what it left behind says why; a retry makes it whole."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import pipeline
from data_prep.build import plan_shards
from data_prep.failures import Failure, from_jsonl
from data_prep.pipeline import DataConfig, Limits, ShardTask, prepare_shard, quarantine_path
from data_prep.sources.find import SplitFractions, find_sources
from shapeloom.shards import manifest_path, read_manifest, shard_is_finished

LIMITS = Limits(cpu_seconds=2, wall_seconds=120, memory_megabytes=512)
real_prepare = pipeline._prepare


@pytest.fixture
def task(tmp_path: Path, make_box) -> ShardTask:
    """One shard of four boxes, by name in the order of their keys; each asset has a process of its own."""
    for number in range(4):
        make_box(tmp_path / "assets" / f"box{number}.glb", extents=(1, 2, 3 + number))
    config = DataConfig(
        assets=tmp_path / "assets", num_views=1, resolution=16, num_points=64, num_sdf=64, workers=1,
        limits=LIMITS, splits=SplitFractions(train=1, val=0, test=0, judge=0),
    )  # fmt: skip
    sources, _ = find_sources(tmp_path / "assets", config.splits)
    (task,) = plan_shards(sources, tmp_path / "assets", tmp_path / "out", config)
    return task


def breaks(monkeypatch, key: str, how) -> None:
    """The asset `key` does `how` at its second stage; the others are prepared as ever."""

    def prepare(source, folder, config, stage):
        if source.key == key:
            stage.name = "normalize"
            how()
        return real_prepare(source, folder, config, stage)

    monkeypatch.setattr(pipeline, "_prepare", prepare)


def bytes_of(task: ShardTask) -> tuple[bytes, bytes]:
    return task.path.read_bytes(), manifest_path(task.path).read_bytes()


def ledger(task: ShardTask) -> list[Failure]:
    return from_jsonl(quarantine_path(task.path).read_text())


def segfault():
    os.write(2, b"libmesh: bad chunk\n")
    ctypes.string_at(0)


def spin():
    while True:
        pass


def allocate():
    np.concatenate([np.empty(100 << 17) for _ in range(20)])


def raise_oddly():
    raise KeyError("accessor")


@pytest.mark.parametrize(
    ("how", "reason", "message", "stderr"),
    [
        (segfault, "crash", "SIGSEGV", "libmesh: bad chunk"),
        (spin, "cpu_time", "more than 2 seconds of CPU time", "in spin"),
        pytest.param(
            allocate, "memory", "Unable to allocate", "",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone"),
        ),
        (raise_oddly, "unexpected", "KeyError: 'accessor'", "in raise_oddly"),
        (sys.exit, "unexpected", "SystemExit", "in prepare"),
    ],
)  # fmt: skip
def test_bad_asset_is_left_out_with_its_reason_and_no_other(task, monkeypatch, how, reason, message, stderr):
    bad = task.sources[1]
    breaks(monkeypatch, bad.key, how)
    cost = prepare_shard(task, lambda position: None)
    (failure,) = ledger(task)
    assert (failure.id, failure.path, failure.stage) == (bad.key, bad.path, "normalize")
    assert (failure.reason, failure.sha256) == (reason, bad.sha256)
    assert message in failure.message
    assert stderr in failure.stderr
    keys = [row["key"] for row in read_manifest(task.path)["samples"]]
    assert keys == [source.key for source in task.sources if source is not bad]
    assert cost.cpu_seconds > 0
    assert cost.peak_bytes > 1 << 20


def test_asset_whose_process_is_killed_from_outside_gets_another(task, monkeypatch, tmp_path):
    mark = tmp_path / "mark"

    def killed_once():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    breaks(monkeypatch, task.sources[0].key, killed_once)
    prepare_shard(task, lambda position: None)
    assert ledger(task) == []
    assert read_manifest(task.path)["count"] == 4


def test_own_process_and_callers_process_make_the_same_bytes(task):
    prepare_shard(task, lambda position: None)
    apart = bytes_of(task)
    task = ShardTask(task.path, task.folder, task.sources, task.config.model_copy(update={"workers": 0}))
    prepare_shard(task, lambda position: None)
    assert bytes_of(task) == apart


def test_retry_gives_the_bytes_of_a_run_without_the_failure(task, monkeypatch):
    prepare_shard(task, lambda position: None)
    whole = bytes_of(task)
    breaks(monkeypatch, task.sources[2].key, raise_oddly)
    prepare_shard(task, lambda position: None)
    assert bytes_of(task) != whole
    monkeypatch.undo()
    again, tried = ShardTask(task.path, task.folder, task.sources, task.config, retry=True), []
    prepare_shard(again, tried.append)
    assert tried == [2]
    assert bytes_of(task) == whole
    assert ledger(task) == []


def test_retry_in_vain_leaves_the_shard_untouched(task, monkeypatch):
    breaks(monkeypatch, task.sources[2].key, raise_oddly)
    prepare_shard(task, lambda position: None)
    before, times = bytes_of(task), task.path.stat().st_mtime_ns
    again = ShardTask(task.path, task.folder, task.sources, task.config, retry=True)
    prepare_shard(again, lambda position: None)
    assert bytes_of(task) == before
    assert task.path.stat().st_mtime_ns == times
    assert [failure.id for failure in ledger(task)] == [task.sources[2].key]


def test_retry_killed_halfway_leaves_an_unfinished_shard(task, monkeypatch):
    breaks(monkeypatch, task.sources[2].key, raise_oddly)
    prepare_shard(task, lambda position: None)
    monkeypatch.undo()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_shard", killed)
    again = ShardTask(task.path, task.folder, task.sources, task.config, retry=True)
    with pytest.raises(KeyboardInterrupt):
        prepare_shard(again, lambda position: None)
    assert not shard_is_finished(task.path)
