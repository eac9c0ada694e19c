"""Balls in three colours, and an autoencoder that knows them in closed form."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoder.model import Autoencoder, EncoderConfig
from shapeloom.decoder import DEFAULT_SAMPLES, Decoder, RenderConfig, Rendering
from shapeloom.rendering.rays import camera_rays
from shapeloom.shards import AssetSample, AssetShards, finish_dataset, write_shard

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SPLITS = [
    "train",
    "train",
    "train",
    "train",
    "val",
    "val",
    "test",
    "test",
    "judge",
    "judge",
    "judge",
    "judge",
]
# Blue is held out: only val and test (and the judge's own assets) show it.
COLOUR_OF = ["red", "green", "red", "green", "red", "green", "blue", "blue", "red", "green", "blue", "red"]


@pytest.fixture(scope="session")
def coloured_balls(ball_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The balls of `ball_dataset` as 4 train, 2 val, 2 test and 4 judge assets with their colours' names."""
    folder = tmp_path_factory.mktemp("coloured balls")
    shards = AssetShards(ball_dataset)
    samples = []
    for i, row in enumerate(shards.rows):
        names = [name for name in row.members if name != "json"]
        members = dict(zip(names, shards.members(i, names), strict=True))
        colour, split = COLOUR_OF[i], SPLITS[i]
        asset = shards.read(i, views=range(shards.num_views), points=True)
        assert asset.rgba is not None and asset.points_rgb is not None
        asset.rgba[..., :3] = COLOURS[colour]
        for view in range(shards.num_views):
            members[f"rgba_{view:03d}.png"] = asset.rgba[view]
        members["points_rgb.npy"] = np.broadcast_to(np.uint8(COLOURS[colour]), asset.points_rgb.shape)
        facts = {
            "captions": [f"a {colour} ball"], "split": split, "group": f"{split} {i}", "category": "ball",
            "attributes": {"colour": colour},
        }  # fmt: skip
        samples.append({"__key__": row.key, "json": facts, **members})
    write_shard(folder / "shards" / "000000.tar", samples)
    finish_dataset(folder, kind="assets", facts={"views": shards.num_views, "resolution": shards.resolution})
    return folder


class OracleDecoder(Decoder):
    """A latent [1, 4] is a ball: radius and unlit colour. Radius 0 is nothing at all."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def weights(self, latent: Tensor) -> list[Tensor]:
        return [latent]

    def sdf(self, weights: list[Tensor], points: Tensor) -> Tensor:
        radius = weights[0][0, 0, 0]
        return points.norm(dim=-1) - radius if radius > 0 else torch.ones(len(points))

    def sdf_gradient(self, weights: list[Tensor], points: Tensor) -> Tensor:
        return points / points.norm(dim=-1, keepdim=True)

    def texture(self, weights: list[Tensor], points: Tensor) -> Tensor:
        return weights[0][0, 0, 1:].expand(len(points), 3)

    def render(
        self, weights: list[Tensor], cam_to_world: Tensor, intrinsics: Tensor, height: int, width: int, *,
        samples: RenderConfig = DEFAULT_SAMPLES, background: float = 1.0,
    ) -> Rendering:  # fmt: skip
        origins, directions, _ = camera_rays(cam_to_world, intrinsics, height, width)
        ball = weights[0][:, 0, None, None, None]
        along = (origins * directions).sum(-1)
        alpha = (along**2 - origins.pow(2).sum(-1) + ball[..., 0] ** 2 > 0).float()
        rgb = ball[..., 1:] * alpha[..., None] + background * (1 - alpha[..., None])
        return Rendering(rgb, alpha, torch.zeros_like(alpha))


class Oracle(Autoencoder):
    """Encodes a ball's stored points exactly."""

    def __init__(self, *, broken: bool = False) -> None:
        nn.Module.__init__(self)
        self.encoder, self.decoder = nn.Identity(), OracleDecoder()
        self.encoder.config = EncoderConfig(num_points=256, num_views=1)
        self.num_views, self.broken = 1, broken

    def encode(self, samples: Sequence[AssetSample]) -> Tensor:
        latents = []
        for sample in samples:
            assert sample.points is not None and sample.points_rgb is not None
            radius = 0.0 if self.broken else float(np.linalg.norm(sample.points[0]))
            latents.append([radius, *(sample.points_rgb[0] / 255)])
        return torch.tensor(latents, dtype=torch.float32)[:, None]


@pytest.fixture
def oracle() -> Oracle:
    """An autoencoder without any error on balls."""
    return Oracle()


@pytest.fixture
def broken() -> Oracle:
    """An autoencoder that decodes to nothing."""
    return Oracle(broken=True)
