"""SDS beside VSD: the measures of known pictures, and a tiny run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drills.tiny_model import write_tiny_model
from benchmarks.experiments import distillation
from benchmarks.experiments.distillation import main, saturation, sharpness
from prior.train_views import main as train_views
from sampling.refine import __main__ as command


def square(colour: tuple[int, int, int], *, stripes: int = 0) -> np.ndarray:
    """An opaque square on nothing, every other column of it darker by `stripes`."""
    rgba = np.zeros((1, 16, 16, 4), np.uint8)
    rgba[0, 2:14, 2:14] = (*colour, 255)
    rgba[0, 2:14, 2:14:2, :3] -= np.uint8(stripes)
    return rgba


def test_saturation_is_of_the_object_alone() -> None:
    assert saturation(square((200, 100, 100))) == pytest.approx(0.5)
    assert saturation(square((90, 90, 90))) == 0
    assert saturation(np.zeros((1, 4, 4, 4), np.uint8)) == 0


def test_sharpness_sees_stripes_and_no_outline() -> None:
    assert sharpness(square((200, 100, 100))) == 0
    # Each pixel's neighbours left and right differ by 51 / 255 = 0.2: a Laplacian of 0.4.
    assert sharpness(square((200, 100, 100), stripes=51)) == pytest.approx(0.4)


def test_a_tiny_run_makes_its_table_and_goes_on(
    ball_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_model(tmp_path / "run")
    shutil.copytree(run / "clip", run / "eval" / "judge")
    (run / "data").symlink_to(ball_dataset)
    sizes = "{size: 16, channels: [8, 16], head_width: 8, context_width: 16, volume: 4, volume_width: 4}"
    train_views([
        "--out", str(run / "views"), "--set", f"data={ball_dataset}", f"clip={run / 'clip'}",
        f"network={sizes}",
        "train={steps: 1, batch_size: 2, precision: fp32, picture_every: 1}",
    ])  # fmt: skip
    monkeypatch.setattr(distillation, "SIZE", 16)
    monkeypatch.setattr("sampling.refine.scores.SCORE_SIZE", 16)
    monkeypatch.setattr("sampling.making.PORTRAIT_SIZE", 16)
    arguments = ["--run", str(run), "--out", str(tmp_path / "out")]
    arguments += ["--prompts", "1", "--particles", "2", "--iterations", "1", "--views", "1"]
    main(arguments)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| SDS, scale 100 |" in table and "| VSD - SDS |" in table
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [sorted(row) for row in rows] == [["sds", "start", "truth", "vsd"]]
    monkeypatch.setattr(command, "optimise", lambda *_, **__: pytest.fail("it was made already"))
    main(arguments)
    assert (tmp_path / "out" / "table.md").read_text() == table
