"""Outputs on object storage: the same bytes as locally, goes on where it was ended, can be read back."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from data_prep.build import prepare
from data_prep.checks import inspect_dataset, verify
from data_prep.pipeline import DataConfig
from shapeloom.config import UserError
from shapeloom.shards import AssetShards, ReadingOrder, ShardCache, cache
from shapeloom.shards.tensors import SampleStream
from shapeloom.storage import AnyPath, parse_path

SMALL = {"num_views": 2, "resolution": 16, "num_points": 64, "num_sdf": 64, "shard_size": 2}


@pytest.fixture
def config(tmp_path: Path, make_box) -> DataConfig:
    for number in range(6):
        make_box(tmp_path / "assets" / f"box{'abcdef'[number]}.glb", extents=(1, 2, 3 + number))
    (tmp_path / "assets/broken.glb").write_bytes(b"not a model")
    return DataConfig(**SMALL, assets=tmp_path / "assets", workers=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch) -> None:
    """The default cache of shards lies in the system's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def memory():
    yield parse_path("memory://bucket/data")
    UPath("memory://bucket").fs.store.clear()


@pytest.fixture
def s3(monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    path = parse_path("s3://bucket/some/data")
    path.fs.mkdir("bucket")
    yield path
    server.stop()


def contents(out: AnyPath) -> dict[str, bytes]:
    paths = [out / "dataset.json", out / "quarantine.jsonl", *(out / "shards").iterdir()]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def check_the_whole_life(config: DataConfig, url: AnyPath, workers: int, tmp_path: Path) -> None:
    prepare(config, tmp_path / "local")
    remote = config.model_copy(update={"workers": workers})
    prepare(remote, url)
    assert contents(url) == contents(tmp_path / "local")
    assert verify(url) == []
    assert "broken.glb [load: unreadable]" in inspect_dataset(url)
    # A shard whose manifest is missing is made again, and nothing else.
    meta = url / "meta.json"
    meta.write_text(meta.read_text().replace('"done"', '"running"'))
    (url / "shards/000001.index.json").unlink()
    prepare(remote, url)
    assert contents(url) == contents(tmp_path / "local")


def test_memory_store(config, memory, tmp_path):
    check_the_whole_life(config, memory, 0, tmp_path)


def test_s3_store_from_worker_processes(config, s3, tmp_path):
    check_the_whole_life(config, s3, 2, tmp_path)


def test_retry_rewrites_a_remote_shard(config, memory, tmp_path, monkeypatch):
    prepare(config, memory)
    whole = contents(memory)
    real = __import__("data_prep.pipeline").pipeline._prepare

    def broken(source, *rest):
        if source.path == "boxb.glb":
            raise KeyError("accessor")
        return real(source, *rest)

    UPath("memory://bucket").fs.store.clear()
    monkeypatch.setattr("data_prep.pipeline._prepare", broken)
    prepare(config, memory)
    assert contents(memory) != whole
    monkeypatch.undo()
    limits = config.limits.model_copy(update={"cpu_seconds": 900})
    prepare(config.model_copy(update={"limits": limits}), memory, retry_quarantined=True)
    assert contents(memory) == whole
    textures = config.limits.model_copy(update={"max_texture": 64})
    with pytest.raises(UserError, match="max_texture was 1024"):
        prepare(config.model_copy(update={"limits": textures}), memory, retry_quarantined=True)


def test_remote_shards_are_streamed_through_a_bounded_cache(config, memory, tmp_path):
    prepare(config, memory)
    prepare(config, tmp_path / "local")
    local = AssetShards(tmp_path / "local")
    largest = max(path.stat().st_size for path in local.shards)
    cache = ShardCache(tmp_path / "cache", max_bytes=2 * largest)
    remote = AssetShards(memory, cache=cache)
    order = ReadingOrder(remote.shard_sizes, seed=0, window=1)
    stream = iter(SampleStream(remote, order, lambda n, index: (index, remote.read(index, views=[1]))))
    for _ in range(3 * len(local)):
        index, sample = next(stream)
        np.testing.assert_array_equal(sample.rgba, local.read(index, views=[1]).rgba)
        # Two shards at most are being fetched: this window's and the next one's.
        assert len(list((tmp_path / "cache").glob("*.tar"))) <= 4


def test_processes_of_a_machine_fetch_a_shard_once(config, memory, tmp_path, monkeypatch):
    prepare(config, memory)
    real, fetched = cache.fetch_file, []

    def fetch(path, local):
        fetched.append(path.name)
        time.sleep(0.3)  # while the others ask for it too
        real(path, local)

    monkeypatch.setattr(cache, "fetch_file", fetch)
    processes = [AssetShards(memory, cache=ShardCache(tmp_path / "cache")) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda shards: shards.members(0, ["points.npy"]), processes))
    assert read == [read[0]] * 4
    assert fetched == ["000000.tar"]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".tar"]


def test_procedural_set_needs_a_local_folder(memory):
    with pytest.raises(UserError, match="must be a local folder"):
        prepare(DataConfig(), memory)


def test_unknown_protocol_is_named():
    with pytest.raises(UserError, match="abc://"):
        parse_path("abc://bucket/folder")
