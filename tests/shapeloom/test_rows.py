"""Rows of large data sets: opening costs next to nothing a row, reading in order reads each manifest once."""

import json
import pickle
import tracemalloc
from pathlib import Path

import pytest

from benchmarks.speed.million import measure, write_set
from shapeloom.config import UserError
from shapeloom.shards import AssetShards, ReadingOrder, rows

SIZE = 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 shards, more than are kept."""
    folder = tmp_path_factory.mktemp("large") / "data"
    write_set(folder, 60 * SIZE, shard_size=SIZE)
    return folder


def memory_of_opening(folder: Path) -> int:
    tracemalloc.start()
    shards = AssetShards(folder)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shards) and held <= peak
    return peak


def test_opening_takes_few_bytes_a_row(large: Path, tmp_path: Path) -> None:
    """A row of 105 members takes 10 kB as Python objects. With 20 a shard, its own facts weigh most."""
    write_set(tmp_path / "small", 6 * SIZE, shard_size=SIZE)
    more = memory_of_opening(large) - memory_of_opening(tmp_path / "small")
    assert more < 200 * 54 * SIZE


def test_reading_in_order_reads_each_manifest_once_a_pass(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "KEPT_ROWS", 100)
    shards, real, read = AssetShards(large, "train"), rows.read_manifest, []
    monkeypatch.setattr(rows, "read_manifest", lambda path: read.append(path) or real(path))
    order = ReadingOrder(shards.shard_sizes, seed=0)
    keys = {shards.rows[order.index(number)].key for number in range(len(shards))}
    assert len(keys) == len(shards) == 19 * 60 * SIZE // 20
    assert len(read) == 60
    assert len(shards.rows._read) == rows.KEPT_SHARDS


def test_the_benchmark_reads_every_row_and_looks_at_every_shard(large: Path) -> None:
    found = measure(large)
    assert (found["rows"], found["reads"], found["tasks"]) == (19 * 60 * SIZE // 20, 60 * SIZE, 60)


def test_rows_are_a_sequence(large: Path) -> None:
    shards = AssetShards(large, "val")
    listed = list(shards.rows)
    assert [row.key for row in listed[:2]] == [f"{19:016x}", f"{39:016x}"]
    assert shards.rows[-1] == listed[-1] and shards.rows[5:7] == listed[5:7]
    assert pickle.loads(pickle.dumps(shards.rows))[3] == listed[3]
    with pytest.raises(IndexError):
        shards.rows[len(listed)]
    odd = shards.rows.chosen(lambda index: index % 2 == 1)
    assert list(odd) == listed[1::2] and sum(odd.per_shard()) == len(listed) // 2
    assert odd.chosen(lambda index: index == 1)[0] == listed[3]


@pytest.mark.parametrize("harm", ["missing", "damaged", "of another set"])
def test_without_a_fitting_index_the_manifests_are_read(large: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "data"
    write_set(folder, 3 * SIZE, shard_size=SIZE)
    index = folder / "index.json"
    match harm:
        case "missing":
            index.unlink()
        case "damaged":
            index.write_text(index.read_text()[:-9])
        case _:
            index.write_text((large / "index.json").read_text())
    assert len(AssetShards(folder, "val")) == 3 * SIZE // 20


def test_a_manifest_that_was_exchanged_is_not_read(tmp_path: Path) -> None:
    write_set(tmp_path, 2 * SIZE, shard_size=SIZE)
    path = tmp_path / "shards" / "000001.index.json"
    manifest = json.loads(path.read_text())
    path.write_text(path.read_text().replace(manifest["sha256"], "f" * 64))
    shards = AssetShards(tmp_path)
    assert shards.rows[0].key == f"{0:016x}"
    with pytest.raises(UserError, match=r"000001\.index\.json isn't the manifest"):
        shards.rows[SIZE]
