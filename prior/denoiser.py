"""The denoising transformer of the prior, and the frozen `Prior` that sampling uses.

The network sees a noisy latent [batch, tokens, channels] and a noise level, and says what `objectives` asks
for. Its input is brought to unit variance and the default target has unit variance too (EDM's preconditioning
for data of unit variance). It is told noise levels alone, so any sampler's steps fit it.

    noise level                                      -> adaptive layer norms (AdaLN-zero)
    pooled CLIP vectors of text and views, the class -> adaptive layer norms too, or tokens of their own
    CLIP's text tokens and grids, one learned token  -> cross-attention, or tokens of their own

Conditions may be missing: each has a learned stand-in, and a latent without any is the unconditional model.
Tokens of their own stand before the latent's in every self-attention (Shap-E's way).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prior.conditions import NO_LABEL, Condition, Shapes
from prior.shap_e import ShapEDenoiser
from shapeloom.checkpoint import extra_weights
from shapeloom.clip import TextEmbedding
from shapeloom.config import Config, UserError, validated
from shapeloom.diffusion.objectives import Target, TimeSampling, Weighting, to_x0
from shapeloom.diffusion.schedules import ScheduleName, VpCosine, VpExponential, make_schedule
from shapeloom.diffusion.variance import learned_log_variance
from shapeloom.nn.shap_e import halve_weights
from shapeloom.nn.transformer import Activation, TransformerBlock
from shapeloom.runs import read_meta
from shapeloom.saved import check_fits
from shapeloom.storage import read_json
from shapeloom.weights import checked_digest, read_tensors

MAX_SIZE = 16384
"""Of tokens, channels and widths; the largest published prior has 1,024."""
MAX_DISTILLED_STEPS = 1000


class NetworkConfig(Config):
    """Size of the denoiser."""

    kind: Literal["shapeloom", "shap_e_text", "shap_e_image"] = Field(
        "shapeloom", description="ours, or Shap-E's published networks, of which width, depth, heads and "
        "checkpointing alone can be chosen"
    )  # fmt: skip
    width: int = Field(default=256, ge=8, le=16384)
    depth: int = Field(default=6, ge=1, le=512)
    heads: int = Field(default=4, ge=1, le=512)
    group: int = Field(
        default=1, ge=1, le=4096, description="neighbouring latent tokens that the network joins to one"
    )
    activation: Activation = "gelu"
    pooled: Literal["adaptive", "token"] = Field(
        "adaptive",
        description="pooled CLIP vectors and the class: by adaptive norms, or a token each",
    )
    tokens: Literal["cross", "token", "none"] = Field(
        "cross", description="text tokens and grids: by cross-attention, as tokens, or not at all"
    )
    checkpointing: bool = Field(
        default=False, description="compute each block's activations again in the backward pass: less memory"
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> "NetworkConfig":
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        return self


class DiffusionConfig(Config):
    """What the denoiser learns to predict, and at which noise levels."""

    schedule: ScheduleName = "rectified_flow"
    target: Target = "v"
    times: TimeSampling = "logit_normal"
    times_mean: float = Field(default=0.0, description="of logit(t): larger means noisier training samples")
    times_std: float = Field(default=1.0, gt=0)
    weighting: Weighting = "uniform"
    learned_variance: bool = Field(
        default=False,
        description="learn the variance of DDPM's steps too, for sampler=ddpm; schedule: a vp one",
    )

    @model_validator(mode="after")
    def _steps_have_a_variance(self) -> "DiffusionConfig":
        if not self.learned_variance:
            return self
        if not isinstance(make_schedule(self.schedule), VpCosine | VpExponential):
            raise ValueError(
                f"learned_variance is of DDPM's steps, which keep the variance; schedule={self.schedule} "
                "doesn't: use vp_cosine, vp_linear or shap_e"
            )
        if self.times != "uniform":
            raise ValueError(
                "learned_variance is learnt by a sum over all steps, each as often as the others: set "
                f"times=uniform, not {self.times}"
            )
        return self


class Denoiser(nn.Module):
    """A transformer over latent tokens; `standard_*` buffers hold the latents' mean and spread."""

    published = False
    sigma_range = (0.02, 80.0)
    """Noise levels that samplers walk through."""
    standard_mean: Tensor
    standard_std: Tensor
    frequencies: Tensor
    layer_of: Tensor

    def __init__(self, shapes: Shapes, config: NetworkConfig, *, learned_variance: bool = False) -> None:
        super().__init__()
        width, self.group, self.shapes, self.config = config.width, config.group, shapes, config
        self.checkpointing = config.checkpointing
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
        cross_width = shapes.text_width if config.tokens == "cross" else None
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.heads, cross_width, width, activation=config.activation)
            for _ in range(config.depth)
        )
        self.out_modulate = nn.Linear(width, 2 * width)
        outputs = shapes.channels * (2 if learned_variance else 1)
        self.out = nn.Linear(width, outputs * self.group)
        for layer in (self.out_modulate, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("standard_mean", torch.zeros(shapes.tokens, shapes.channels))
        self.register_buffer("standard_std", torch.ones(shapes.tokens, shapes.channels))
        self._make_optional_parts(shapes, config)

    def _make_optional_parts(self, shapes: Shapes, config: NetworkConfig) -> None:
        """What a prior has for field layers, classes, grids and tokens of conditions; the last row of
        `label` stands for no class."""
        width = config.width
        # Layer of the field that each of the network's tokens belongs to: `position` tells its row.
        counts = torch.tensor(shapes.layers, dtype=torch.long)
        layer_of = torch.repeat_interleave(counts, output_size=sum(shapes.layers))[:: config.group]
        self.register_buffer("layer_of", layer_of, persistent=False)
        num_layers, num_classes = len(shapes.layers), len(shapes.classes)
        self.layer = nn.Parameter(torch.zeros(num_layers, width)) if num_layers else None
        self.label = nn.Parameter(torch.randn(num_classes + 1, width) * 0.02) if num_classes else None
        self.grid = nn.Linear(shapes.grid_width, shapes.text_width) if shapes.grid_width else None
        self.context_in = nn.Linear(shapes.text_width, width) if config.tokens == "token" else None

    def forward(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch tokens outputs"]:
        """What the network says of x = x_0 + sigma eps (x_0 standardised), sigma > 0: see `objectives`.

        Where it has learned the variance too, channels of its share follow: see `diffusion.variance`.
        """
        level = torch.log(sigma)[:, None] / 4 * self.frequencies  # /4 as EDM's c_noise
        modulation = self.level(torch.cat([level.sin(), level.cos()], dim=-1))
        unit = x / torch.hypot(sigma, torch.ones_like(sigma))[:, None, None]
        hidden = self.inp(unit.unflatten(1, (-1, self.group)).flatten(2)) + self.position
        if self.layer is not None:
            hidden = hidden + self.layer[self.layer_of]
        before: list[Tensor] = []
        if self.config.pooled == "token":
            before += [vector[:, None] for vector in self._pooled(condition)]
        else:
            for vector in self._pooled(condition):
                modulation = modulation + vector
        context, mask = (None, None) if self.config.tokens == "none" else self._context(condition)
        if self.context_in is not None and context is not None and mask is not None:
            before.append(self.context_in(torch.where(mask[..., None], context, self.null_token)))
            context, mask = None, None
        num_before = sum(tokens.shape[1] for tokens in before)
        hidden = torch.cat([*before, hidden], dim=1) if before else hidden
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, context, mask, modulation, use_reentrant=False)
            else:
                hidden = block(hidden, context, mask, modulation)
        hidden = hidden[:, num_before:]
        shift, gain = self.out_modulate(F.silu(modulation))[:, None].chunk(2, dim=-1)
        answer = self.out(F.layer_norm(hidden, hidden.shape[-1:]) * (1 + gain) + shift)
        return answer.unflatten(2, (self.group, -1)).flatten(1, 2)

    @property
    def head(self) -> list[nn.Module]:
        """What comes after the blocks, for fine-tuning."""
        return [self.out_modulate, self.out]

    def _pooled(self, condition: Condition) -> list[Float[Tensor, "batch width"]]:
        """A vector each of the caption, of the views (their mean), and of the class where there are any."""
        # sqrt(dim): entries of a unit vector become of size 1, as a linear layer expects (as in Shap-E).
        scale = math.sqrt(condition.text_pooled.shape[-1])
        seen = condition.has_view[..., None].to(condition.image_pooled.dtype)
        views = (condition.image_pooled * seen).sum(1) / seen.sum(1).clamp_min(1)
        text, image = self.text(condition.text_pooled * scale), self.image(views * scale)
        vectors = [
            torch.where(condition.has_text[:, None], text, self.no_text),
            torch.where(condition.has_view.any(1)[:, None], image, self.no_image),
        ]
        if self.label is not None:
            none = self.label.shape[0] - 1
            vectors.append(self.label[torch.where(condition.label == NO_LABEL, none, condition.label)])
        return vectors

    def _context(
        self, condition: Condition
    ) -> tuple[Float[Tensor, "batch context text_width"], Bool[Tensor, "batch context"]]:
        """Tokens to look at, and which of them are there: the null token, the caption's, the views' grids."""
        null = self.null_token.expand(len(condition.has_text), 1, -1)
        parts = [null, condition.text_tokens.to(null.dtype)]
        masks = [
            torch.ones_like(condition.has_text)[:, None],
            condition.text_mask & condition.has_text[:, None],
        ]
        if self.grid is not None and condition.image_grid is not None:
            cells = condition.image_grid.shape[2]
            parts.append(self.grid(condition.image_grid.flatten(1, 2)))
            masks.append(condition.has_view.repeat_interleave(cells, dim=1))
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)


Network = Denoiser | ShapEDenoiser


def make_network(shapes: Shapes, config: NetworkConfig, *, learned_variance: bool = False) -> Network:
    """The network that a config names, with fresh weights; learned_variance: see `DiffusionConfig`."""
    if config.kind == "shapeloom":
        return Denoiser(shapes, config, learned_variance=learned_variance)
    model = ShapEDenoiser(
        shapes, width=config.width, depth=config.depth, heads=config.heads,
        reads="text" if config.kind == "shap_e_text" else "image", checkpointing=config.checkpointing,
        learned_variance=learned_variance,
    )  # fmt: skip
    model.config = config
    return model


def predict_x0(
    model: nn.Module,
    diffusion: DiffusionConfig,
    x: Float[Tensor, "batch tokens channels"],
    sigma: Float[Tensor, " batch"],
    condition: Condition,
) -> Float[Tensor, "batch tokens channels"]:
    """The expected x_0 of x = x_0 + sigma eps: the seam that samplers use (`diffusion.samplers`)."""
    schedule = make_schedule(diffusion.schedule)
    prediction, _ = split_answer(model(x, sigma, condition).to(x.dtype), diffusion)
    t = schedule.time(sigma)
    x_t = schedule.alpha(t)[:, None, None] * x
    return to_x0(diffusion.target, schedule, prediction, x_t, t)


def split_answer(
    answer: Float[Tensor, "batch tokens outputs"], diffusion: DiffusionConfig
) -> tuple[Float[Tensor, "batch tokens channels"], Float[Tensor, "batch tokens channels"] | None]:
    """Returns the target as the network sees it, and the variance's share if it was learned."""
    if not diffusion.learned_variance:
        return answer, None
    prediction, share = answer.chunk(2, dim=-1)
    return prediction, share


@dataclass(frozen=True)
class Distilled:
    """How a distilled prior has to be sampled: it knows no other noise levels and takes no guidance."""

    sigmas: tuple[float, ...]
    """Levels of a sample, falling to 0; a network call each but the last."""
    guidance_scale: float
    """Of the teacher, baked in."""

    @property
    def steps(self) -> int:
        """Network calls of a sample."""
        return len(self.sigmas) - 1


class Prior:
    """A trained prior. Make it with `load_prior`.

    Works on standardised latents; `unstandardise` brings them back to what a decoder takes.

    Attributes:
        digest: SHA-256 of its weights.
        encoder_digest, clip_digest: of the decoder and the CLIP that its latents and conditions came from.
        shape: (tokens, channels) of a latent.
        predicts: "latents", or "views": pictures' CLIP vectors in place of latents.
        distilled: how to sample it, if it was distilled.
    """

    def __init__(
        self, network: Network, shapes: Shapes, diffusion: DiffusionConfig, facts: dict[str, Any]
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.shapes, self.diffusion = shapes, diffusion
        self.digest, self.encoder_digest = str(facts["digest"]), str(facts["encoder"])
        self.clip_digest = str(facts["clip"])
        self.predicts: Literal["latents", "views"] = facts.get("predict", "latents")
        self.distilled: Distilled | None = facts.get("distilled")
        self.device = next(network.parameters()).device
        self.bf16 = False

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, channels) of a latent."""
        return self.shapes.tokens, self.shapes.channels

    def check(self, *, encoder_digest: str | None = None, clip_digest: str | None = None) -> None:
        """Raises UserError if a decoder or a CLIP of another digest is to be used with this prior."""
        for name, have, need in (
            ("encoder", encoder_digest, self.encoder_digest), ("CLIP", clip_digest, self.clip_digest)
        ):  # fmt: skip
            # A published checkpoint doesn't say which file its CLIP was in: an empty digest.
            if have is not None and need and have != need:
                raise UserError(
                    f"This prior was trained with the {name} {need[:12]}, but was given {have[:12]}: their "
                    f"numbers mean different things. Use the {name} of the prior's own run, or encode the "
                    "latents anew and train a prior on them."
                )

    def condition(
        self,
        text: TextEmbedding | None = None,
        image: Float[Tensor, "batch embed"] | Float[Tensor, "batch views embed"] | None = None,
        *,
        grid: Float[Tensor, "batch views cells grid_width"] | None = None,
        label: Int64[Tensor, " batch"] | None = None,
        batch: int | None = None,
    ) -> Condition:
        """Conditions for `denoise`: captions (`Clip.text`), pictures (`Clip.image`), classes, or neither.

        image: one vector a row, or several views'. grid: their grids (`Clip.grid`), for a prior that reads
        them. label: numbers of `shapes.classes`.
        batch: number of rows; needed when there is no condition. A single row is repeated to it.
        Raises ValueError when numbers of rows or widths don't fit, or a grid is missing or not expected.
        """
        given = (text.pooled if text else None, image, label)
        counts = [len(part) for part in given if part is not None]
        size = batch if batch is not None else max(counts, default=0)
        if size < 1 or any(count not in (1, size) for count in counts):
            raise ValueError(
                f"expected 1 or {size} rows of text, image and label conditions, got {counts}, batch {batch}"
            )
        shapes = self.shapes
        if text is None:
            tokens, mask = torch.zeros(size, 1, shapes.text_width), torch.zeros(size, 1, dtype=torch.bool)
            text = TextEmbedding(torch.zeros(size, shapes.clip_dim), tokens, mask)
        views = torch.zeros(size, 1, shapes.clip_dim) if image is None else image
        views = views[:, None] if views.ndim == 2 else views
        widths = (text.pooled.shape[-1], views.shape[-1], text.tokens.shape[-1])
        expected = (shapes.clip_dim, shapes.clip_dim, shapes.text_width)
        if widths != expected:
            raise ValueError(f"text, image and text tokens have widths {widths}; this prior knows {expected}")
        if image is not None and (0 if grid is None else grid.shape[-1]) != shapes.grid_width:
            raise ValueError(
                f"this prior reads pictures' grids of width {shapes.grid_width} (0: none), but was given "
                f"{'none' if grid is None else grid.shape[-1]}"
            )
        if label is not None and not bool(((label >= NO_LABEL) & (label < len(shapes.classes))).all()):
            raise ValueError(f"labels are numbers below {len(shapes.classes)}, got {label.tolist()}")
        dtype = self.network.standard_mean.dtype  # of matrices kept in half, float32

        def fitted(value: Tensor) -> Tensor:
            kind = dtype if value.is_floating_point() else value.dtype
            return value.expand(size, *value.shape[1:]).to(self.device, kind)

        return Condition(
            text_pooled=fitted(text.pooled), text_tokens=fitted(text.tokens), text_mask=fitted(text.mask),
            has_text=fitted(torch.full((size,), given[0] is not None)), image_pooled=fitted(views),
            has_view=fitted(torch.full((size, views.shape[1]), image is not None)),
            label=fitted(torch.full((size,), NO_LABEL) if label is None else label),
            image_grid=None if image is None or grid is None else fitted(grid),
        )  # fmt: skip

    def denoise(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch tokens channels"]:
        """The expected x_0 of x = x_0 + sigma eps, all standardised: the seam of `diffusion.samplers`.

        Shap-E's is clamped to [-1, 1], as its latents are, before any guidance.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            x0 = predict_x0(self.network, self.diffusion, x, sigma, condition)
        return x0.clamp(-1, 1) if self.network.published else x0

    def log_variance(
        self,
        x: Float[Tensor, "batch tokens channels"],
        start: Float[Tensor, " batch"],
        end: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Log variance of the step of x from noise level `start` to `end`: `samplers.LogVariance`.

        Raises ValueError for a prior that was trained without diffusion.learned_variance.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            answer = self.network(x, start, condition)
        share = split_answer(answer, self.diffusion)[1]
        if share is None:
            raise ValueError("this prior was trained without diffusion.learned_variance")
        return learned_log_variance(share.to(x.dtype), start, end)

    def use_bf16(self) -> None:
        """Computes in bfloat16 from now on, with weights to match (see `halve_weights`)."""
        halve_weights(self.network)
        self.bf16 = True

    def standardise(
        self, latent: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """From an encoder's latents to x_0."""
        return (latent - self.network.standard_mean) / self.network.standard_std

    def unstandardise(
        self, x0: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """From x_0 to a decoder's latents, clamped to [-1, 1], where the encoder's tanh keeps its own.

        Shap-E's aren't: guidance may take them out, and its decoder has always been shown them like that.
        """
        if self.network.published:
            return x0
        return (x0 * self.network.standard_std + self.network.standard_mean).clamp(-1, 1)

    def bounds(self) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "tokens channels"]]:
        """The least and the largest x_0 that an encoder's latents can have."""
        ends = torch.ones_like(self.network.standard_mean)
        return self.standardise(-ends[None])[0], self.standardise(ends[None])[0]


def load_prior(folder: Path, device: torch.device | str = "cpu", *, ema: float | None = None) -> Prior:
    """Loads a finished prior run; raises UserError if `folder` isn't one.

    ema: which of the run's averages to use (train.ema_decay and train.ema_extra); None: train.ema_decay's.
    """
    meta = read_meta(folder, stage="prior")
    saved = read_json(folder / "prior.json", advice="Copy it again, or train the prior again.")
    shapes, config, diffusion, distilled = _read_saved(saved, folder / "prior.json")
    weights = folder / ("weights.safetensors" if ema is None else extra_weights(ema))
    if ema is not None and not weights.is_file():
        have = ", ".join(sorted(path.name for path in folder.glob("weights*.safetensors")))
        raise UserError(f"{folder} keeps no average of decay {ema:g}; it has {have}.")
    expected = meta["weights_digest"] if ema is None else meta.get("extra_digests", {}).get(weights.name)
    digest = checked_digest(weights, expected)
    check_fits(lambda: make_network(shapes, config, learned_variance=diffusion.learned_variance), weights)
    if config.kind == "shapeloom":
        network = make_network(shapes, config, learned_variance=diffusion.learned_variance)
        network.load_state_dict(read_tensors(weights))
    else:
        # Large: neither random numbers first nor a copy.
        with torch.device("meta"):
            network = make_network(shapes, config, learned_variance=diffusion.learned_variance)
        network.load_state_dict(read_tensors(weights), assign=True)
        network.standard_mean = torch.zeros(shapes.tokens, shapes.channels)
        network.standard_std = torch.ones(shapes.tokens, shapes.channels)
    facts = {**meta["inputs"], "predict": saved.get("predict", "latents"), "digest": digest}
    return Prior(network.to(device), shapes, diffusion, facts | {"distilled": distilled})


def _read_saved(
    saved: dict[str, Any], path: Path
) -> tuple[Shapes, NetworkConfig, DiffusionConfig, Distilled | None]:
    """What a prior.json says; raises UserError that names it and the key for what no prior has."""
    try:
        shapes, distilled = read_shapes(saved["shapes"]), None
        if "distilled" in saved:
            sigmas, scale = saved["distilled"]["sigmas"], saved["distilled"]["guidance_scale"]
            distilled = Distilled(tuple(map(float, sigmas)), float(scale))
            if len(sigmas) > MAX_DISTILLED_STEPS:
                raise ValueError(f"{len(sigmas)} distilled noise levels, more than {MAX_DISTILLED_STEPS}")
        parts = saved["network"], saved["diffusion"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} doesn't describe a prior ({type(error).__name__}: {error}). Copy it again, or train the "
            "prior again."
        ) from error
    network = validated(NetworkConfig, parts[0], f"`network` of {path}")
    return shapes, network, validated(DiffusionConfig, parts[1], f"`diffusion` of {path}"), distilled


def read_shapes(saved: dict[str, Any]) -> Shapes:
    """Shapes as prior.json holds them; raises ValueError for sizes that no prior has."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    shapes = Shapes(**fields)
    sizes = {name: getattr(shapes, name) for name in ("tokens", "channels", "clip_dim", "text_width")}
    for name, size in sizes.items() | {("grid_width", shapes.grid_width + 1)}:
        if not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
            raise ValueError(f"shapes.{name} must be a number from 1 to {MAX_SIZE:,}, got {size!r}")
    if shapes.layers and (min(shapes.layers) < 1 or sum(shapes.layers) != shapes.tokens):
        raise ValueError(f"shapes.layers must share out the {shapes.tokens} tokens, got {shapes.layers}")
    return shapes
