"""`python -m eval.views`: which views are asked for, scores with known answers, its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.nearest import LookAlikes
from eval.views import (
    Question,
    ViewEvalConfig,
    choose_views,
    evaluate,
    recovered,
    scores,
    summarise,
)
from shapeloom.clip import Clip
from shapeloom.config import UserError
from shapeloom.pictures import read_views, to_uint8
from shapeloom.shards import AssetShards
from shapeloom.view_diffusion import random_view_model


def test_the_given_view_is_one_from_which_each_gap_is_found_most_exactly() -> None:
    azimuth = np.radians([10.0, 45, 100, 70, 220])
    # From 10: 35 (45), 60 (70), 90 (100), 150 (220, too far from 180). From 45 and the others fewer or worse.
    given, asked = choose_views(azimuth, [30.0, 60.0, 90.0, 180.0])
    assert (given, asked) == (0, {30.0: 1, 60.0: 3, 90.0: 2})


def test_a_gap_counts_the_shorter_way_around() -> None:
    assert choose_views(np.radians([-170.0, 160.0]), [30.0]) == (0, {30.0: 1})


def test_scores_of_known_pictures() -> None:
    truth = np.ones((4, 16, 16))
    truth[3, :8] = 0
    made = truth.copy()
    made[:3] -= 0.1
    made[3, 8:12] = 0
    found = scores(made, truth, lambda a, b: float(np.abs(a - b).max()))
    assert found["psnr"] == pytest.approx(20)
    assert found["iou"] == pytest.approx(0.5)
    assert found["perceptual"] == pytest.approx(0.1)
    assert scores(truth, truth, None) == {"psnr": 100, "ssim": pytest.approx(1), "iou": 1}


def test_a_pose_is_recovered_where_the_made_view_is_nearest_to_its_own() -> None:
    pictures = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 4, 16, 16)
    question = Question(
        0, {30.0: 1, 60.0: 2}, pictures, torch.eye(4).expand(4, 4, 4), torch.eye(3).expand(4, 3, 3)
    )
    made = ((pictures + 1) / 2).numpy()
    assert recovered(made[[1, 2]], question) == [True, True]
    assert recovered(made[[3, 2]], question) == [False, True]


class Pixels(Clip):
    """A picture's vector is its pixels."""

    def __init__(self) -> None: ...

    def image(self, rgb: torch.Tensor | np.ndarray, *, batch_size: int = 64) -> torch.Tensor:
        pictures = torch.as_tensor(rgb).float() - 128
        return torch.nn.functional.normalize(pictures.flatten(1), dim=-1)


def test_a_training_asset_is_found_by_any_of_its_looks(ball_dataset: Path) -> None:
    shards = AssetShards(ball_dataset, "train")
    found = LookAlikes(shards, Pixels(), size=shards.resolution)
    for index in range(len(shards)):
        shown = read_views(shards, index, [2], size=shards.resolution).rgb
        assert found.nearest(to_uint8(1 - 0.9 * (1 - shown))) == index


def test_gains_are_paired_and_of_the_model_over_the_other() -> None:
    def row(ours: float, theirs: float) -> dict:
        return {
            "gap": 30.0,
            "recovered": True,
            "systems": {"model": {"psnr": ours}, "copy": {"psnr": theirs}},
        }

    found = summarise([row(12.0, 10.0), row(22.0, 20.0)], [30.0, 60.0])
    assert list(found) == ["30"]
    assert found["30"]["model_over"]["copy"]["psnr"] == {"mean": 2, "interval": [2, 2]}
    assert found["30"]["systems"]["model"]["psnr"]["mean"] == 17


def test_the_evaluation_writes_figures_and_a_page(ball_dataset: Path, tmp_path: Path) -> None:
    config = ViewEvalConfig(steps=2, max_assets=1, gaps=[60.0, 90.0, 120.0, 180.0], pictures=2)
    results = evaluate(random_view_model(), config, ball_dataset, tmp_path)
    saved = json.loads((tmp_path / "views.json").read_text())
    assert saved["gaps"] == json.loads(json.dumps(results["gaps"]))
    for part in results["gaps"].values():
        assert set(part["systems"]) == {"model", "copy", "nearest"}
    assert set(saved["agreement"]) == {"truth", "model", "copy", "nearest"}
    # A ball in the middle: its true views agree, and so does the given one everywhere.
    assert saved["agreement"]["truth"]["mean"] > 0.8
    html = (tmp_path / "views.html").read_text()
    assert "The given picture" in html and "data:image/png" in html
    # Balls look alike from all around: the given picture is a good answer, random weights' is not.
    some = next(iter(results["gaps"].values()))
    assert some["model_over"]["copy"]["psnr"]["mean"] < 0


def test_a_run_s_report_shows_what_was_found_of_its_views(ball_dataset: Path, tmp_path: Path) -> None:
    from eval.report import _views

    assert _views(tmp_path) == ""
    config = ViewEvalConfig(steps=1, max_assets=1, splits=["val"])
    evaluate(random_view_model(), config, ball_dataset, tmp_path)
    assert "New views of held-out assets" in _views(tmp_path)


def test_data_without_held_out_assets_is_told(ball_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no assets of nothing; it has"):
        evaluate(random_view_model(), ViewEvalConfig(splits=["nothing"]), ball_dataset, tmp_path)
