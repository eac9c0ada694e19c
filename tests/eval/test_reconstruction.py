"""A model that knows the answer scores as a perfect one; a model that shows nothing scores as a blank."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.model import Autoencoder
from eval.reconstruction import ReconstructionConfig, evaluate_reconstruction, held_out_views
from eval.sheet import TILE
from sampling.mesh import MeshConfig
from shapeloom.config import UserError
from shapeloom.metrics import MAX_PSNR
from shapeloom.shards import AssetShards
from shapeloom.surface_metrics import SURFACE_SCORES

CONFIG = ReconstructionConfig(
    mesh=MeshConfig(resolution=32),
    surface_points=1000,
    surface_resolution=32,
    batch_size=3,
    pictures=2,
    sheet=3,
)


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
    # The stored truth is 512 random points, each a square of about 0.05 across, with gaps between.
    assert summary["chamfer"] < 0.02 and summary["fscore_0.05"] > 0.9
    assert summary["normal_consistency"] > 0.95 and summary["normals_off"] < 0.05
    assert summary["slope"] == pytest.approx(1)
    assert summary["num_empty"] == summary["num_true_meshes"] == 0
    assert summary["splits"].keys() == {"val", "test"}


def test_blank_and_nearest_are_measured_beside(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    summary, records = evaluate_reconstruction(coloured_balls, oracle, CONFIG, tmp_path)
    assert summary["blank"]["iou"] == 0
    assert summary["blank"]["psnr"] < summary["nearest"]["psnr"] < summary["psnr"]
    assert summary["nearest"]["iou"] > 0.5
    low, high = summary["over_nearest"]["psnr_interval"]
    assert 0 < low <= summary["over_nearest"]["psnr"] <= high
    assert summary["nearest"]["chamfer"] - summary["chamfer"] == pytest.approx(
        summary["over_nearest"]["chamfer"], abs=2e-5
    )
    training = {row.key for row in AssetShards(coloured_balls, "train").rows}
    assert all(record["nearest"]["key"] in training for record in records)
    assert sum("picture" in record for record in records) == 2
    assert all((tmp_path / record["picture"]).is_file() for record in records if "picture" in record)


def test_a_model_that_shows_nothing_scores_as_a_blank(
    coloured_balls: Path, broken: Autoencoder, tmp_path: Path
) -> None:
    summary, records = evaluate_reconstruction(coloured_balls, broken, CONFIG, tmp_path)
    assert summary["num_empty"] == 4
    for name in ("psnr", "iou", *SURFACE_SCORES):
        assert summary[name] == summary["blank"][name]
    # A point at the centre of a ball is its radius away from all of it, both ways.
    shards = {row.key: i for i, row in enumerate(AssetShards(coloured_balls).rows)}
    points = AssetShards(coloured_balls).read(shards[records[0]["key"]], points=True).points
    assert points is not None
    assert records[0]["chamfer"] == pytest.approx(np.linalg.norm(points[0]), rel=1e-4)
    assert records[0]["fscore_0.05"] == 0 and records[0]["normals_off"] == 1


def test_the_sheet_has_a_column_of_four_tiles_an_asset(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    _, records = evaluate_reconstruction(coloured_balls, oracle, CONFIG, tmp_path / "reconstruction")
    assert sum("tile" in record for record in records) == 3
    sheet = np.asarray(Image.open(tmp_path / "shapes.png")).astype(int)
    assert sheet.shape == (4 * TILE, 3 * TILE, 3)
    true_clay, our_clay, true_colour, our_colour = sheet[:, :TILE].reshape(4, TILE, TILE, 3)
    covered = (our_clay < 255).any(axis=-1)
    assert 0.1 < covered.mean() < 0.6 and (our_clay[..., 0] == our_clay[..., 1]).all()  # grey
    # The true clay is drawn from points here, with gaps at the outline.
    assert ((true_clay < 255).any(axis=-1) == covered).mean() > 0.9
    assert (
        np.abs(true_colour - our_colour)[covered].mean() < 60 < np.abs(our_colour - our_clay)[covered].mean()
    )


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
