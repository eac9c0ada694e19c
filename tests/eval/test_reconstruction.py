"""A model that knows the answer scores as a perfect one; a model that shows nothing scores as a blank."""

from pathlib import Path

import numpy as np
import pytest

from encoder.model import Autoencoder
from eval.reconstruction import ReconstructionConfig, evaluate_reconstruction, held_out_views
from sampling.mesh import MeshConfig
from shapeloom.config import UserError
from shapeloom.metrics import MAX_PSNR
from shapeloom.shards import AssetShards

CONFIG = ReconstructionConfig(mesh=MeshConfig(resolution=32), surface_points=1000, batch_size=3, pictures=2)


def test_views_that_the_encoder_saw_are_never_measured() -> None:
    assert held_out_views(12, 0, 4) == [0, 3, 6, 9]
    assert held_out_views(12, 4, 4) == [4, 6, 8, 10]
    assert held_out_views(6, 4, 4) == [4, 5]
    with pytest.raises(UserError, match="no view is held out"):
        held_out_views(4, 4, 1)


def test_a_perfect_model_scores_perfectly(coloured_balls: Path, oracle: Autoencoder, tmp_path: Path) -> None:
    summary, records = evaluate_reconstruction(coloured_balls, oracle, CONFIG, tmp_path)
    assert len(records) == summary["num_assets"] == 4
    assert summary["psnr"] == pytest.approx(MAX_PSNR, abs=1e-2) and summary["iou"] == 1
    assert summary["mesh_iou"] > 0.9  # a pixel at the edge may fall to either side
    # Two sets of 500 and 1,000 random points on a sphere are about half their spacings, 0.06 and 0.04, apart.
    assert summary["chamfer"] < 0.07
    assert summary["normal_consistency"] > 0.95
    assert summary["num_empty_meshes"] == 0
    assert summary["splits"].keys() == {"val", "test"}


def test_blank_and_nearest_are_measured_beside(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    summary, records = evaluate_reconstruction(coloured_balls, oracle, CONFIG, tmp_path)
    assert summary["blank"]["iou"] == 0
    assert summary["blank"]["psnr"] < summary["nearest"]["psnr"] < summary["psnr"]
    assert summary["nearest"]["iou"] > 0.5
    training = {row.key for row in AssetShards(coloured_balls, "train").rows}
    assert all(record["nearest"]["key"] in training for record in records)
    assert sum("picture" in record for record in records) == 2
    assert all((tmp_path / record["picture"]).is_file() for record in records if "picture" in record)


def test_a_model_that_shows_nothing_scores_as_a_blank(
    coloured_balls: Path, broken: Autoencoder, tmp_path: Path
) -> None:
    summary, records = evaluate_reconstruction(coloured_balls, broken, CONFIG, tmp_path)
    assert summary["num_empty_meshes"] == 4
    for name in ("psnr", "iou", "chamfer", "fscore"):
        assert summary[name] == summary["blank"][name]
    # A point at the centre of a ball is its radius away from all of it, both ways.
    shards = {row.key: i for i, row in enumerate(AssetShards(coloured_balls).rows)}
    points = AssetShards(coloured_balls).read(shards[records[0]["key"]], points=True).points
    assert points is not None
    assert records[0]["chamfer"] == pytest.approx(np.linalg.norm(points[0]), rel=1e-4)
    assert records[0]["fscore"] == 0


def test_finished_batches_are_not_computed_again(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate_reconstruction(coloured_balls, oracle, CONFIG, tmp_path)
    (tmp_path / "part_001.json").unlink()
    batches = []
    encode = oracle.encode
    monkeypatch.setattr(oracle, "encode", lambda samples: batches.append(len(samples)) or encode(samples))
    assert evaluate_reconstruction(coloured_balls, oracle, CONFIG, tmp_path) == first
    assert batches == [1]


def test_data_without_held_out_assets_says_what_there_is(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"splits": ["nothing"]})
    with pytest.raises(UserError, match=r"judge, test, train, val"):
        evaluate_reconstruction(coloured_balls, oracle, config, tmp_path)
