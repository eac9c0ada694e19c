"""Training batches: from asset shards to tensors, every random choice a function of (seed, sample number)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from encoder.losses import LossConfig, guided_samples
from encoder.mesh_losses import MeshLossConfig
from encoder.model import EncoderConfig
from encoder.tokens import pixel_features
from shapeloom.config import Config
from shapeloom.rendering.rays import camera_rays, intersect_box, pixel_rays
from shapeloom.seed import derive_seed, numpy_rng
from shapeloom.shards import AssetSample, AssetShards

RAY_VIEWS = 4  # views of an asset that a step's rays come from
FOREGROUND_SHARE = 0.7  # of the rays; most of a picture is background
SILHOUETTE_SHARE = 0.5  # of those: at silhouettes, where thin parts get their thickness


class AugmentConfig(Config):
    """Symmetries of the training data; each asset keeps its own look half of the time."""

    mirror: bool = True  # x -> -x
    turn: bool = True  # quarter turns about +Z
    colors: bool = True  # permuted colour channels


def random_symmetry(
    rng: np.random.Generator, config: AugmentConfig
) -> tuple[Float[Tensor, "3 3"], list[int]]:
    """Returns an orthogonal matrix (a mirror image has determinant -1) and a permutation of rgb."""
    matrix, channels = np.eye(3, dtype=np.float32), [0, 1, 2]
    if config.turn and rng.random() < 0.5:
        quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.float32)
        matrix = np.linalg.matrix_power(quarter, int(rng.integers(1, 4)))
    if config.mirror and rng.random() < 0.5:
        matrix = matrix @ np.diag([-1, 1, 1]).astype(np.float32)
    if config.colors and rng.random() < 0.5:
        channels = [int(i) for i in rng.permutation(3)]
    return torch.from_numpy(matrix), channels


def make_batch(
    shards: AssetShards,
    rows: Sequence[tuple[int, int]],
    *,
    encoder: EncoderConfig,
    losses: LossConfig,
    augment: AugmentConfig,
    view_dropout: float,
    seed: int,
    meshes: MeshLossConfig | None = None,
) -> dict[str, Tensor]:
    """Returns a batch for `rows`, pairs of (global sample number, index in `shards`).

    meshes: adds the views that renders of meshes are compared with; none: there are no such renders.
    """
    samples = []
    for number, index in rows:
        rng = numpy_rng("encoder", seed, number)
        samples.append(_make_sample(shards, index, rng, encoder, losses, augment, view_dropout, meshes))
        if meshes is not None:
            samples[-1]["mesh_drawn"] = torch.tensor(number % meshes.every == 0)
        samples[-1]["seed"] = torch.tensor(derive_seed("encoder-noise", seed, number))
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _make_sample(
    shards: AssetShards,
    index: int,
    rng: np.random.Generator,
    encoder: EncoderConfig,
    losses: LossConfig,
    augment: AugmentConfig,
    view_dropout: float,
    meshes: MeshLossConfig | None,
) -> dict[str, Tensor]:
    num_views = max(RAY_VIEWS, encoder.num_views)
    views = rng.permutation(shards.num_views)[:num_views]
    asset = shards.read(index, views=[int(v) for v in views], depth=True, points=True, sdf=True)
    matrix, channels = random_symmetry(rng, augment)
    out = {
        **_points(asset, rng, encoder, matrix, channels),
        **_rays(asset, rng, losses, matrix, channels),
        **_supervision(asset, rng, losses, matrix, channels),
    }
    if encoder.num_views:
        out["pixels"] = _pixels(asset, encoder, matrix, channels)
        # Points alone, or any number of the views.
        few = 0 if rng.random() < view_dropout else int(rng.integers(1, encoder.num_views + 1))
        out["views_kept"] = torch.arange(encoder.num_views) < few
    if meshes is not None:
        out |= _mesh_views(asset, rng, meshes, matrix, channels)
    return out


def _points(
    asset: AssetSample, rng: np.random.Generator, encoder: EncoderConfig, matrix: Tensor, channels: list[int]
) -> dict[str, Tensor]:
    assert asset.points is not None and asset.points_rgb is not None and asset.points_normal is not None
    # A sorted subset of a farthest-point order is close to one itself, so its first points still spread.
    pool = min(len(asset.points), 2 * encoder.num_points)
    chosen = np.sort(rng.permutation(pool)[: encoder.num_points])
    return {
        "points": torch.from_numpy(asset.points[chosen]) @ matrix.T,
        "rgb": torch.from_numpy(asset.points_rgb[chosen][:, channels]).float() / 255,
        "normals": torch.from_numpy(asset.points_normal[chosen]).float() / 127 @ matrix.T,
    }


def _pixels(asset: AssetSample, encoder: EncoderConfig, matrix: Tensor, channels: list[int]) -> Tensor:
    assert asset.rgba is not None and asset.depth is not None
    num = encoder.num_views
    rgba = torch.from_numpy(asset.rgba[:num][..., [*channels, 3]]).float() / 255
    depth = torch.from_numpy(asset.depth[:num])
    poses, intrinsics = torch.from_numpy(asset.cam_to_world[:num]), torch.from_numpy(asset.intrinsics[:num])
    origins, directions, cosine = camera_rays(poses, intrinsics, *depth.shape[-2:])
    return pixel_features(rgba, depth, origins @ matrix.T, directions @ matrix.T, cosine)


def _rays(
    asset: AssetSample, rng: np.random.Generator, losses: LossConfig, matrix: Tensor, channels: list[int]
) -> dict[str, Tensor]:
    assert asset.rgba is not None and asset.depth is not None
    rgba, depth = asset.rgba[:RAY_VIEWS], asset.depth[:RAY_VIEWS]
    views, height, width = depth.shape
    num = losses.num_rays
    picks = rng.integers(0, views * height * width, num)
    beside = picks.copy()  # a pixel that may know the depth which a ray passes by
    covered = np.flatnonzero(rgba[..., 3].reshape(-1) > 0)
    if len(covered):
        share = int(FOREGROUND_SHARE * num)
        near = covered[rng.integers(0, len(covered), share)]
        outline = silhouette_pixels(depth > 0)
        if len(outline):
            at_outline = int(SILHOUETTE_SHARE * share)
            near[:at_outline] = outline[rng.integers(0, len(outline), at_outline)]
        # Two pixels around count as foreground too: what lies beside a silhouette is learnt there.
        x = np.clip(near % width + rng.integers(-2, 3, share), 0, width - 1)
        y = np.clip(near // width % height + rng.integers(-2, 3, share), 0, height - 1)
        picks[:share] = near // (width * height) * (width * height) + y * width + x
        beside[:share] = near
    view, y, x = np.unravel_index(picks, depth.shape)
    pixels = torch.from_numpy(np.stack([x + 0.5, y + 0.5], axis=-1).astype(np.float32))[:, None]
    poses, intrinsics = torch.from_numpy(asset.cam_to_world[view]), torch.from_numpy(asset.intrinsics[view])
    origins, directions, cosine = (value[:, 0] for value in pixel_rays(poses, intrinsics, pixels))
    t_near, t_far, _ = intersect_box(origins, directions)
    t_hit = torch.from_numpy(depth[view, y, x]) / cosine
    jitter = torch.from_numpy(
        rng.random((num, losses.free_samples + losses.surface_samples), dtype=np.float32)
    )
    t_beside = torch.from_numpy(depth.reshape(-1)[beside]) / cosine
    t, edges = guided_samples(t_near, t_far, t_hit, t_beside, jitter, losses)
    color = torch.from_numpy(rgba[view, y, x][:, [*channels, 3]]).float() / 255
    return {
        "ray_origins": origins @ matrix.T,
        "ray_directions": directions @ matrix.T,
        "ray_t": t,
        "ray_edges": edges,
        "ray_rgba": color,
        "ray_background": torch.from_numpy(rng.random((num, 3), dtype=np.float32)),
    }


def silhouette_pixels(covered: Bool[np.ndarray, "views height width"]) -> Int64[np.ndarray, " pixels"]:
    """Returns the numbers of the covered pixels with a neighbour that isn't, or at the picture's border."""
    padded = np.pad(covered, ((0, 0), (1, 1), (1, 1)))
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return np.flatnonzero(covered & ~inside)


def _supervision(
    asset: AssetSample, rng: np.random.Generator, losses: LossConfig, matrix: Tensor, channels: list[int]
) -> dict[str, Tensor]:
    assert asset.points is not None and asset.points_rgb is not None
    assert asset.sdf_points is not None and asset.sdf is not None
    surface = rng.integers(0, len(asset.points), losses.num_surface_points)
    near = rng.integers(0, len(asset.sdf), losses.num_sdf_points)
    return {
        "surface_points": torch.from_numpy(asset.points[surface]) @ matrix.T,
        "surface_rgb": torch.from_numpy(asset.points_rgb[surface][:, channels]).float() / 255,
        "sdf_points": torch.from_numpy(asset.sdf_points[near]) @ matrix.T,
        "sdf": torch.from_numpy(asset.sdf[near]),
    }


def _mesh_views(
    asset: AssetSample, rng: np.random.Generator, meshes: MeshLossConfig, matrix: Tensor, channels: list[int]
) -> dict[str, Tensor]:
    """Returns whole pictures; a mirrored asset's cameras are mirrored too, and no rotation any more."""
    assert asset.rgba is not None
    num = meshes.num_views
    turn = torch.eye(4)
    turn[:3, :3] = matrix
    return {
        "mesh_rgba": torch.from_numpy(asset.rgba[:num][..., [*channels, 3]]).float() / 255,
        "mesh_cam_to_world": turn @ torch.from_numpy(asset.cam_to_world[:num]),
        "mesh_intrinsics": torch.from_numpy(asset.intrinsics[:num]),
        "mesh_background": torch.from_numpy(rng.random(3, dtype=np.float32)),
    }
