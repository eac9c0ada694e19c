"""The benchmarks of views and signed distances run, so that they can't rot; no absolute time is asserted."""

from pathlib import Path

import pytest
import trimesh

from benchmarks.experiments import sdf_error
from benchmarks.speed import insides, prep_stages, render, renderers
from data_prep.render.zbuffer import reason_against


def test_rendering_is_measured(capsys):
    render.main(["--faces", "200", "--views", "2", "--size", "32", "--processes", "1"])
    assert "embree" in capsys.readouterr().out


def test_signed_distances_of_damaged_meshes(capsys):
    sdf_error.main(["--families", "table", "--points", "500"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:34].strip(): line[34:].split() for line in lines[1:]}
    assert rows["none"][0] == rows["30% turned"][0] == rows["all inside out"][0] == "100.00%"
    assert rows["none"][-1] == "0%"
    assert rows["20% missing"][-1] == "100%"
    assert all(float(right.rstrip("%")) > 95 for right, *_ in rows.values())


@pytest.mark.skipif(bool(reason_against()), reason=reason_against())
def test_both_renderers_are_compared(capsys, tmp_path: Path):
    trimesh.creation.box().export(tmp_path / "box.glb")
    settings = ["--every", "1", "--turns", "1", "--set", "num_views=2", "resolution=16", "num_points=64"]
    renderers.main([str(tmp_path), "--pictures", str(tmp_path / "both.png"), *settings])
    assert "dB" in capsys.readouterr().out
    assert (tmp_path / "both.png").is_file()
    renderers.main([str(tmp_path), "--prepare", *settings])
    assert "1 assets: median" in capsys.readouterr().out


def test_stages_add_up(capsys, tmp_path: Path):
    trimesh.creation.box().export(tmp_path / "box.glb")
    prep_stages.main([str(tmp_path), "--every", "1", "--views", "2", "--size", "16"])
    assert "1 assets of 1" in capsys.readouterr().out


@pytest.mark.skipif(bool(reason_against()), reason=reason_against())
def test_both_ways_to_tell_inside_are_compared(capsys, tmp_path: Path):
    trimesh.creation.box().export(tmp_path / "box.glb")
    insides.main([str(tmp_path), "--every", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-3:] for line in lines[1:]] == [["0.0000%", "/", "0.0000%"]] * 2
