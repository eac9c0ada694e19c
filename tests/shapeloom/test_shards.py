"""Shards: bytes come back, by our readers and by plain webdataset; order is a pure function of (seed, n)."""

import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys, tar_file_expander

from shapeloom.config import UserError
from shapeloom.shards import (
    AssetShards,
    ReadingOrder,
    depth_from_png,
    depth_to_png,
    finish_dataset,
    manifest_path,
    read_back,
    read_manifest,
    shard_is_finished,
    write_shard,
)
from shapeloom.shards.tensors import LatentShards, SampleStream


def asset(number: int, split: str = "train", views: int = 2) -> dict:
    rng = np.random.default_rng(number)
    sample = {
        "__key__": f"{number:016x}",
        "json": {"split": split, "captions": ["a thing", f"thing {number}"], "group": f"g{number}"},
        "cameras.npy": rng.normal(size=(views, 4, 4)).astype(np.float32),
        "intrinsics.npy": rng.normal(size=(views, 3, 3)).astype(np.float32),
        "points.npy": rng.normal(size=(5, 3)).astype(np.float32),
        "points_rgb.npy": rng.integers(0, 256, (5, 3), dtype=np.uint8),
        "points_normal.npy": rng.integers(-127, 128, (5, 3), dtype=np.int8),
        "sdf_points.npy": rng.normal(size=(7, 3)).astype(np.float32),
        "sdf.npy": rng.normal(size=7).astype(np.float32),
    }
    for view in range(views):
        sample[f"rgba_{view:03d}.png"] = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
        sample[f"depth_{view:03d}.png"] = depth_to_png(rng.uniform(1, 7, (8, 8)).astype(np.float32))
    return sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shard(tmp_path / "shards/000000.tar", [asset(0), asset(1, "val"), asset(2)])
    write_shard(tmp_path / "shards/000001.tar", [asset(3), asset(4, "val")])
    finish_dataset(tmp_path, kind="assets", facts={"views": 2, "resolution": 8})
    return tmp_path


def test_reader_returns_what_was_written(folder: Path):
    shards = AssetShards(folder)
    assert [row.key for row in shards.rows] == [f"{n:016x}" for n in range(5)]
    assert (shards.num_views, shards.resolution, len(shards)) == (2, 8, 5)
    for n in range(5):
        truth, got = asset(n), shards.read(n, views=[1, 0], depth=True, points=True, sdf=True)
        np.testing.assert_array_equal(got.rgba, np.stack([truth["rgba_001.png"], truth["rgba_000.png"]]))
        np.testing.assert_array_equal(got.depth[0], depth_from_png(truth["depth_001.png"]))
        np.testing.assert_array_equal(got.cam_to_world, truth["cameras.npy"][[1, 0]])
        np.testing.assert_array_equal(got.intrinsics, truth["intrinsics.npy"][[1, 0]])
        for name in ("points", "points_rgb", "points_normal", "sdf_points", "sdf"):
            np.testing.assert_array_equal(getattr(got, name), truth[f"{name}.npy"])
        assert shards.facts(n)["captions"] == truth["json"]["captions"]


def test_reader_decodes_only_what_is_asked_for(folder: Path):
    sample = AssetShards(folder).read(0, points=True)
    assert sample.rgba is None
    assert sample.depth is None
    assert sample.sdf is None
    assert sample.cam_to_world.shape == (0, 4, 4)
    assert sample.points.shape == (5, 3)


def test_split_selects_rows_and_shard_sizes(folder: Path):
    val = AssetShards(folder, "val")
    assert [row.key for row in val.rows] == ["0000000000000001", "0000000000000004"]
    assert val.shard_sizes == [1, 1]
    assert AssetShards(folder, "train").shard_sizes == [2, 1]
    assert val.read(1, points=True).row.captions == ["a thing", "thing 4"]


def test_plain_webdataset_reads_the_same_samples(folder: Path):
    with (folder / "shards/000000.tar").open("rb") as stream:
        files = tar_file_expander([{"stream": stream, "url": "000000.tar"}])
        samples = [webdataset.autodecode.Decoder([])(sample) for sample in group_by_keys(files)]
    assert [s["__key__"] for s in samples] == [f"{n:016x}" for n in range(3)]
    np.testing.assert_array_equal(samples[2]["points.npy"], asset(2)["points.npy"])
    assert samples[2]["json"]["captions"] == ["a thing", "thing 2"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_webdataset_loader_reads_the_folder(folder: Path):
    urls = str(folder / "shards/{000000..000001}.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [f"{n:016x}" for n in range(5)]
    np.testing.assert_array_equal(samples[4]["sdf.npy"], asset(4)["sdf.npy"])


def test_shard_bytes_depend_on_samples_alone(tmp_path: Path):
    first = write_shard(tmp_path / "a/shards/000000.tar", [asset(0), asset(1)])
    second = write_shard(tmp_path / "b/shards/000000.tar", iter([asset(0), asset(1)]))
    other = write_shard(tmp_path / "c/shards/000000.tar", [asset(0), asset(2)])
    assert first == second != other


def test_failed_write_leaves_no_shard(tmp_path: Path):
    def samples():
        yield asset(0)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "000000.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_finished_means_there_with_its_manifest_and_whole(folder: Path):
    shard = folder / "shards/000000.tar"
    assert shard_is_finished(shard)
    assert not shard_is_finished(folder / "shards/000002.tar")
    shard.write_bytes(shard.read_bytes()[:-512])
    assert not shard_is_finished(shard)
    (folder / "shards/000001.index.json").unlink()
    assert not shard_is_finished(folder / "shards/000001.tar")


def test_what_was_written_can_be_read_back_and_written_again(folder: Path, tmp_path: Path):
    shard = folder / "shards/000000.tar"
    before = shard.read_bytes()
    again = tmp_path / "again/000000.tar"
    write_shard(again, read_back(shard))
    assert again.read_bytes() == before
    assert read_manifest(again) == read_manifest(shard)


def test_manifests_tell_where_members_lie(tmp_path: Path):
    """Samples of one shard may have different members, of any size."""
    rng, shard = np.random.default_rng(0), tmp_path / "000000.tar"
    odd = {f"{n}.npy": rng.bytes(n) for n in (0, 1, 511, 512, 513, 5000)}
    write_shard(shard, [asset(0), asset(1) | odd, asset(2)])
    with tarfile.open(shard) as tar:
        truth = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    found = read_manifest(shard)["samples"]
    told = {f"{row['key']}.{name}": place for row in found for name, place in row["members"].items()}
    assert told == truth and len(found[1]["members"]) == len(found[0]["members"]) + len(odd)
    with pytest.raises(KeyError):
        found[0]["members"]["511.npy"]


def test_manifests_of_the_first_schema_are_read(folder: Path):
    def places() -> list:
        rows = AssetShards(folder).rows
        return [(row.key, {name: tuple(place) for name, place in row.members.items()}) for row in rows]

    before = places()
    for shard in (folder / "shards").glob("*.tar"):
        manifest = read_manifest(shard)
        samples = [{**row, "members": dict(row["members"])} for row in manifest["samples"]]
        manifest_path(shard).write_text(json.dumps({**manifest, "schema": 1, "samples": samples}))
    assert places() == before
    assert AssetShards(folder).read(3, points=True).points.shape == (5, 3)


@pytest.mark.parametrize("depth", [0.5, 1.2345, 4.0, 7.99])
def test_depth_survives_to_half_a_count(depth: float):
    picture = np.array([[0.0, depth]], dtype=np.float32)
    back = depth_from_png(depth_to_png(picture))
    assert back[0, 0] == 0
    assert abs(back[0, 1] - depth) <= 0.5 / 8192 + 1e-6


@pytest.mark.parametrize("key", ["a.b", "a/b"])
def test_key_that_webdataset_would_split_is_refused(tmp_path: Path, key: str):
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "000000.tar", [asset(0) | {"__key__": key}])


def test_errors_say_what_is_wrong(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no dataset\.json"):
        AssetShards(tmp_path / "nowhere")
    with pytest.raises(UserError, match="'latents'"):
        LatentShards(folder)
    with pytest.raises(UserError, match=r"'judge'.*train, val"):
        AssetShards(folder, "judge")
    with pytest.raises(UserError, match=r"no rgba_009\.png"):
        AssetShards(folder).read(0, views=[9])


@pytest.mark.parametrize("file", ["dataset.json", "shards/000001.index.json"])
def test_another_schema_is_refused_by_name(folder: Path, file: str):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {"schema": 9}))
    with pytest.raises(UserError, match=f"{file}.*schema 9"):
        list(AssetShards(folder).rows)  # a manifest is read when its rows are


def test_latents_stack_with_padded_captions(tmp_path: Path):
    rng = np.random.default_rng(0)
    latents = []
    for number, captions in enumerate((["a"], ["b", "c", "d"])):
        latents.append(
            {
                "__key__": str(number),
                "json": {"split": "train", "captions": captions},
                "latent.npy": rng.normal(size=(4, 2)).astype(np.float16),
                "text_pooled.npy": rng.normal(size=(len(captions), 6)).astype(np.float16),
                "text_mask.npy": np.ones((len(captions), 5), bool),
                "image_pooled.npy": rng.normal(size=(2, 6)).astype(np.float16),
            }
        )
    write_shard(tmp_path / "shards/000000.tar", latents)
    finish_dataset(tmp_path, kind="latents", facts={"encoder": "e", "tokens": 4})
    shards = LatentShards(tmp_path)
    stacked = shards.load()
    assert shards.header["encoder"] == "e"
    assert stacked["num_captions"].tolist() == [1, 3]
    assert torch.equal(stacked["latent"][1], torch.from_numpy(latents[1]["latent.npy"]))
    assert torch.equal(stacked["text_pooled"][1], torch.from_numpy(latents[1]["text_pooled.npy"]))
    assert stacked["text_pooled"][0, 1:].eq(0).all()
    assert not stacked["text_mask"][0, 1:].any()
    assert torch.equal(shards.read(0)["image_pooled"], stacked["image_pooled"][0])


def test_every_pass_visits_each_row_once_in_another_order():
    order = ReadingOrder([3, 0, 5, 1, 4], seed=0, window=2)
    passes = [[order.index(13 * epoch + i) for i in range(13)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(13)) for rows in passes)
    assert passes[0] != passes[1] != passes[2]


def test_order_is_a_pure_function_of_seed_and_number():
    sizes, far = [7] * 40, list(range(2000, 0, -37))
    reader = ReadingOrder(sizes, seed=5)
    assert [reader.index(n) for n in far] == [ReadingOrder(sizes, seed=5).index(n) for n in far]
    assert [reader.index(n) for n in far] != [ReadingOrder(sizes, seed=6).index(n) for n in far]


def test_a_window_of_samples_touches_only_its_shards():
    order = ReadingOrder([10] * 20, seed=1, window=4)
    for start in range(0, 200, 40):
        assert len({order.index(n) // 10 for n in range(start, start + 40)}) == 4


def test_read_ahead_names_the_shards_of_this_window_and_the_next():
    order = ReadingOrder([10] * 20, seed=1, window=4)
    for n in (0, 39, 40, 185, 199, 200, 555):
        ahead = order.shards_from(n)
        here = {order.index(m) // 10 for m in range(n - n % 40, n - n % 40 + 40)}
        then = {order.index(m) // 10 for m in range(n - n % 40 + 40, n - n % 40 + 80)}
        assert set(ahead[:4]) == here
        assert set(ahead) == here | then


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_stream_shares_samples_between_ranks_and_workers_and_resumes(folder: Path, workers: int):
    shards = AssetShards(folder)
    order = ReadingOrder(shards.shard_sizes, seed=3)
    expected = [(n, order.index(n)) for n in range(7, 19)]
    found = []
    for rank in range(2):
        stream = SampleStream(shards, order, pair, consumed=7, rank=rank, world=2)
        loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=tuple)
        samples = list(itertools.islice(loader, 6))
        assert samples == expected[rank::2]
        found += samples
    assert sorted(found) == expected


def test_stream_keeps_whole_batches_in_order_too(folder: Path):
    shards = AssetShards(folder)
    order = ReadingOrder(shards.shard_sizes, seed=3)
    stream = SampleStream(shards, order, pair, batch_size=3)
    loader = DataLoader(stream, batch_size=3, num_workers=2, collate_fn=list)
    batches = list(itertools.islice(loader, 4))
    assert [n for batch in batches for n, _ in batch] == list(range(12))


def pair(n: int, index: int) -> tuple[int, int]:
    return n, index
