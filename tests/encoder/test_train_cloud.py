"""The clouds' field through its command line: it learns balls, and its encoder keeps points as they are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from encoder.model import CloudAutoencoder, load_encoder, read_for_encoding
from encoder.train_cloud import main
from shapeloom.runs import read_meta
from shapeloom.shards import AssetShards
from shapeloom.surface_metrics import FIELD_SCORES

SETTINGS = (
    "cloud={num_points: 128, grid: 8, width: 8, hidden: 32}",
    "losses={num_surface_points: 64, num_sdf_points: 128}",
    "augment={mirror: false, turn: false, colors: false}",
    "train={steps: 120, batch_size: 8, learning_rate: 0.005, warmup_steps: 10, precision: fp32, "
    "ema_decay: 0.9, picture_every: 120}",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(ball_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "cloud_field"
    main(["--out", str(out), "--set", f"data={ball_dataset}", *SETTINGS])
    return out


def test_an_asset_s_latent_is_its_points_and_their_colours(trained: Path, ball_dataset: Path) -> None:
    model, shards = load_encoder(trained), AssetShards(ball_dataset, "val")
    assert isinstance(model, CloudAutoencoder) and model.decoder.layout.is_set
    (latent,) = model.encode([read_for_encoding(shards, 0, model)])
    asset = shards.read(0, points=True)
    assert asset.points is not None and asset.points_rgb is not None
    np.testing.assert_allclose(latent[:, :3], asset.points[:128])
    np.testing.assert_allclose(latent[:, 3:], asset.points_rgb[:128] / 127.5 - 1, atol=1e-6)


def test_a_trained_field_tells_inside_from_outside_of_a_ball_that_it_has_not_seen(
    trained: Path, ball_dataset: Path
) -> None:
    model, shards = load_encoder(trained), AssetShards(ball_dataset, "val")
    asset = shards.read(0, points=True, sdf=True)
    assert asset.sdf is not None and asset.sdf_points is not None
    decoder = model.decoder
    with torch.no_grad():
        weights = decoder.weights(model.encode([read_for_encoding(shards, 0, model)]))
        sdf = decoder.sdf(weights, torch.from_numpy(asset.sdf_points)).numpy()
    clear = np.abs(asset.sdf) > 0.1
    # Half of the box's points are inside: chance is about 0.5.
    assert ((sdf < 0) == (asset.sdf < 0))[clear].mean() > 0.95


def test_the_run_records_the_ceiling_of_true_clouds(trained: Path) -> None:
    ceiling = read_meta(trained, stage="encoder")["ceiling"]
    assert set(ceiling) == set(FIELD_SCORES)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/fscore_0.02" in line for line in lines)
