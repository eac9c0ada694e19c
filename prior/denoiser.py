"""The denoising transformer of the prior.

The network sees a noisy latent [batch, tokens, channels] and a noise level, and says what `objectives` asks
for. Its input is brought to unit variance and the default target has unit variance too (EDM's preconditioning
for data of unit variance). It is told noise levels alone, so any sampler's steps fit it.

    noise level                                      -> adaptive layer norms (AdaLN-zero)
    pooled CLIP vectors of text and views, the class -> adaptive layer norms too, or tokens of their own
    CLIP's text tokens and grids, one learned token  -> cross-attention, or tokens of their own

With `components` the answer is x_0 in the span of the training latents' principal axes: the network's, scaled
as EDM's c_out, plus a skip of the input, EDM's c_skip = 1 / (1 + sigma^2) times Wiener's lambda / (lambda +
sigma^2) along each axis. Where noise is low the skip hands on what the input says along axes that latents use
and drops the rest, which a short training doesn't learn to; where it is high the network is on its own.

Conditions may be missing: each has a learned stand-in, and a latent without any is the unconditional model.
Tokens of their own stand before the latent's in every self-attention (Shap-E's way).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shapeloom.config import Config, UserError
from shapeloom.denoising import MAX_SIZE, NO_LABEL, Condition, DenoisingNetwork, Shapes
from shapeloom.nn.transformer import Activation, TransformerBlock


class NetworkConfig(Config):
    """Size of the denoiser."""

    kind: Literal["shapeloom", "shap_e_text", "shap_e_image"] = Field(
        "shapeloom", description="ours, or Shap-E's published networks, of which width, depth, heads and "
        "checkpointing alone can be chosen"
    )  # fmt: skip
    width: int = Field(256, ge=8, le=MAX_SIZE, description="channels of a token")
    depth: int = Field(6, ge=1, le=512, description="transformer blocks")
    heads: int = Field(4, ge=1, le=512, description="attention heads")
    group: int = Field(
        default=1, ge=1, le=4096, description="neighbouring latent tokens that the network joins to one"
    )
    components: int = Field(
        default=0, ge=0, le=MAX_SIZE,
        description="principal components of the latents, at most, shared out among the field's layers, "
        "that answers keep to and along which the input skips the network; 0: no skip. For target=x0",
    )  # fmt: skip
    activation: Activation = Field("gelu", description="of the feed-forward layers")
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


class Denoiser(DenoisingNetwork):
    """A transformer over latent tokens; `standard_*` buffers hold the latents' mean and spread."""

    config: NetworkConfig
    frequencies: Tensor
    basis: Tensor
    """Buffer [components, tokens * channels] of orthonormal rows, of standardised latents."""
    variance: Tensor
    """Buffer [components]: the training latents' along each."""
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
        if shapes.is_set and (self.group > 1 or config.components):
            raise UserError(
                f"network.group={self.group} and network.components={config.components} go by tokens' order, "
                "and points of a cloud have none: use 1 and 0."
            )
        # Points are told apart by where they are alone: the network doesn't change if they change places.
        self.position = None
        if not shapes.is_set:
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
        if config.components:
            self.register_buffer("basis", torch.zeros(config.components, shapes.tokens * shapes.channels))
            self.register_buffer("variance", torch.ones(config.components))
        self._make_optional_parts(shapes, config)

    def _make_optional_parts(self, shapes: Shapes, config: NetworkConfig) -> None:
        """What a prior has for field layers, classes, grids and tokens of conditions; the last row of
        `label` stands for no class."""
        width = config.width
        # Layer of the field that each of the network's tokens belongs to: `position` tells its row.
        # On the CPU even where the network is made without numbers: no checkpoint holds this.
        counts = torch.tensor(shapes.layers, dtype=torch.long, device="cpu")
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
        """See `DenoisingNetwork`."""
        level = torch.log(sigma)[:, None] / 4 * self.frequencies  # /4 as EDM's c_noise
        modulation = self.level(torch.cat([level.sin(), level.cos()], dim=-1))
        unit = x / torch.hypot(sigma, torch.ones_like(sigma))[:, None, None]
        hidden = self.inp(unit.unflatten(1, (-1, self.group)).flatten(2))
        if self.position is not None:
            hidden = hidden + self.position
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
        answer = answer.unflatten(2, (self.group, -1)).flatten(1, 2)
        return self._with_skip(x, sigma, answer) if self.config.components else answer

    def _with_skip(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"],
        answer: Float[Tensor, "batch tokens channels"],
    ) -> Float[Tensor, "batch tokens channels"]:  # fmt: skip
        """x_0 within the components' span: the network's answer and the skip."""
        with torch.autocast(x.device.type, enabled=False):
            level = sigma.to(x.dtype)[:, None]
            basis, variance = self.basis.to(x.dtype), self.variance.to(x.dtype)
            skip = variance / (variance + level**2) / (1 + level**2)
            own = level / torch.hypot(level, torch.ones_like(level))
            kept = skip * (x.flatten(1) @ basis.T) + own * (answer.to(x.dtype).flatten(1) @ basis.T)
            return (kept @ basis).view_as(x)

    def parts(self) -> tuple[nn.ModuleList, list[nn.Module]]:
        """See `DenoisingNetwork`."""
        return self.blocks, [self.out_modulate, self.out]

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
