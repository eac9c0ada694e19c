"""Training batches: from asset shards to tensors, every random choice a function of (seed, sample number)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int8, Int64
from pydantic import Field as Key
from torch import Tensor

from encoder.losses import LossConfig, stratified_samples
from encoder.mesh_losses import MeshLossConfig
from encoder.model import EncoderConfig
from shapeloom.box import MIRROR, TURNS
from shapeloom.config import Config
from shapeloom.rendering.rays import intersect_box, pixel_rays
from shapeloom.seed import derive_seed, numpy_rng
from shapeloom.shards import AssetSample, AssetShards

VIEWS = ("view_rgba", "view_depth", "view_cam_to_world", "view_intrinsics")
RAY_VIEWS = 4  # views of an asset that a step's rays come from
FOREGROUND_SHARE = 0.7  # of the rays; most of a picture is background
SILHOUETTE_SHARE = 0.5  # of those: at silhouettes, where thin parts get their thickness


class AugmentConfig(Config):
    """Symmetries of the training data; each asset keeps its own look half of the time."""

    mirror: bool = Key(True, description="x -> -x")
    turn: bool = Key(True, description="quarter turns about +Z")
    colors: bool = Key(True, description="permuted colour channels")
    stretch: float = Key(
        0.0,
        ge=0,
        le=1,
        description="by up to this fraction an axis grows against another; the asset still fits its cube",
    )


@dataclass(frozen=True)
class Change:
    """How an asset of the training data is changed: x -> matrix @ x, and its colour channels permuted."""

    matrix: Float[Tensor, "3 3"]
    """A turn or mirror image (of determinant -1) of an asset stretched along the axes."""
    channels: list[int]
    slowest: float
    fastest: float
    """The least and the largest factor of a distance."""

    def points(self, points: Float[np.ndarray, "points 3"]) -> Float[Tensor, "points 3"]:
        """Returns where points come to lie."""
        return torch.from_numpy(points) @ self.matrix.T

    def normals(self, normals: Int8[np.ndarray, "points 3"]) -> Float[Tensor, "points 3"]:
        """Returns the unit normals there."""
        return F.normalize(torch.from_numpy(normals).float() @ torch.linalg.inv(self.matrix), dim=-1)

    def cameras(self, cam_to_world: Float[np.ndarray, "views 4 4"]) -> Float[Tensor, "views 4 4"]:
        """Returns cameras that see the changed asset as they saw it; those of a stretched one stretch too."""
        moved = torch.eye(4)
        moved[:3, :3] = self.matrix
        return moved @ torch.from_numpy(cam_to_world)

    def rays(
        self, origins: Tensor, directions: Tensor, cosine: Tensor
    ) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 3"], Float[Tensor, " *rays"]]:
        """Returns origins, unit directions, and the depth that a unit of the new ray's length is worth."""
        directions = directions @ self.matrix.T
        length = directions.norm(dim=-1)
        return origins @ self.matrix.T, directions / length[..., None], cosine / length


def random_change(rng: np.random.Generator, config: AugmentConfig, extents: Float[np.ndarray, "3"]) -> Change:
    """Returns a change; extents: the largest |x|, |y| and |z| of the asset, the largest of which stays."""
    matrix, channels, scales = np.eye(3), [0, 1, 2], np.ones(3)
    if config.stretch:
        scales = np.exp(math.log1p(config.stretch) * rng.uniform(-0.5, 0.5, 3))
        scales *= extents.max() / (scales * extents).max()
    if config.turn and rng.random() < 0.5:
        matrix = TURNS[int(rng.integers(1, 4))]
    if config.mirror and rng.random() < 0.5:
        matrix = matrix @ MIRROR
    if config.colors and rng.random() < 0.5:
        channels = [int(i) for i in rng.permutation(3)]
    changed = torch.from_numpy((matrix * scales).astype(np.float32))
    return Change(changed, channels, float(scales.min()), float(scales.max()))


def make_batch(
    shards: AssetShards, rows: Sequence[tuple[int, int]], *, encoder: EncoderConfig, losses: LossConfig,
    augment: AugmentConfig, view_dropout: float, seed: int, meshes: MeshLossConfig | None = None,
    rays: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Returns a batch for `rows`, pairs of (global sample number, index in `shards`).

    meshes: adds the views that renders of meshes are compared with; none: there are no such renders.
    rays: whether to add rays; without, and without views to encode, no picture is read.
    """
    samples = []
    for number, index in rows:
        rng = numpy_rng("encoder", seed, number)
        samples.append(_make_sample(shards, index, rng, encoder, losses, augment, view_dropout, meshes, rays))
        if meshes is not None:
            samples[-1]["mesh_drawn"] = torch.tensor(number % meshes.every == 0)
        samples[-1]["seed"] = torch.tensor(derive_seed("encoder-noise", seed, number))
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _make_sample(
    shards: AssetShards, index: int, rng: np.random.Generator, encoder: EncoderConfig, losses: LossConfig,
    augment: AugmentConfig, view_dropout: float, meshes: MeshLossConfig | None, rays: bool,
) -> dict[str, Tensor]:  # fmt: skip
    num_views = max(RAY_VIEWS, encoder.num_views)
    views = rng.permutation(shards.num_views)[:num_views]
    seen = [int(v) for v in views] if rays or encoder.num_views or meshes is not None else []
    asset = shards.read(index, views=seen, depth=bool(seen), points=True, sdf=True)
    assert asset.points is not None
    change = random_change(rng, augment, np.abs(asset.points).max(axis=0))
    out = {
        **_points(asset, rng, encoder, change),
        **(_rays(asset, rng, losses, change) if rays else {}),
        **_supervision(asset, rng, losses, change),
    }
    if encoder.num_views:
        out |= _views(asset, encoder, change)
        # Points alone, or any number of the views.
        few = 0 if rng.random() < view_dropout else int(rng.integers(1, encoder.num_views + 1))
        out["views_kept"] = torch.arange(encoder.num_views) < few
    if meshes is not None:
        out |= _mesh_views(asset, rng, meshes, change)
    return out


def _points(
    asset: AssetSample, rng: np.random.Generator, encoder: EncoderConfig, change: Change
) -> dict[str, Tensor]:
    assert asset.points is not None and asset.points_rgb is not None and asset.points_normal is not None
    # A sorted subset of a farthest-point order is close to one itself, so its first points still spread.
    pool = min(len(asset.points), 2 * encoder.num_points)
    chosen = np.sort(rng.permutation(pool)[: encoder.num_points])
    return {
        "points": change.points(asset.points[chosen]),
        "rgb": torch.from_numpy(asset.points_rgb[chosen][:, change.channels]).float() / 255,
        "normals": change.normals(asset.points_normal[chosen]),
    }


def _views(asset: AssetSample, encoder: EncoderConfig, change: Change) -> dict[str, Tensor]:
    """Returns what `pixel_features` makes the encoder's views of, under the names VIEWS."""
    assert asset.rgba is not None and asset.depth is not None
    num = encoder.num_views
    rgba = torch.from_numpy(asset.rgba[:num][..., [*change.channels, 3]])
    depth, intrinsics = torch.from_numpy(asset.depth[:num]), torch.from_numpy(asset.intrinsics[:num])
    return dict(zip(VIEWS, (rgba, depth, change.cameras(asset.cam_to_world[:num]), intrinsics), strict=True))


def _rays(
    asset: AssetSample, rng: np.random.Generator, losses: LossConfig, change: Change
) -> dict[str, Tensor]:
    assert asset.rgba is not None and asset.depth is not None
    rgba, depth = asset.rgba[:RAY_VIEWS], asset.depth[:RAY_VIEWS]
    views, height, width = depth.shape
    num = losses.num_rays
    picks = rng.integers(0, views * height * width, num)
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
    view, y, x = np.unravel_index(picks, depth.shape)
    pixels = torch.from_numpy(np.stack([x + 0.5, y + 0.5], axis=-1).astype(np.float32))[:, None]
    poses, intrinsics = torch.from_numpy(asset.cam_to_world[view]), torch.from_numpy(asset.intrinsics[view])
    seen = (value[:, 0] for value in pixel_rays(poses, intrinsics, pixels))
    origins, directions, _ = change.rays(*seen)
    t_near, t_far, _ = intersect_box(origins, directions)
    jitter = torch.from_numpy(rng.random((num, losses.free_samples), dtype=np.float32))
    t, edges = stratified_samples(t_near, t_far, jitter)
    color = torch.from_numpy(rgba[view, y, x][:, [*change.channels, 3]]).float() / 255
    return {
        "ray_origins": origins,
        "ray_directions": directions,
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
    asset: AssetSample, rng: np.random.Generator, losses: LossConfig, change: Change
) -> dict[str, Tensor]:
    assert asset.points is not None and asset.points_rgb is not None
    assert asset.points_normal is not None
    assert asset.sdf_points is not None and asset.sdf is not None
    surface = rng.integers(0, len(asset.points), losses.num_surface_points)
    near = rng.integers(0, len(asset.sdf), losses.num_sdf_points)
    distance = torch.from_numpy(asset.sdf[near])
    return {
        "surface_points": change.points(asset.points[surface]),
        "surface_normals": change.normals(asset.points_normal[surface]),
        "surface_rgb": torch.from_numpy(asset.points_rgb[surface][:, change.channels]).float() / 255,
        "sdf_points": change.points(asset.sdf_points[near]),
        # What is known of a stretched asset's distances.
        "sdf": change.slowest * distance,
        "sdf_at_most": change.fastest * distance,
    }


def _mesh_views(
    asset: AssetSample, rng: np.random.Generator, meshes: MeshLossConfig, change: Change
) -> dict[str, Tensor]:
    """Returns whole pictures; a mirrored asset's cameras are mirrored too, and no rotation any more."""
    assert asset.rgba is not None
    num = meshes.num_views
    return {
        "mesh_rgba": torch.from_numpy(asset.rgba[:num][..., [*change.channels, 3]]).float() / 255,
        "mesh_cam_to_world": change.cameras(asset.cam_to_world[:num]),
        "mesh_intrinsics": torch.from_numpy(asset.intrinsics[:num]),
        "mesh_background": torch.from_numpy(rng.random(3, dtype=np.float32)),
    }
