"""What Shap-E's encoder reads: points and views in the official frame. `official_inputs` is the border."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field as Key
from torch import Tensor

from shapeloom.box import ASSET_HALF_SIZE
from shapeloom.config import Config
from shapeloom.shap_e.field import POINT_OCTAVES, encode_octaves
from shapeloom.shap_e.rendering import official_rays
from shapeloom.shards import AssetSample

MAX_DEPTH = 9.0
MIN_ALPHA = 0.999
"""Of a pixel that counts as seen."""


class ShapEEncoderConfig(Config):
    """Sizes of the encoder; the defaults are the published ones."""

    width: int = Key(1024, ge=8, le=16384, description="channels of a token")
    heads: int = Key(8, ge=1, le=512, description="attention heads")
    num_layers: int = Key(11, ge=1, le=512, description="self-attention blocks")
    num_points: int = Key(16384, ge=16, le=1 << 20, description="points that are read")
    num_centres: int = Key(
        1024, ge=1, le=16384, description="the first points, which gather their neighbours"
    )
    num_views: int = Key(20, ge=1, le=1024, description="views that are read")
    size: int = Key(256, ge=8, le=4096, description="side of a view, pixels")


@dataclass(frozen=True)
class ShapEInputs:
    """Points and views of a batch of assets, in the official frame.

    points: xyz, then rgb in [0, 1], in farthest-point order. rgb: 0 to 255 on black. seen: pixels that show
    the asset and nothing else. depth: along the camera's z, anything where nothing is seen. tangents: of half
    the angles of view between the outermost pixels' centres, x and y.
    """

    points: Float[Tensor, "batch points 6"]
    rgb: Float[Tensor, "batch views size size 3"]
    seen: Bool[Tensor, "batch views size size"]
    depth: Float[Tensor, "batch views size size"]
    cam_to_world: Float[Tensor, "batch views 4 4"]
    tangents: Float[Tensor, "batch views 2"]


def pixel_numbers(
    inputs: ShapEInputs, view: int, unknown: Float[Tensor, " numbers"]
) -> Float[Tensor, "batch size size numbers"]:
    """Returns what the pixels of a view say: encoded colour, ray origin and point seen, or `unknown`."""
    pose, seen = inputs.cam_to_world[:, view], inputs.seen[:, view]
    directions, cosine = official_rays(pose, inputs.tangents[:, view], *seen.shape[1:])
    distance = inputs.depth[:, view].clamp(max=MAX_DEPTH) / cosine
    origin = pose[:, None, None, :3, 3]
    position = origin + distance[..., None] * directions
    pixels = unknown.float().expand(*seen.shape, -1).clone()
    shown = (inputs.rgb[:, view] / 127.5 - 1, origin.expand_as(position), position)
    pixels[seen] = torch.cat([encode_octaves(each[seen], POINT_OCTAVES) for each in shown], dim=-1)
    return pixels


def official_inputs(
    samples: Sequence[AssetSample], config: ShapEEncoderConfig, device: torch.device | str = "cpu"
) -> ShapEInputs:
    """Returns our assets as the official encoder wants them: scaled by 1 / 0.95, pixels on black.

    Raises ValueError for assets with too few points or views, or views of another size.
    """
    for sample in samples:
        _check(sample, config)
    num, scale = config.num_points, 1 / ASSET_HALF_SIZE
    xyz = _stack([s.points for s in samples])[:, :num] * scale
    point_rgb = _stack([s.points_rgb for s in samples])[:, :num].float() / 255
    rgba = _stack([s.rgba for s in samples]).float()
    depth = _stack([s.depth for s in samples]) * scale
    poses = _stack([s.cam_to_world for s in samples])
    poses[..., :3, 3] *= scale
    intrinsics = _stack([s.intrinsics for s in samples])
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)
    return ShapEInputs(
        points=torch.cat([xyz, point_rgb], dim=-1).to(device),
        rgb=(rgba[..., :3] * rgba[..., 3:] / 255).round().to(device),
        seen=((rgba[..., 3] / 255 >= MIN_ALPHA) & (depth > 0)).to(device),
        depth=depth.to(device),
        cam_to_world=poses.to(device),
        # The same rays: ours go through centres at +0.5, the official ones through i / (W - 1).
        tangents=((config.size - 1) / 2 / focal).to(device),
    )


def _check(sample: AssetSample, config: ShapEEncoderConfig) -> None:
    have = (
        0 if sample.points is None else len(sample.points),
        0 if sample.rgba is None else len(sample.rgba),
        0 if sample.rgba is None else sample.rgba.shape[1],
    )
    need = (config.num_points, config.num_views, config.size)
    if have[0] < need[0] or have[1:] != need[1:] or sample.depth is None:
        raise ValueError(
            f"asset {sample.row.key} has {have[0]} points and {have[1]} views of {have[2]} pixels, but "
            f"Shap-E's encoder reads {need[0]} points and {need[1]} views of {need[2]} pixels with depth: "
            "prepare the data with configs/data_prep/shap_e.yaml."
        )


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays if array is not None])
