"""The denoising transformer of the prior, and the frozen `Prior` that sampling uses.

The network sees a noisy latent [batch, tokens, channels] and a noise level, and says what `objectives` asks
for. Its input is brought to unit variance and the default target has unit variance too (EDM's preconditioning
for data of unit variance). It is told noise levels alone, so any sampler's steps fit it.

    pooled CLIP vectors of text and image + noise level -> adaptive layer norms (AdaLN-zero)
    CLIP's text tokens + one learned token              -> cross-attention

Conditions may be missing: each has a learned stand-in, and a latent without any is the unconditional model.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from shapeloom.clip import TextEmbedding
from shapeloom.config import Config, UserError
from shapeloom.diffusion.objectives import Target, TimeSampling, to_x0
from shapeloom.diffusion.schedules import ScheduleName, make_schedule
from shapeloom.nn.transformer import Activation, TransformerBlock
from shapeloom.runs import read_meta
from shapeloom.storage import file_digest


class NetworkConfig(Config):
    """Size of the denoiser."""

    width: int = Field(default=256, ge=8)
    depth: int = Field(default=6, ge=1)
    heads: int = Field(default=4, ge=1)
    group: int = Field(
        default=1, ge=1, description="neighbouring latent tokens that the network joins to one"
    )
    activation: Activation = "gelu"


class DiffusionConfig(Config):
    """What the denoiser learns to predict, and at which noise levels."""

    schedule: ScheduleName = "rectified_flow"
    target: Target = "v"
    times: TimeSampling = "logit_normal"
    times_mean: float = Field(default=0.0, description="of logit(t): larger means noisier training samples")
    times_std: float = Field(default=1.0, gt=0)


@dataclass(frozen=True)
class Shapes:
    """What a prior's latents and conditions look like; saved in its prior.json."""

    tokens: int
    channels: int
    clip_dim: int
    text_width: int


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch; rows where `has_text` or `has_image` is False are ignored."""

    text_pooled: Float[Tensor, "batch embed"]
    text_tokens: Float[Tensor, "batch length text_width"]
    text_mask: Bool[Tensor, "batch length"]
    has_text: Bool[Tensor, " batch"]
    image_pooled: Float[Tensor, "batch embed"]
    has_image: Bool[Tensor, " batch"]

    def without(self) -> "Condition":
        """The null condition for the same batch."""
        nothing = torch.zeros_like(self.has_text)
        return replace(self, has_text=nothing, has_image=nothing)


class Denoiser(nn.Module):
    """A transformer over latent tokens; `standard_*` buffers hold the latents' mean and spread."""

    standard_mean: Tensor
    standard_std: Tensor
    frequencies: Tensor

    def __init__(self, shapes: Shapes, config: NetworkConfig) -> None:
        super().__init__()
        width, self.group = config.width, config.group
        if shapes.tokens % self.group:
            raise UserError(
                f"network.group={self.group} must divide the latents' {shapes.tokens} tokens; choose another."
            )
        self.inp = nn.Linear(shapes.channels * self.group, width)
        self.position = nn.Parameter(torch.randn(shapes.tokens // self.group, width) * 0.02)
        self.register_buffer("frequencies", torch.exp(torch.linspace(math.log(0.25), math.log(16), 32)))
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.text = nn.Linear(shapes.clip_dim, width)
        self.image = nn.Linear(shapes.clip_dim, width)
        self.no_text = nn.Parameter(torch.randn(width) * 0.02)
        self.no_image = nn.Parameter(torch.randn(width) * 0.02)
        # Always attended to, so that a latent without text still has something to look at.
        self.null_token = nn.Parameter(torch.randn(shapes.text_width) * 0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.heads, shapes.text_width, width, activation=config.activation)
            for _ in range(config.depth)
        )
        self.out_modulate = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, shapes.channels * self.group)
        for layer in (self.out_modulate, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("standard_mean", torch.zeros(shapes.tokens, shapes.channels))
        self.register_buffer("standard_std", torch.ones(shapes.tokens, shapes.channels))

    def forward(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch tokens channels"]:
        """What the network says of x = x_0 + sigma eps (x_0 standardised), sigma > 0: see `objectives`."""
        size = x.shape[0]
        level = torch.log(sigma)[:, None] / 4 * self.frequencies  # /4 as EDM's c_noise
        modulation = self.level(torch.cat([level.sin(), level.cos()], dim=-1))
        # sqrt(dim): entries of a unit vector become of size 1, as a linear layer expects (as in Shap-E).
        scale = math.sqrt(condition.text_pooled.shape[-1])
        text = self.text(condition.text_pooled * scale)
        image = self.image(condition.image_pooled * scale)
        modulation = modulation + torch.where(condition.has_text[:, None], text, self.no_text)
        modulation = modulation + torch.where(condition.has_image[:, None], image, self.no_image)
        null = self.null_token.expand(size, 1, -1)
        context = torch.cat([null, condition.text_tokens.to(null.dtype)], dim=1)
        readable = condition.text_mask & condition.has_text[:, None]
        mask = torch.cat([torch.ones_like(readable[:, :1]), readable], dim=1)
        unit = x / torch.hypot(sigma, torch.ones_like(sigma))[:, None, None]
        hidden = self.inp(unit.unflatten(1, (-1, self.group)).flatten(2)) + self.position
        for block in self.blocks:
            hidden = block(hidden, context, mask, modulation)
        shift, gain = self.out_modulate(F.silu(modulation))[:, None].chunk(2, dim=-1)
        answer = self.out(F.layer_norm(hidden, hidden.shape[-1:]) * (1 + gain) + shift)
        return answer.unflatten(2, (self.group, -1)).flatten(1, 2)


def predict_x0(
    model: nn.Module,
    diffusion: DiffusionConfig,
    x: Float[Tensor, "batch tokens channels"],
    sigma: Float[Tensor, " batch"],
    condition: Condition,
) -> Float[Tensor, "batch tokens channels"]:
    """The expected x_0 of x = x_0 + sigma eps: the seam that samplers use (`diffusion.samplers`)."""
    schedule = make_schedule(diffusion.schedule)
    prediction = model(x, sigma, condition).to(x.dtype)
    t = schedule.time(sigma)
    x_t = schedule.alpha(t)[:, None, None] * x
    return to_x0(diffusion.target, schedule, prediction, x_t, t)


class Prior:
    """A trained prior. Make it with `load_prior`.

    Works on standardised latents; `unstandardise` brings them back to what a decoder takes.

    Attributes:
        digest: SHA-256 of its weights.
        encoder_digest, clip_digest: of the decoder and the CLIP that its latents and conditions came from.
        shape: (tokens, channels) of a latent.
    """

    def __init__(
        self, network: Denoiser, shapes: Shapes, diffusion: DiffusionConfig, facts: dict[str, Any]
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.shapes, self.diffusion = shapes, diffusion
        self.digest, self.encoder_digest = str(facts["digest"]), str(facts["encoder"])
        self.clip_digest = str(facts["clip"])
        self.device = network.position.device

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, channels) of a latent."""
        return self.shapes.tokens, self.shapes.channels

    def check(self, *, encoder_digest: str | None = None, clip_digest: str | None = None) -> None:
        """Raises UserError if a decoder or a CLIP of another digest is to be used with this prior."""
        for name, have, need in (
            ("encoder", encoder_digest, self.encoder_digest), ("CLIP", clip_digest, self.clip_digest)
        ):  # fmt: skip
            if have is not None and have != need:
                raise UserError(
                    f"This prior was trained with the {name} {need[:12]}, but was given {have[:12]}: their "
                    f"numbers mean different things. Use the {name} of the prior's own run, or encode the "
                    "latents anew and train a prior on them."
                )

    def condition(
        self,
        text: TextEmbedding | None = None,
        image: Float[Tensor, "batch embed"] | None = None,
        *,
        batch: int | None = None,
    ) -> Condition:
        """Conditions for `denoise`: captions (`Clip.text`), pictures (`Clip.image`), both, or neither.

        batch: number of rows; needed when there is neither. A single row of text or image is repeated to it.
        Raises ValueError when numbers of rows or widths don't fit.
        """
        counts = [len(given) for given in (text.pooled if text else None, image) if given is not None]
        size = batch if batch is not None else max(counts, default=0)
        if size < 1 or any(count not in (1, size) for count in counts):
            raise ValueError(
                f"expected 1 or {size} rows of text and image conditions, got {counts}, batch {batch}"
            )
        blank = torch.zeros(size, self.shapes.clip_dim)
        if text is None:
            tokens = torch.zeros(size, 1, self.shapes.text_width)
            text = TextEmbedding(blank, tokens, torch.zeros(size, 1, dtype=torch.bool))
            has_text = torch.zeros(size, dtype=torch.bool)
        else:
            has_text = torch.ones(size, dtype=torch.bool)
        pooled = blank if image is None else image
        widths = (text.pooled.shape[-1], pooled.shape[-1], text.tokens.shape[-1])
        expected = (self.shapes.clip_dim, self.shapes.clip_dim, self.shapes.text_width)
        if widths != expected:
            raise ValueError(f"text, image and text tokens have widths {widths}; this prior knows {expected}")
        dtype = self.network.position.dtype

        def fitted(value: Tensor) -> Tensor:
            kind = dtype if value.is_floating_point() else torch.bool
            return value.expand(size, *value.shape[1:]).to(self.device, kind)

        return Condition(
            text_pooled=fitted(text.pooled), text_tokens=fitted(text.tokens), text_mask=fitted(text.mask),
            has_text=fitted(has_text), image_pooled=fitted(pooled),
            has_image=fitted(torch.full((size,), image is not None)),
        )  # fmt: skip

    @torch.no_grad()
    def denoise(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch tokens channels"]:
        """The expected x_0 of x = x_0 + sigma eps, all standardised: the seam of `diffusion.samplers`."""
        return predict_x0(self.network, self.diffusion, x, sigma, condition)

    def standardise(
        self, latent: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """From an encoder's latents to x_0."""
        return (latent - self.network.standard_mean) / self.network.standard_std

    def unstandardise(
        self, x0: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """From x_0 to a decoder's latents, clamped to [-1, 1], where the encoder's tanh keeps its own."""
        return (x0 * self.network.standard_std + self.network.standard_mean).clamp(-1, 1)


def load_prior(folder: Path, device: torch.device | str = "cpu") -> Prior:
    """Loads a finished prior run; raises UserError if `folder` isn't one."""
    meta = read_meta(folder, stage="prior")
    saved = json.loads((folder / "prior.json").read_text())
    shapes, diffusion = Shapes(**saved["shapes"]), DiffusionConfig(**saved["diffusion"])
    network = Denoiser(shapes, NetworkConfig(**saved["network"]))
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    facts = {**meta["inputs"], "digest": file_digest(folder / "weights.safetensors")}
    return Prior(network.to(device), shapes, diffusion, facts)


def standardisation(
    latents: Float[Tensor, "assets tokens channels"], *, strength: float = 8.0, floor: float = 0.05
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "tokens channels"]]:
    """Mean and standard deviation of every latent number.

    A variance estimated from few assets is drawn towards the mean variance of all numbers, as if `strength`
    more assets had shown that one, and is at least (floor x its root)^2: a number that never varied in
    training would otherwise be blown up to unit variance, and its rounding errors with it.
    """
    count = latents.shape[0]
    mean = latents.mean(0)
    variance = (latents - mean).square().mean(0)
    overall = variance.mean()
    shrunk = (count * variance + strength * overall) / (count + strength)
    # 1e-4: about the rounding of stored 16-bit latents, for sets whose assets are all alike.
    return mean, shrunk.clamp_min(max(float(floor**2 * overall), 1e-4**2)).sqrt()


def check_latents(latents: Float[Tensor, "assets tokens channels"], keys: Sequence[str]) -> None:
    """Raises UserError that names the assets whose latents are not finite."""
    bad = (~torch.isfinite(latents).flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(keys[i] for i in bad[:5]) + ("..." if len(bad) > 5 else "")
        raise UserError(
            f"{len(bad)} of {len(keys)} latents hold NaN or infinity ({names}). The encoder that made them "
            "has diverged: train it again with a lower learning rate, then encode again."
        )
