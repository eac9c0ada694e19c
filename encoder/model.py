"""The encoder network: points (and views) -> latent tokens in [-1, 1]; with its decoder, the autoencoder.

Anchor tokens (a farthest-point subset of the points) and learned latent tokens gather from all points by
cross-attention, then from the views' patches where there are any, then talk among themselves; the latent
tokens end in a tanh.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field as Key
from safetensors.torch import load_file
from torch import Tensor, nn

from encoder.tokens import PointTokens, ViewTokens, pixel_features
from shapeloom.config import Config, load_config
from shapeloom.decoder import Decoder, DecoderConfig, load_decoder
from shapeloom.nn.attention import Attention
from shapeloom.nn.transformer import TransformerBlock
from shapeloom.rendering.rays import camera_rays
from shapeloom.shards import AssetSample, AssetShards


class EncoderConfig(Config):
    """The encoder network's size and what it reads of an asset."""

    width: int = Key(192, ge=8)
    heads: int = Key(4, ge=1)
    num_layers: int = Key(4, ge=1)
    num_points: int = Key(2048, ge=16)
    num_anchors: int = Key(64, ge=1)
    num_views: int = Key(0, ge=0)  # 0: points alone
    patch: int = Key(8, ge=1)


@dataclass(frozen=True)
class EncoderInputs:
    """What the encoder reads of a batch of assets. pixels is None where the encoder reads no views."""

    points: Float[Tensor, "batch points 3"]
    rgb: Float[Tensor, "batch points 3"]
    normals: Float[Tensor, "batch points 3"]
    pixels: Float[Tensor, "batch views height width numbers"] | None = None


class PointPooling(nn.Module):
    """What lies where: each latent token sums the point tokens around a place of its own (learned).

    Attention alone starts from averages over the whole asset, and takes long to find out about places.
    """

    def __init__(self, num_tokens: int, point_width: int, width: int) -> None:
        super().__init__()
        sobol = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(num_tokens)
        self.centres = nn.Parameter(1.8 * sobol - 0.9)
        self.log_radius = nn.Parameter(torch.full((num_tokens, 1), math.log(0.3)))
        self.linear = nn.Linear(point_width + 1, width)

    def forward(
        self, points: Float[Tensor, "batch points 3"], tokens: Float[Tensor, "batch points point_width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Returns the sums, weighted by a Gaussian around each place."""
        with torch.autocast(points.device.type, enabled=False):
            # |p - c|^2 as one product, in full precision.
            square = (points**2).sum(-1)[:, None, :] + (self.centres**2).sum(-1, keepdim=True)
            distance = square - 2 * self.centres @ points.transpose(1, 2)
            weights = torch.exp(-0.5 * distance / torch.exp(2 * self.log_radius))
        # Of the order of one where a tenth of all points are near.
        weights = weights * (10 / points.shape[1])
        amount = weights.sum(dim=2, keepdim=True)
        pooled: Tensor = self.linear(
            torch.cat([weights.to(tokens.dtype) @ tokens, amount.to(tokens.dtype)], dim=-1)
        )
        return pooled


class Encoder(nn.Module):
    """Points and views to a latent."""

    def __init__(self, config: EncoderConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # There are many more points than tokens: half the width serves, at half the cost.
        point_width = width // 2
        self.point_tokens = PointTokens(point_width)
        self.anchor_tokens = nn.Linear(point_width, width)
        self.view_tokens = ViewTokens(width, config.patch) if config.num_views else None
        self.latent_tokens = nn.Parameter(0.1 * torch.randn(decoder.projection.num_tokens, width))
        self.pooling = PointPooling(decoder.projection.num_tokens, point_width, width)
        self.query_norm = nn.LayerNorm(width)
        self.point_norm = nn.LayerNorm(point_width)
        self.from_points = Attention(width, config.heads, context_width=point_width)
        self.from_views = Attention(width, config.heads, context_width=width) if config.num_views else None
        self.blocks = nn.ModuleList([TransformerBlock(width, config.heads) for _ in range(config.num_layers)])
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, decoder.projection.channels)

    def forward(
        self, inputs: EncoderInputs, views_kept: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        """Returns the latent, in [-1, 1]. views_kept: 1 to use an asset's views, 0 to do without."""
        context = self.point_tokens(inputs.points, inputs.rgb, inputs.normals)
        anchors = self.anchor_tokens(context[:, : self.config.num_anchors])
        latent = self.latent_tokens + self.pooling(inputs.points, context)
        x = torch.cat([anchors, latent.to(anchors.dtype)], dim=1)
        x = x + self.from_points(self.query_norm(x), self.point_norm(context))
        if self.from_views is not None and self.view_tokens is not None and inputs.pixels is not None:
            gathered = self.from_views(self.query_norm(x), self.view_tokens(inputs.pixels))
            x = x + (gathered if views_kept is None else gathered * views_kept[:, None, None])
        for block in self.blocks:
            x = block(x)
        latent_out = self.out(self.out_norm(x[:, self.config.num_anchors :]))
        return torch.tanh(latent_out.float())


class Autoencoder(nn.Module):
    """Encoder and decoder as they are trained together."""

    def __init__(self, encoder: EncoderConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder, decoder)
        self.decoder = Decoder(decoder)

    @torch.no_grad()
    def encode(self, samples: Sequence[AssetSample]) -> Float[Tensor, "batch tokens channels"]:
        """Returns the latents of assets read by `read_for_encoding`; deterministic."""
        device = next(self.parameters()).device
        inputs = encoder_inputs(samples, self.encoder.config, device)
        latent: Tensor = self.encoder(inputs)
        return latent


def read_for_encoding(shards: AssetShards, index: int, config: EncoderConfig) -> AssetSample:
    """Reads what the encoder needs of asset `index`: its points and its first `num_views` views."""
    views = range(config.num_views)
    return shards.read(index, views=views, depth=bool(views), points=True)


def encoder_inputs(
    samples: Sequence[AssetSample], config: EncoderConfig, device: torch.device | str = "cpu"
) -> EncoderInputs:
    """Returns the first `num_points` points (in farthest-point order) and the views as tensors."""
    num = config.num_points
    for sample in samples:
        if sample.points is None or len(sample.points) < num:
            have = 0 if sample.points is None else len(sample.points)
            raise ValueError(
                f"asset {sample.row.key} has {have} points, but the encoder reads {num}: prepare the data "
                "with more points (data_prep's num_points) or train with a smaller encoder.num_points."
            )
    points = _stack([s.points for s in samples])[:, :num]
    rgb = _stack([s.points_rgb for s in samples])[:, :num].float() / 255
    normals = _stack([s.points_normal for s in samples])[:, :num].float() / 127
    pixels = None
    if config.num_views:
        rgba = _stack([s.rgba for s in samples]).float() / 255
        depth = _stack([s.depth for s in samples])
        poses, matrices = _stack([s.cam_to_world for s in samples]), _stack([s.intrinsics for s in samples])
        pixels = pixel_features(rgba, depth, *camera_rays(poses, matrices, *depth.shape[-2:])).to(device)
    return EncoderInputs(points.to(device), rgb.to(device), normals.to(device), pixels)


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays if array is not None])


def load_encoder(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Returns a finished encoder run's autoencoder in eval mode; UserError if `folder` isn't one."""
    decoder = load_decoder(folder, device)  # checks the run and the weights' digest
    model = Autoencoder(load_config(EncoderConfig, folder / "encoder.yaml"), decoder.config)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    model.decoder.digest = decoder.digest
    return model.to(device).eval()
