"""The encoder network: points (and views) -> latent tokens in [-1, 1]; with its decoder, the autoencoder.

Anchor tokens (a farthest-point subset of the points) and learned latent tokens gather from all points by
cross-attention, then from the views' patches where there are any, then talk among themselves; the latent
tokens end in a tanh.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        self.latent_tokens = nn.Parameter(torch.randn(decoder.projection.num_tokens, width))
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
        latent = self.latent_tokens.expand(context.shape[0], -1, -1)
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
    points = torch.stack([torch.from_numpy(s.points[:num]) for s in samples])
    rgb = torch.stack([torch.from_numpy(s.points_rgb[:num]) for s in samples]).float() / 255
    normals = torch.stack([torch.from_numpy(s.points_normal[:num]) for s in samples]).float() / 127
    pixels = None
    if config.num_views:
        rgba = torch.stack([torch.from_numpy(s.rgba) for s in samples]).float() / 255
        depth = torch.stack([torch.from_numpy(s.depth) for s in samples])
        poses = torch.stack([torch.from_numpy(s.cam_to_world) for s in samples])
        matrices = torch.stack([torch.from_numpy(s.intrinsics) for s in samples])
        pixels = pixel_features(rgba, depth, *camera_rays(poses, matrices, *depth.shape[-2:])).to(device)
    return EncoderInputs(points.to(device), rgb.to(device), normals.to(device), pixels)


def load_encoder(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Returns a finished encoder run's autoencoder in eval mode; UserError if `folder` isn't one."""
    decoder = load_decoder(folder, device)  # checks the run and the weights' digest
    model = Autoencoder(load_config(EncoderConfig, folder / "encoder.yaml"), decoder.config)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    model.decoder.digest = decoder.digest
    return model.to(device).eval()
