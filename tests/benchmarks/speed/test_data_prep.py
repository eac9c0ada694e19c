"""The benchmarks of data preparation run."""

from pathlib import Path

import trimesh

from benchmarks.speed import data_prep_cost, growth, loader
from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from data_prep.procedural.dataset import ProceduralConfig


def test_cost_of_a_sample_of_a_folder(tmp_path: Path, capfd):
    (tmp_path / "assets").mkdir()
    for number in range(4):
        trimesh.creation.box(extents=(1, 2, 3 + number)).export(tmp_path / f"assets/box{number}.glb")
    settings = ["num_views=1", "resolution=16", "num_points=64", "num_sdf=64", "workers=1"]
    data_prep_cost.main([str(tmp_path / "assets"), "--sample", "3", "--set", *settings])
    report = capfd.readouterr().out
    assert "3 assets prepared, 0 left out" in report
    assert "core-hours" in report


def test_rates_of_reader_and_trainer(tmp_path: Path):
    few = ProceduralConfig(num_train=2, num_val=1, num_test=1, num_judge=1)
    small = DataConfig(procedural=few, num_views=4, resolution=16, num_points=2048, num_sdf=512, workers=0)
    prepare(small, tmp_path)
    rows = loader.measure(tmp_path, "smoke", samples=2, steps=1)
    assert len(rows) == 3
    assert all(rate > 0 for _, rate in rows)


def test_costs_a_row_are_measured(capsys):
    growth.main(["--rows", "200"])
    assert capsys.readouterr().out.count("us a row") == 2
