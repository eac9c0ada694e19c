"""Whether refinement improves shapes: the Frechet distances' difference by hand, and a tiny run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.drills.tiny_model import write_tiny_model
from benchmarks.experiments import distillation
from benchmarks.experiments.refinement import frechet, main
from sampling.refine import __main__ as command


def test_a_set_that_was_moved_away_is_as_far_as_the_squared_way() -> None:
    reference = np.random.default_rng(0).normal(size=(12, 8, 3))
    moved = reference + np.array([0.5, 0, 0])
    values, (low, high) = frechet(moved, reference, reference)
    assert values["before"] == pytest.approx(0.25)
    assert values["after"] == pytest.approx(0, abs=1e-9)
    assert low < -0.25 < high < 0


def test_two_equal_sets_differ_by_nothing() -> None:
    rng = np.random.default_rng(1)
    shapes, reference = rng.normal(size=(2, 10, 4, 3))
    values, interval = frechet(shapes, shapes, reference)
    assert values["before"] == values["after"] > 0
    assert interval == (0, 0)


def test_a_tiny_run_makes_its_table_and_goes_on(
    ball_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_tiny_model(tmp_path / "run")
    (run / "data").symlink_to(ball_dataset)
    judge = run / "eval" / "judge"
    shutil.copytree(run / "clip", judge)
    weights = load_file(judge / "weights.safetensors")  # another than the guide
    save_file({name: value * 1.01 for name, value in weights.items()}, judge / "weights.safetensors")
    monkeypatch.setattr("benchmarks.experiments.refinement.DRAWS", 20)
    monkeypatch.setattr(distillation, "SIZE", 16)
    monkeypatch.setattr("sampling.refine.scores.SCORE_SIZE", 16)
    monkeypatch.setattr("sampling.making.PORTRAIT_SIZE", 16)
    settings = ["guide=clip", "iterations=1", "views=1", "steps=2", "mesh.resolution=16"]
    arguments = ["--run", str(run), "--out", str(tmp_path / "out"), "--prompts", "2", "--set", *settings]
    main(arguments)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| judge |" in table and "| frechet/normals/clip |" in table and "2 shapes" in table
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(found[name]) for name in ("captions", "scores")] == [2, 2]
    assert (tmp_path / "out" / "shapes.png").is_file()
    monkeypatch.setattr(command, "optimise", lambda *_, **__: pytest.fail("it was made already"))
    main(arguments)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
