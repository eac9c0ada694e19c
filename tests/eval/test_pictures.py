"""True views and drawn points against shapes whose picture is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from eval.nearest import TrainingAssets, drawn_points
from eval.pictures import coloured_mesh, render_mesh, surfels
from shapeloom.config import UserError
from shapeloom.metrics import mask_iou
from shapeloom.pictures import read_views, scaled_intrinsics
from shapeloom.rendering.rays import camera_rays
from shapeloom.shards import AssetShards


def test_smaller_views_are_means_of_pixels_and_keep_their_rays(ball_dataset: Path) -> None:
    shards = AssetShards(ball_dataset, "val")
    full, half = read_views(shards, 0, [0, 2], size=16), read_views(shards, 0, [0, 2], size=8)
    assert np.allclose(half.alpha, full.alpha.reshape(2, 8, 2, 8, 2).mean(axis=(2, 4)), atol=1e-6)
    _, fine, _ = camera_rays(torch.from_numpy(full.cam_to_world), torch.from_numpy(full.intrinsics), 16, 16)
    _, coarse, _ = camera_rays(torch.from_numpy(half.cam_to_world), torch.from_numpy(half.intrinsics), 8, 8)
    middle = torch.nn.functional.normalize(fine.reshape(2, 8, 2, 8, 2, 3).mean(dim=(2, 4)), dim=-1)
    assert torch.allclose(coarse, middle, atol=2e-3)  # a chord's middle is not quite the arc's
    assert np.allclose(scaled_intrinsics(shards, size=8), half.intrinsics[0])


def test_background_is_white_where_alpha_is_zero(ball_dataset: Path) -> None:
    views = read_views(AssetShards(ball_dataset, "val"), 0, [0], size=16)
    assert (views.rgb[views.alpha == 0] == 1).all()


def test_a_size_that_does_not_divide_the_resolution_is_refused(ball_dataset: Path) -> None:
    with pytest.raises(UserError, match="doesn't divide"):
        read_views(AssetShards(ball_dataset, "val"), 0, [0], size=12)


def test_a_ball_drawn_from_even_points_covers_its_own_views(ball_dataset: Path) -> None:
    shards = AssetShards(ball_dataset, "val")
    truth = read_views(shards, 0, range(4), size=16)
    sample = shards.read(0, points=True)
    assert sample.points is not None and sample.points_rgb is not None
    num = 2000
    height = 1 - 2 * (np.arange(num) + 0.5) / num  # a Fibonacci lattice
    turn = np.arange(num) * np.pi * (3 - 5**0.5)
    flat = np.sqrt(1 - height**2)
    normals = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    radius = np.linalg.norm(sample.points[0])
    even = replace(
        sample,
        points=(radius * normals).astype(np.float32),
        points_rgb=sample.points_rgb[:1].repeat(num, axis=0),
        points_normal=np.round(127 * normals).astype(np.int8),
    )
    rgb, alpha = render_mesh(drawn_points(even), truth.cam_to_world, truth.intrinsics, size=16)
    # The squares reach over the edge by half a side, 0.03, which may fill half of some edge pixels.
    assert mask_iou(alpha, truth.alpha).min() > 0.85
    assert (alpha[truth.alpha == 1] > 0.5).all()  # no gaps
    inside = (truth.alpha == 1) & (alpha == 1)
    hue = rgb[inside].mean(axis=0) / rgb[inside].mean()
    own = sample.points_rgb[0] / sample.points_rgb[0].mean()
    assert np.abs(hue - own).max() < 0.35  # light dims, and sRGB's curve bends, but the colour stays


def test_an_empty_mesh_is_a_white_picture() -> None:
    none = coloured_mesh(
        np.zeros((0, 3)), np.zeros((0, 3), int), np.zeros((0, 3), np.uint8), np.zeros((0, 3))
    )
    rgb, alpha = render_mesh(
        none, np.eye(4, dtype=np.float32)[None], np.eye(3, dtype=np.float32)[None], size=8
    )
    assert (rgb == 1).all() and (alpha == 0).all()


def test_squares_lie_across_their_normals_at_their_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (50, 3)).astype(np.float32)
    normals = rng.normal(size=(50, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    mesh = surfels(points, np.zeros((50, 3), np.uint8), normals, spacing=0.1)
    corners = mesh.vertices.reshape(50, 4, 3)
    assert np.allclose(corners.mean(axis=1), points, atol=1e-6)
    assert np.abs(((corners - points[:, None]) * normals[:, None]).sum(-1)).max() < 1e-6
    assert np.allclose(np.linalg.norm(corners - points[:, None], axis=-1), 0.1)  # half a diagonal


def test_the_nearest_training_asset_is_the_one_by_brute_force(ball_dataset: Path) -> None:
    shards, held_out = AssetShards(ball_dataset, "train"), AssetShards(ball_dataset, "test")
    training = TrainingAssets(shards)
    for i in range(len(held_out)):
        points = held_out.read(i, points=True).points
        assert points is not None
        distances = [_chamfer(points, shards.read(j, points=True).points) for j in range(len(shards))]
        assert training.nearest(points) == int(np.argmin(distances))


def _chamfer(first: np.ndarray, second: np.ndarray | None) -> float:
    assert second is not None
    return cKDTree(first).query(second)[0].mean() + cKDTree(second).query(first)[0].mean()
