"""Training batches: which pixels rays are drawn from, and that all of a batch moves with its asset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoder.batches import (
    FOREGROUND_SHARE,
    SILHOUETTE_SHARE,
    VIEWS,
    AugmentConfig,
    Change,
    make_batch,
    random_change,
    silhouette_pixels,
)
from encoder.losses import LossConfig
from encoder.mesh_losses import MeshLossConfig
from encoder.model import EncoderConfig
from encoder.tokens import pixel_features
from shapeloom.rendering.rays import camera_rays
from shapeloom.shards import AssetShards


def test_silhouettes_are_the_outermost_covered_pixels_of_each_view() -> None:
    covered = np.zeros((2, 8, 8), dtype=bool)
    covered[0, 2:6, 2:6] = True  # its inner 2 x 2 has covered neighbours alone
    covered[1, :, 3] = True  # one pixel wide
    found = silhouette_pixels(covered)
    views, rows, columns = np.unravel_index(found, covered.shape)
    assert (views == 0).sum() == 12 and not (
        (views == 0) & (np.abs(rows - 3.5) < 1) & (np.abs(columns - 3.5) < 1)
    ).any()
    assert (views == 1).sum() == 8
    assert covered.reshape(-1)[found].all()


def test_a_picture_s_border_is_a_silhouette() -> None:
    assert len(silhouette_pixels(np.ones((1, 5, 5), dtype=bool))) == 16
    assert len(silhouette_pixels(np.zeros((1, 5, 5), dtype=bool))) == 0


# ---------------------------------------------------------------- changed assets

SETTINGS = {
    "encoder": EncoderConfig(num_points=64, num_views=2, patch=8),
    "losses": LossConfig(num_rays=64, num_surface_points=64, num_sdf_points=64),
    "augment": AugmentConfig(),
    "view_dropout": 0.3,
    "seed": 0,
}


def batch_of(data: Path, monkeypatch: pytest.MonkeyPatch, change: Change, **more: Any) -> dict[str, Tensor]:
    monkeypatch.setattr("encoder.batches.random_change", lambda *_: change)
    return make_batch(AssetShards(data, "train"), [(5, 0), (6, 3)], **{**SETTINGS, **more})


def changed(matrix: Tensor, channels: Sequence[int] = (0, 1, 2)) -> Change:
    scales = torch.linalg.svdvals(matrix)
    return Change(matrix, list(channels), float(scales.min()), float(scales.max()))


def test_every_so_many_samples_by_their_numbers_are_drawn_as_meshes(ball_dataset: Path) -> None:
    shards, rows = AssetShards(ball_dataset, "train"), [(number, 0) for number in range(7)]
    drawn = make_batch(shards, rows, meshes=MeshLossConfig(every=3), **SETTINGS)["mesh_drawn"]
    assert drawn.tolist() == [True, False, False, True, False, False, True]


@pytest.fixture
def moved(ball_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, dict, Tensor]:
    """A batch as it is, the same one turned, mirrored and with other colours, and the matrix."""
    matrix = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    meshes = MeshLossConfig(every=1)
    plain = batch_of(ball_dataset, monkeypatch, changed(torch.eye(3)), meshes=meshes)
    return plain, batch_of(ball_dataset, monkeypatch, changed(matrix, [2, 0, 1]), meshes=meshes), matrix


def test_the_batch_of_a_moved_asset_is_the_moved_batch(moved: tuple[dict, dict, Tensor]) -> None:
    plain, other, matrix = moved
    for name in (
        "points", "normals", "surface_points", "surface_normals", "sdf_points", "ray_origins",
        "ray_directions",
    ):  # fmt: skip
        torch.testing.assert_close(other[name], plain[name] @ matrix.T, atol=1e-6, rtol=0)
    for name in ("sdf", "sdf_at_most", "ray_background", "seed", "views_kept"):
        torch.testing.assert_close(other[name], plain[name])
    for name in ("ray_t", "ray_edges"):
        torch.testing.assert_close(other[name], plain[name], atol=1e-6, rtol=1e-6)
    for name in ("mesh_cam_to_world", "view_cam_to_world"):
        torch.testing.assert_close(other[name][..., :3, :], matrix @ plain[name][..., :3, :])


def test_a_moved_asset_s_colours_are_permuted_everywhere(moved: tuple[dict, dict, Tensor]) -> None:
    plain, other, _ = moved
    assert not torch.equal(plain["rgb"], plain["rgb"][..., [2, 0, 1]])
    for name in ("rgb", "surface_rgb"):
        torch.testing.assert_close(other[name], plain[name][..., [2, 0, 1]])
    for name in ("ray_rgba", "mesh_rgba", "view_rgba"):
        torch.testing.assert_close(other[name], plain[name][..., [2, 0, 1, 3]])


def test_rays_and_their_colours_are_those_of_pixels(
    ball_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ray is `camera_rays`' of a pixel, through its centre, with that pixel's colour."""
    batch = batch_of(ball_dataset, monkeypatch, changed(torch.eye(3)))
    shards = AssetShards(ball_dataset, "train")
    for item, index in enumerate((0, 3)):
        asset = shards.read(index, views=range(4), depth=True)
        poses, lenses = torch.from_numpy(asset.cam_to_world), torch.from_numpy(asset.intrinsics)
        origins, directions, _ = camera_rays(poses, lenses, 16, 16)
        rays = torch.cat([origins.reshape(-1, 3), directions.reshape(-1, 3)], dim=-1)
        asked = torch.cat([batch["ray_origins"][item], batch["ray_directions"][item]], dim=-1)
        gaps, pixel = torch.cdist(asked, rays, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        assert gaps.max() < 1e-5
        color = torch.from_numpy(asset.rgba).reshape(-1, 4)[pixel].float() / 255
        torch.testing.assert_close(batch["ray_rgba"][item], color)


def test_a_good_part_of_the_rays_passes_silhouettes(
    ball_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the corner of a picture all the silhouette, that part would pass the nine pixels there."""
    losses = LossConfig(num_rays=1000, num_surface_points=64, num_sdf_points=64)
    shares = []
    for corner in ([], [0]):
        outline = np.array(corner, dtype=np.int64)
        monkeypatch.setattr("encoder.batches.silhouette_pixels", lambda _, outline=outline: outline)
        batch = batch_of(ball_dataset, monkeypatch, changed(torch.eye(3)), losses=losses)
        rays = torch.cat([batch["ray_origins"][0], batch["ray_directions"][0]], dim=-1)
        counts = torch.unique(rays, dim=0, return_counts=True)[1]
        shares.append(int(counts.topk(9).values.sum()) / 1000)
    assert shares[1] == pytest.approx(FOREGROUND_SHARE * SILHOUETTE_SHARE, abs=0.02)
    assert shares[0] < 0.2


def test_a_stretched_ball_is_an_ellipsoid_with_its_normals_and_rays(
    ball_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = torch.tensor([[0.0, -1.2, 0], [0.8, 0, 0], [0, 0, 1.0]])
    batch = batch_of(ball_dataset, monkeypatch, changed(matrix))
    back = torch.linalg.inv(matrix)
    radius = (batch["points"] @ back.T).norm(dim=-1).mean(dim=1)[:, None]
    for points, normals in (("points", "normals"), ("surface_points", "surface_normals")):
        torch.testing.assert_close(
            (batch[points] @ back.T).norm(dim=-1), radius.expand(-1, 64), atol=1e-5, rtol=0
        )
        # The gradient of |back x|^2.
        outward = torch.nn.functional.normalize(batch[points] @ back.T @ back, dim=-1)
        assert (batch[normals] * outward).sum(-1).min() > 0.999  # stored in 8 bits
        torch.testing.assert_close(batch[normals].norm(dim=-1), torch.ones(2, 64))
    # A ray sees the ellipsoid where it saw the ball, and within the box.
    torch.testing.assert_close(batch["ray_directions"].norm(dim=-1), torch.ones(2, 64))
    along = torch.nn.functional.normalize(batch["ray_directions"] @ back.T, dim=-1)
    passing = torch.linalg.cross(batch["ray_origins"] @ back.T, along).norm(dim=-1)
    torch.testing.assert_close((passing < radius).float(), batch["ray_rgba"][..., 3])
    ends = batch["ray_origins"] + batch["ray_edges"][..., -1:] * batch["ray_directions"]
    ends = ends[passing < radius]
    assert ends.abs().max() < 1 + 1e-5
    # What views show lies on it too.
    pixels = pixel_features(*(batch[name] for name in VIEWS)).flatten(1, 3)
    torch.testing.assert_close(pixels[..., 7:10].norm(dim=-1), torch.ones_like(pixels[..., 0]))
    seen = pixels[..., 3] > 0
    shell = (pixels[..., 4:7] @ back.T).norm(dim=-1) - radius
    assert shell[seen].abs().max() < 1e-3


def test_a_stretched_asset_s_distances_lie_within_their_bounds(
    ball_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = torch.diag(torch.tensor([1.2, 0.8, 1.0]))
    batch = batch_of(ball_dataset, monkeypatch, changed(matrix))
    sphere = torch.nn.functional.normalize(
        torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    for item in range(2):
        radius = (batch["points"][item] @ torch.linalg.inv(matrix)).norm(dim=-1).mean()
        points = batch["sdf_points"][item]
        distance = torch.cdist(points, radius * sphere @ matrix).min(dim=1).values
        inside = batch["sdf"][item] < 0
        low, high = batch["sdf"][item].abs(), batch["sdf_at_most"][item].abs()
        # Within, the nearest face is a bound from one side alone (encoder.losses).
        assert (distance > low - 5e-3).all() and (distance < high + 5e-3)[~inside].all()


def test_random_changes_stretch_up_to_the_limit_keep_the_longest_side_and_bound_distances() -> None:
    extents, stretches = np.array([0.5, 0.95, 0.2]), []
    for seed in range(50):
        config = AugmentConfig(stretch=0.5)
        change = random_change(np.random.default_rng(seed), config, extents)
        corners = np.abs(change.matrix.numpy()) @ extents
        assert corners.max() == pytest.approx(0.95)
        scales = torch.linalg.svdvals(change.matrix)
        assert change.slowest == pytest.approx(float(scales.min()), rel=1e-5)
        assert change.fastest == pytest.approx(float(scales.max()), rel=1e-5)
        stretches.append(change.fastest / change.slowest)
    assert min(stretches) < 1.1 and 1.4 < max(stretches) <= 1.5 + 1e-6


def test_without_rays_no_picture_is_read(ball_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = AssetShards.read
    asked: list[Any] = []
    monkeypatch.setattr(
        AssetShards,
        "read",
        lambda self, index, **what: asked.append(what["views"]) or read(self, index, **what),
    )
    encoder = EncoderConfig(num_points=64)
    batch = batch_of(ball_dataset, monkeypatch, changed(torch.eye(3)), encoder=encoder, rays=False)
    assert asked == [[], []] and not any(name.startswith("ray") for name in batch)


def test_views_are_dropped_as_often_as_asked(ball_dataset: Path) -> None:
    rows = [(number, 0) for number in range(400)]
    batch = make_batch(AssetShards(ball_dataset, "train"), rows, **SETTINGS)
    kept = batch["views_kept"].sum(dim=1)
    shares = [(kept == num).float().mean().item() for num in range(3)]
    assert shares == pytest.approx([0.3, 0.35, 0.35], abs=0.07)
    assert (batch["views_kept"][:, 0] >= batch["views_kept"][:, 1]).all()


@pytest.mark.parametrize("rays", [True, False])
@pytest.mark.parametrize("num_views", [0, 2])
def test_pictures_are_read_for_rays_as_for_views_to_encode(
    ball_dataset: Path, rays: bool, num_views: int
) -> None:
    given = {**SETTINGS, "encoder": EncoderConfig(num_points=64, num_views=num_views, patch=8)}
    batch = make_batch(AssetShards(ball_dataset, "train"), [(0, 0)], rays=rays, **given)
    assert ("ray_rgba" in batch, set(VIEWS) <= batch.keys()) == (rays, num_views > 0)
