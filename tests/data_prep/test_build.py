"""The whole stage on small folders: same bytes whoever works, bad assets aside, killed runs go on."""

import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.build import plan_shards, prepare
from data_prep.checks import check_sample, inspect_asset, inspect_dataset, verify
from data_prep.failures import Failure, from_jsonl, to_jsonl
from data_prep.pipeline import DataConfig, Limits, ShardTask
from data_prep.sources.find import SplitFractions, find_sources
from shapeloom.config import UserError, load_config
from shapeloom.shards import AssetShards, decode_member, read_back, read_manifest, write_shard

SMALL = {"num_views": 2, "resolution": 16, "num_points": 64, "num_sdf": 64, "shard_size": 3, "workers": 0}


@pytest.fixture
def assets(tmp_path: Path, make_box) -> Path:
    """Seven boxes of different extents and two bad files."""
    folder = tmp_path / "assets"
    for number in range(7):
        make_box(folder / f"box{'abcdefg'[number]}.glb", extents=(1, 2, 3 + number))
    (folder / "broken.glb").write_bytes(b"not a model")
    (folder / "empty.obj").write_text("# nothing\n")
    (folder / "captions.csv").write_text("path,caption\nboxa.glb,the first box\nlost.glb,nowhere\n")
    return folder


def config(assets: Path, **changes) -> DataConfig:
    return DataConfig(**{**SMALL, "assets": assets, **changes})


def files(out: Path) -> dict[str, bytes]:
    names = [
        "dataset.json",
        "quarantine.jsonl",
        *(f"shards/{p.name}" for p in sorted((out / "shards").iterdir())),
    ]
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture
def prepared(assets, tmp_path) -> Path:
    prepare(config(assets), tmp_path / "out")
    return tmp_path / "out"


def test_good_assets_are_in_shards_and_bad_ones_in_quarantine(prepared):
    shards = AssetShards(prepared)
    assert len(shards) == 7
    assert (shards.num_views, shards.resolution) == (2, 16)
    left_out = [(f.path, f.stage, f.reason) for f in from_jsonl((prepared / "quarantine.jsonl").read_text())]
    assert left_out == [
        ("broken.glb", "load", "unreadable"),
        ("empty.obj", "load", "empty"),
        ("lost.glb", "sources", "missing"),
    ]
    first = next(i for i, row in enumerate(shards.rows) if row.captions == ["the first box"])
    facts = shards.facts(first)
    assert facts["path"] == "boxa.glb"
    assert facts["watertight"] is True
    assert facts["sha256"].startswith(shards.rows[first].key)


def test_samples_keep_the_contract(prepared):
    shards = AssetShards(prepared)
    for index in range(len(shards)):
        sample = shards.read(index, views=[0, 1], depth=True, points=True, sdf=True)
        assert check_sample(sample, 16) == []
        assert sample.points.shape == (64, 3)
        assert np.abs(sample.points).max() == pytest.approx(0.95, abs=0.05)


def test_bytes_do_not_depend_on_who_works_or_where_assets_lie(assets, prepared, tmp_path):
    moved = tmp_path / "elsewhere"
    assets.rename(moved)
    prepare(config(moved, workers=2), tmp_path / "again")
    assert files(tmp_path / "again") == files(prepared)


def test_another_seed_gives_other_bytes(assets, prepared, tmp_path):
    prepare(config(assets, seed=1), tmp_path / "again")
    assert AssetShards(tmp_path / "again").digest != AssetShards(prepared).digest


def test_killed_run_goes_on_with_the_same_bytes(assets, prepared, tmp_path, monkeypatch):
    out, calls = tmp_path / "again", []
    real = sys.modules["data_prep.build"].prepare_shard

    def killed(task: ShardTask, report):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(task.path.name)
        return real(task, report)

    monkeypatch.setattr("data_prep.build.prepare_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(assets), out)
    assert not (out / "dataset.json").exists()

    def counted(task: ShardTask, report):
        calls.append(task.path.name)
        return real(task, report)

    monkeypatch.setattr("data_prep.build.prepare_shard", counted)
    prepare(config(assets), out)
    assert len(calls) == len(set(calls))  # no shard was made twice
    assert files(out) == files(prepared)


def test_finished_run_does_nothing_and_another_config_or_folder_is_refused(assets, prepared, monkeypatch):
    monkeypatch.setattr("data_prep.build.prepare_shard", lambda *_: pytest.fail("worked again"))
    prepare(config(assets, workers=1), prepared)
    with pytest.raises(UserError, match="another config"):
        prepare(config(assets, num_views=3), prepared)
    (assets / "boxa.glb").unlink()
    with pytest.raises(UserError, match="another assets"):
        prepare(config(assets), prepared)


def test_deleted_shard_of_a_finished_run_is_made_again(assets, prepared, monkeypatch):
    before, made = files(prepared), []
    real = sys.modules["data_prep.build"].prepare_shard
    monkeypatch.setattr(
        "data_prep.build.prepare_shard",
        lambda task, report: made.append(task.path.name) or real(task, report),
    )
    (prepared / "shards/000001.tar").unlink()
    prepare(config(assets), prepared)
    assert made == ["000001.tar"]
    assert files(prepared) == before


def test_shards_hold_one_split_each_and_groups_stay_together(assets, tmp_path):
    halves = SplitFractions(train=0.5, val=0.5, test=0, judge=0)
    sources, _ = find_sources(assets, halves)
    tasks = plan_shards(sources, assets, tmp_path, config(assets))
    assert all(len({source.split for source in task.sources}) == 1 for task in tasks)
    assert sorted(s.path for task in tasks for s in task.sources) == sorted(s.path for s in sources)
    assert max(len(task.sources) for task in tasks) <= 3


def test_folder_without_a_good_asset_is_a_user_error(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/broken.glb").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"None of the 1 assets.*quarantine\.jsonl"):
        prepare(config(tmp_path / "assets"), tmp_path / "out")


def test_pipe_in_place_of_a_texture_is_missing_and_never_waited_for(assets, tmp_path):
    os.mkfifo(assets / "skin.png")  # opening it for reading would never return
    (assets / "a.mtl").write_text("newmtl m\nmap_Kd skin.png\n")
    (assets / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl m\nf 1 2 3\n")
    prepare(config(assets), tmp_path / "out")
    assert len(AssetShards(tmp_path / "out")) == 8


def test_quarantine_lines_survive_a_round_trip():
    failures = [Failure("a/\u00fc.glb", "load", "unreadable", 'said "no"\u2028\nline', "0" * 64)]
    assert from_jsonl(to_jsonl(failures)) == failures


def test_verify_finds_damage_and_a_sound_folder_sound(prepared):
    assert verify(prepared) == []
    shard = sorted((prepared / "shards").glob("*.tar"))[-1]
    data = bytearray(shard.read_bytes())
    row = read_manifest(shard)["samples"][0]
    offset, _ = row["members"]["sdf_points.npy"]
    data[offset + 128 : offset + 132] = struct.pack("<f", 5.0)  # behind the 128-byte header of .npy
    shard.write_bytes(data)
    assert verify(prepared) == [
        f"{shard.name}: its bytes are not those of its manifest",
        f"{shard.name}: {row['key']}: SDF samples leave the box",
    ]


@pytest.mark.parametrize(
    ("member", "place", "value", "problem"),
    [
        ("sdf.npy", 0, np.nan, "sdf.npy holds numbers that are not finite"),
        ("points.npy", (0, 0), 0.99, "points leave the cube"),
        ("cameras.npy", (0, slice(0, 3), 3), 0.1, "a camera stands within the cube"),
        (
            "cameras.npy",
            (slice(None), slice(0, 3), slice(1, 3)),
            "turned",
            "a camera looks away from the cube",
        ),
        ("cameras.npy", (0, 0, slice(0, 3)), "turned", "a pose is mirrored"),
        ("intrinsics.npy", (0, 0, 2), -1.0, "a principal point lies off its picture"),
        ("rgba_000.png", slice(8), None, "rgba_000.png has 16 x 8 pixels"),
        ("json", "sha256", "0" * 64, "its json is of another schema or asset"),
    ],
)
def test_verify_names_what_a_sample_breaks(prepared, member, place, value, problem):
    shard = sorted((prepared / "shards").glob("*.tar"))[0]
    samples = list(read_back(shard))
    broken = decode_member(member, samples[0][member]) if member != "json" else samples[0]["json"]
    if member.endswith(".png"):
        broken = broken[place]
    elif isinstance(value, str) and value == "turned":
        broken[place] = -broken[place]
    else:
        broken[place] = value
    samples[0][member] = broken
    write_shard(shard, samples)
    place = f"{shard.name}: {samples[0]['__key__']}: "
    problems = verify(prepared)
    assert problems[0] == "dataset.json was written over other shards than these"
    assert any(line.startswith(place) and problem in line for line in problems[1:])
    assert all(line.startswith(place) for line in problems[1:])  # of the other samples nothing


def test_inspect_shows_the_dataset_and_one_asset(prepared, tmp_path):
    text = inspect_dataset(prepared)
    assert "7 assets" in text
    assert "broken.glb [load: unreadable]" in text
    key = AssetShards(prepared).rows[0].key
    text = inspect_asset(prepared, key[:8], tmp_path / "a.png")
    assert key in text
    assert "rgba_000.png       uint8    16 x 16 x 4" in text
    assert (tmp_path / "a.png").is_file()
    with pytest.raises(UserError, match="0 assets"):
        inspect_asset(prepared, "zzz", tmp_path / "b.png")


def test_command_line_runs_all_three(assets, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "out")
    sets = [f"{name}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr("data_prep.__main__.start_logging", lambda: None)  # its handler outlives the test
    monkeypatch.setattr(sys, "argv", ["data_prep", "--out", out, "--set", f"assets={assets}", *sets])
    main()
    for command, expected in (("verify", "is sound"), ("inspect", "splits:")):
        monkeypatch.setattr(sys, "argv", ["data_prep", command, out])
        main()
        assert expected in capsys.readouterr().out


def test_command_line_retries_under_the_runs_own_config_and_other_limits(assets, prepared, monkeypatch):
    before = files(prepared)
    monkeypatch.setattr("data_prep.__main__.start_logging", lambda: None)
    changed = ["--set", "limits.max_megabytes=2", "workers=0"]
    monkeypatch.setattr(sys, "argv", ["data_prep", "--retry-quarantined", "--out", str(prepared), *changed])
    tried = []
    real = sys.modules["data_prep.pipeline"].try_asset
    monkeypatch.setattr(
        "data_prep.pipeline.try_asset", lambda source, *rest: tried.append(source.path) or real(source, *rest)
    )
    main()
    assert sorted(tried) == ["broken.glb", "empty.obj"]
    assert files(prepared) == before
    prepare(config(assets, limits=Limits(max_megabytes=2)), prepared)  # the run's limits from now on


@pytest.mark.parametrize("preset", ["smoke", "tiny"])
def test_presets_are_valid(preset):
    assert load_config(DataConfig, Path(f"configs/data_prep/{preset}.yaml")).supersample == 2


def test_smoke_preset_prepares_the_procedural_set(tmp_path):
    smoke = load_config(DataConfig, Path("configs/data_prep/smoke.yaml"), ["workers=0", "num_views=1"])
    prepare(smoke, tmp_path)
    header = AssetShards(tmp_path).header
    assert header["splits"] == {"train": 12, "val": 3, "test": 4, "judge": 5}
    assert header["quarantined"] == {}
