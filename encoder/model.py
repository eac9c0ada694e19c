"""The encoder network: points (and views) -> latent tokens in [-1, 1]; with its decoder, the autoencoder.

Latent tokens gather from a grid of places, then from the views' patches by cross-attention where there are
any, then talk among themselves, and end in a tanh.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field as Key
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoder.tokens import COARSE, GridTokens, ViewTokens, pixel_features
from shapeloom.config import Config, load_config
from shapeloom.decoder import Decoder, DecoderConfig, load_decoder
from shapeloom.fields.cloud import to_cloud
from shapeloom.nn.transformer import Attention, TransformerBlock
from shapeloom.saved import check_fits
from shapeloom.shap_e.autoencoder import load_shap_e
from shapeloom.shards import AssetSample, AssetShards
from shapeloom.weights import read_tensors


class EncoderConfig(Config):
    """The encoder network's size and what it reads of an asset."""

    width: int = Key(192, ge=8, le=16384, description="channels of a token")
    heads: int = Key(4, ge=1, le=512, description="attention heads")
    num_layers: int = Key(4, ge=1, le=512, description="transformer blocks")
    num_points: int = Key(2048, ge=16, le=1 << 20, description="surface points that are read")
    grid: Literal[8, 16, 32, 64] = Key(16, description="cells a side that points are gathered in")
    grid_hidden: int = Key(
        192, ge=4, le=16384, description="channels of the layer that reads a token's cells"
    )
    num_views: int = Key(0, ge=0, le=1024, description="views that are read; 0: points alone")
    patch: int = Key(8, ge=1, le=1024, description="side of a view's patch, pixels")
    variational: bool = Key(False, description="a spread of each latent number's own (Kingma & Welling 2014)")
    checkpointing: bool = Key(
        False, description="compute blocks again in the backward pass: less memory, more time"
    )


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
        width, layout = config.width, decoder.layout
        self.grid_tokens = GridTokens(width, config.grid, config.grid_hidden)
        # Each latent token starts from places of its own: those of one layer share out the whole box.
        shares = _shares_by_place if layout.by_place else _even_shares
        self.shares = nn.Parameter(torch.cat([shares(num) for num in layout.layers]))
        self.latent_tokens = nn.Parameter(0.1 * torch.randn(layout.shape[0], width))
        self.view_tokens = ViewTokens(width, config.patch) if config.num_views else None
        self.from_views = Attention(width, config.heads, context_width=width) if config.num_views else None
        self.blocks = nn.ModuleList([TransformerBlock(width, config.heads) for _ in range(config.num_layers)])
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, layout.channels)
        self.log_std = nn.Linear(width, layout.channels) if config.variational else None
        if self.log_std is not None:
            nn.init.zeros_(self.log_std.weight)
            nn.init.constant_(self.log_std.bias, -3.0)

    def forward(
        self, inputs: EncoderInputs, views_kept: Bool[Tensor, "batch views"] | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        """Returns the latent, in [-1, 1]. views_kept: the views that each asset has; none: all."""
        return self.distribution(inputs, views_kept)[0]

    def distribution(
        self, inputs: EncoderInputs, views_kept: Bool[Tensor, "batch views"] | None = None
    ) -> tuple[Float[Tensor, "batch tokens channels"], Float[Tensor, "batch tokens channels"] | None]:
        """Returns the latent and, if variational, the logarithm of its standard deviation."""
        places = self.grid_tokens(inputs.points, inputs.rgb, inputs.normals)
        x = self.latent_tokens + self.shares.to(places.dtype) @ places
        if self.from_views is not None and self.view_tokens is not None and inputs.pixels is not None:
            tokens = self.view_tokens(inputs.pixels)
            if views_kept is None:
                x = x + self.from_views(x, tokens)
            else:
                mask = views_kept.repeat_interleave(tokens.shape[1] // views_kept.shape[1], dim=1)
                x = x + self.from_views(x, tokens, mask) * views_kept.any(dim=1)[:, None, None]
        for block in self.blocks:
            recomputed = self.config.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recomputed else block(x)
        x = self.out_norm(x)
        log_std = None if self.log_std is None else self.log_std(x).float().clamp(-8, 1)
        return torch.tanh(self.out(x).float()), log_std


def _even_shares(num_tokens: int) -> Float[Tensor, "tokens places"]:
    """Returns shares of the places: neighbours to each token, or a place to several, or all in random shares.

    The squares of a token's shares sum to one.
    """
    places = COARSE**3
    if places % num_tokens == 0:
        each = places // num_tokens
        return torch.eye(num_tokens).repeat_interleave(each, dim=1) / each**0.5
    if num_tokens % places == 0:
        return torch.eye(places).repeat(num_tokens // places, 1)
    return torch.randn(num_tokens, places) / places**0.5


def _shares_by_place(num_tokens: int) -> Float[Tensor, "tokens places"]:
    """Returns how much of the places lies in each token's own cell, of a grid over the same box."""
    side = round(num_tokens ** (1 / 3))
    ends = torch.arange(side + 1) / side
    places = torch.arange(COARSE + 1) / COARSE
    common = torch.minimum(ends[1:, None], places[1:]) - torch.maximum(ends[:-1, None], places[:-1])
    along = F.normalize(common.clamp(min=0), dim=1)
    return torch.kron(torch.kron(along, along), along)


@runtime_checkable
class ReadsViews(Protocol):
    """What reads of an asset its points and so many views, 0: none."""

    @property
    def num_views(self) -> int: ...


@runtime_checkable
class AnyAutoencoder(ReadsViews, Protocol):
    """What makes latents of assets, and fields of latents; a module. `Autoencoder` is ours."""

    decoder: Decoder

    def encode(self, samples: Sequence[AssetSample]) -> Float[Tensor, "batch tokens channels"]:
        """Returns the latents of assets read by `read_for_encoding`; deterministic."""


class Autoencoder(nn.Module):
    """Encoder and decoder as they are trained together."""

    def __init__(self, encoder: EncoderConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder, decoder)
        self.decoder = Decoder(decoder)
        self.num_views = encoder.num_views

    @torch.no_grad()
    def encode(self, samples: Sequence[AssetSample]) -> Float[Tensor, "batch tokens channels"]:
        """See `AnyAutoencoder`."""
        device = next(self.parameters()).device
        inputs = encoder_inputs(samples, self.encoder.config, device)
        latent: Tensor = self.encoder(inputs)
        return latent


class CloudAutoencoder(nn.Module):
    """Encodes an asset as its own points (Point-E's representation); the decoder makes fields of them.

    num_points: of the stored points, in farthest-point order, the first.
    """

    num_views = 0

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder, self.num_points = decoder, decoder.latent_shape[0]

    @torch.no_grad()
    def encode(self, samples: Sequence[AssetSample]) -> Float[Tensor, "batch tokens channels"]:
        """See `AnyAutoencoder`."""
        device = next(self.parameters()).device
        inputs = encoder_inputs(samples, EncoderConfig(num_points=self.num_points), device)
        return to_cloud(inputs.points, inputs.rgb)


def read_for_encoding(shards: AssetShards, index: int, reader: ReadsViews) -> AssetSample:
    """Reads what the reader needs of asset `index`: its points and its first `num_views` views."""
    views = range(reader.num_views)
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
        views = [[s.rgba, s.depth, s.cam_to_world, s.intrinsics] for s in samples]
        pixels = pixel_features(*(_stack(part).to(device) for part in zip(*views, strict=True)))
    return EncoderInputs(points.to(device), rgb.to(device), normals.to(device), pixels)


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays if array is not None])


def load_encoder(folder: Path, device: torch.device | str = "cpu") -> AnyAutoencoder:
    """Returns a finished encoder run's autoencoder in eval mode; UserError if `folder` isn't one."""
    decoder = load_decoder(folder, device)  # checks the run and the weights' digest
    if decoder.config.shap_e is not None:
        return load_shap_e(folder, decoder)
    if decoder.config.cloud is not None:
        return CloudAutoencoder(decoder).eval()
    config, path = load_config(EncoderConfig, folder / "encoder.yaml"), folder / "weights.safetensors"
    check_fits(lambda: Autoencoder(config, decoder.config), path)
    model = Autoencoder(config, decoder.config)
    model.load_state_dict(read_tensors(folder / "weights.safetensors"))
    model.decoder.digest = decoder.digest
    return model.to(device).eval()
