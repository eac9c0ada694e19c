"""Sets of shapes whose scores are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from encoder.model import Autoencoder
from eval.chamfer import chamfer_matrix, symmetric_chamfer_matrix
from eval.distributions import frechet_distance
from eval.nearest import TrainingAssets
from eval.sets import (
    DrawnSets,
    SetsConfig,
    draw_assets,
    draw_sets,
    evaluate_sets,
    nearest_neighbours,
    set_scores,
    stored_clouds,
)
from shapeloom.config import UserError
from shapeloom.seed import numpy_rng
from shapeloom.shards import AssetShards, finish_dataset, write_shard

CONFIG = SetsConfig(points=256, resolution=32)


def blobs(num: int, *, seed: int, shift: float = 0.0) -> list[np.ndarray]:
    """Clouds of one point each, at random places: their Chamfer distance is twice the squared distance."""
    return list(numpy_rng("blobs", seed).normal(size=(num, 1, 3)) + shift)


def scores(samples: list[np.ndarray], reference: list[np.ndarray]) -> dict[str, float]:
    within = symmetric_chamfer_matrix(samples), symmetric_chamfer_matrix(reference)
    return set_scores(*within, chamfer_matrix(samples, reference))


def test_copies_cover_everything_at_no_distance() -> None:
    reference = blobs(20, seed=0)
    assert scores(reference, reference) == {"mmd_cd": 0, "cov_cd": 1, "one_nna_cd": 0}


def test_sets_of_one_distribution_are_told_apart_half_of_the_time() -> None:
    found = scores(blobs(80, seed=0), blobs(80, seed=1))
    # Four standard errors of a share of 160.
    assert found["one_nna_cd"] == pytest.approx(0.5, abs=0.16)
    assert 0.5 < found["cov_cd"] < 0.8


def test_shifted_sets_are_told_apart_always_and_cover_little() -> None:
    found = scores(blobs(50, seed=0, shift=20.0), blobs(50, seed=1))
    assert found["one_nna_cd"] == 1
    assert found["cov_cd"] < 0.2 and found["mmd_cd"] > 2 * 3 * 15**2


def test_one_shape_again_and_again_covers_one_asset() -> None:
    reference = blobs(10, seed=1)
    found = scores([reference[3] + 0.001] * 10, reference)
    assert found["cov_cd"] == 0.1


def test_sets_of_a_single_cloud_are_refused() -> None:
    with pytest.raises(ValueError, match="two clouds or more each, got 1 and 3"):
        scores(blobs(1, seed=0), blobs(3, seed=1))


def test_frechet_distance_of_a_shift_is_its_square_and_of_a_scale_the_spreads_difference() -> None:
    x = numpy_rng("features").normal(size=(500, 6))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2.0) == pytest.approx(6 * 4)
    centred = x - x.mean(axis=0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(x.T)))


def test_frechet_distance_agrees_with_the_root_of_the_product_of_covariances() -> None:
    rng = numpy_rng("frechet")
    a, b = (rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) for _ in range(2))
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.trace(first + second - 2 * sqrtm(first @ second).real)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + root
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_copies_of_training_assets_count_as_memorised_and_others_do_not(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    training = TrainingAssets(AssetShards(coloured_balls, "train"))
    clouds = stored_clouds(draw_assets(coloured_balls, ("train",), 3, seed=0), 512)
    found = nearest_neighbours(clouds, training)
    # Distances of float32 by matrix products are exact to about 1e-3.
    assert all(each.distance < 2e-3 and each.is_copied for each in found)
    assert len({each.index for each in found}) == 3
    (far,) = nearest_neighbours([clouds[0] + 5], training)
    assert not far.is_copied and far.distance > 3


def drawn(data: Path, config: SetsConfig) -> DrawnSets:
    sets = draw_sets(data, config, seed=0)
    assert isinstance(sets, DrawnSets)
    return sets


def test_balls_of_held_out_radii_score_as_those_and_the_result_is_kept(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    held_out = draw_assets(coloured_balls, ("val", "test"), 4, seed=0)
    radii = [np.linalg.norm(cloud[0]) for cloud in stored_clouds(held_out, 256)]
    latents = torch.tensor([[[radius, 1.0, 0, 0]] for radius in radii])
    args = drawn(coloured_balls, CONFIG), oracle.decoder, latents, CONFIG, tmp_path
    summary, neighbours = evaluate_sets(*args)
    assert summary["num_samples"] == len(neighbours) == 4 and summary["num_empty"] == 0
    assert summary["printable"] == summary["watertight"] == summary["one_piece"] == 1
    assert summary["mmd_cd"] < summary["training_mmd_cd"]
    assert summary["cov_cd"] >= summary["training_cov_cd"]
    assert evaluate_sets(*args) == (summary, neighbours)


def test_clouds_may_be_as_small_as_accepted_but_no_larger_than_the_data_s(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    latents = torch.tensor([[[0.4 + 0.1 * i, 1.0, 0, 0]] for i in range(4)])
    smallest = SetsConfig(points=16, resolution=16)
    sets = drawn(coloured_balls, smallest)
    summary, _ = evaluate_sets(sets, oracle.decoder, latents, smallest, tmp_path)
    assert summary["num_samples"] == 4 and summary["num_empty"] == 0
    too_many = SetsConfig(points=1 << 20)
    with pytest.raises(UserError, match=r"sets\.points is 1048576, but .* points each.*num_points"):
        evaluate_sets(sets, oracle.decoder, latents, too_many, tmp_path / "other")


def test_samples_without_a_surface_are_counted(
    coloured_balls: Path, oracle: Autoencoder, tmp_path: Path
) -> None:
    nothing = torch.zeros(4, 1, 4)
    summary, _ = evaluate_sets(drawn(coloured_balls, CONFIG), oracle.decoder, nothing, CONFIG, tmp_path)
    assert summary["num_empty"] == 4 and summary["one_nna_cd"] == 1 and summary["printable"] == 0


def test_too_few_held_out_assets_are_told(coloured_balls: Path) -> None:
    assert "two held-out" in str(draw_sets(coloured_balls, SetsConfig(max_samples=1), seed=0))


def test_sets_are_of_one_size_and_of_the_splits_that_they_say(coloured_balls: Path) -> None:
    sets = drawn(coloured_balls, CONFIG)
    splits = [{shards.rows[i].split for shards, i in each} for each in (sets.held_out, sets.training)]
    assert splits == [{"val", "test"}, {"train"}] and len(sets.held_out) == len(sets.training) == 4


def test_training_assets_without_a_caption_are_not_asked_for(ball_samples: Any, tmp_path: Path) -> None:
    samples = [ball_samples(i, split="train" if i < 6 else "val") for i in range(10)]
    for silent in samples[:4]:
        silent["json"]["captions"] = []
    write_shard(tmp_path / "shards" / "000000.tar", samples)
    finish_dataset(tmp_path, kind="assets", facts={"views": 4, "resolution": 16})
    sets = drawn(tmp_path, CONFIG)
    assert {shards.rows[i].key for shards, i in sets.training} == {"ball0004", "ball0005"}
    assert len(sets.held_out) == 2
