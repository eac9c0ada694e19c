"""Shap-E's prior, text300M and image300M, under the names of its published checkpoints.

A transformer over 1,024 latent tokens, with the noise level and the condition as tokens before them: a
caption's CLIP ViT-L/14 vector, or the 256 cells of a picture's grid (`Clip.grid`). It predicts x_0, and the
variance of a step of the discrete process.
Jun & Nichol 2023, "Shap-E", section 4.3; its parts are Point-E's (Nichol et al. 2022).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapeloom.config import Config, UserError
from shapeloom.denoising import Condition, DenoisingNetwork, Shapes
from shapeloom.diffusion.discrete import exponential_process
from shapeloom.shap_e.blocks import Mlp, SelfTransformer, initialise

Reads = Literal["text", "image"]
GRID_CELLS = 256
"""Of a picture, in CLIP ViT-L/14: 16 x 16 patches."""


class ShapEPriorConfig(Config):
    """What one of the networks reads, and its sizes."""

    reads: Reads
    width: int
    depth: int
    heads: int


class _Transformer(nn.Module):
    """`wrapped.*` of the published checkpoints."""

    def __init__(self, shapes: Shapes, size: ShapEPriorConfig) -> None:
        super().__init__()
        width = size.width
        self.pos_emb = nn.Parameter(0.05 * torch.randn(shapes.tokens, width))
        self.time_embed = Mlp(width)
        self.ln_pre = nn.LayerNorm(width)
        self.backbone = SelfTransformer(width, size.heads, size.depth)
        self.ln_post = nn.LayerNorm(width)
        self.input_proj = nn.Linear(shapes.channels, width)
        self.output_proj = nn.Linear(width, 2 * shapes.channels)
        self.clip_embed: nn.Module = (
            nn.Linear(shapes.clip_dim, width)
            if size.reads == "text"
            else nn.Sequential(nn.LayerNorm(shapes.grid_width), nn.Linear(shapes.grid_width, width))
        )
        initialise(self.backbone, width)
        initialise(self.time_embed, width)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)


class ShapEDenoiser(DenoisingNetwork):
    """Says what x_0 is; `raw` also the variance. Weights as published, in float32 or, halved, under autocast.

    It is told the exact time of a noise level; the reference rounds it down to a whole step.
    """

    sigma_range = (0.1086, 160.0)
    """The least noise that the published models were trained on, and what the reference starts from."""
    standardises = False
    clamps = "x0"
    """Samples aren't: guidance may take them out, and the decoder has always been shown them like that."""

    def __init__(
        self, shapes: Shapes, size: ShapEPriorConfig, *,
        checkpointing: bool = False, learned_variance: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.learned_variance = learned_variance
        self.shapes, self.size, self.config, self.checkpointing = shapes, size, size, checkpointing
        self.reads: Reads = size.reads
        self.width = size.width
        self.wrapped = _Transformer(shapes, size)
        # On the CPU even where the network is made without numbers: no checkpoint holds these.
        for name, value in (("standard_mean", 0.0), ("standard_std", 1.0)):
            number = torch.tensor(value, device="cpu")
            self.register_buffer(name, number.expand(shapes.tokens, shapes.channels), persistent=False)

    def parts(self) -> tuple[nn.ModuleList, list[nn.Module]]:
        """See `DenoisingNetwork`."""
        return self.wrapped.backbone.resblocks, [self.wrapped.ln_post, self.wrapped.output_proj]

    def forward(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch tokens outputs"]:
        """The expected x_0 of x = x_0 + sigma eps, followed by the variance's share if `learned_variance`."""
        step = exponential_process().step_of(sigma).float()
        unit = x / torch.hypot(sigma, torch.ones_like(sigma))[:, None, None]
        x0, share = self.raw(unit, step, self.condition_input(condition))
        return torch.cat([x0, share], dim=-1) if self.learned_variance else x0

    def condition_input(self, condition: Condition) -> Tensor:
        """What `raw` takes: captions' vectors [batch, embed], or grids [batch, cells, grid_width].

        Zeros where there is no condition. Raises UserError for a condition that this model doesn't read.
        """
        asked_text, asked_view = bool(condition.has_text.any()), bool(condition.has_view.any())
        if self.reads == "text":
            if asked_view:
                raise UserError(
                    "Shap-E's text model reads no pictures: leave the image out, or use image300M."
                )
            return condition.text_pooled * condition.has_text[:, None]
        if asked_text:
            raise UserError('Shap-E\'s image model reads no captions: give an image with the prompt "".')
        if condition.image_grid is None:
            return condition.image_pooled.new_zeros(
                len(condition.has_text), GRID_CELLS, self.shapes.grid_width
            )
        if condition.image_grid.shape[1] != 1:
            raise UserError(
                f"Shap-E's image model reads one picture a shape, got {condition.image_grid.shape[1]}."
            )
        return condition.image_grid[:, 0] * condition.has_view[:, :1, None]

    def raw(
        self,
        x: Float[Tensor, "batch tokens channels"],
        step: Float[Tensor, " batch"],
        embedding: Float[Tensor, "batch clip_dim"] | Float[Tensor, "batch cells grid_width"],
    ) -> tuple[Float[Tensor, "batch tokens channels"], Float[Tensor, "batch tokens channels"]]:
        """Returns x_0 and the variance's share (`diffusion.variance`) of x of unit size.

        step: 0 to 1023, fractions allowed. embedding: unit vectors, or grids before the tower's last norm.
        """
        net = self.wrapped
        time = net.time_embed(_sinusoids(step, self.width))[:, None]
        latents = net.input_proj(x) + net.pos_emb
        if self.reads == "text":
            # Entries of a unit vector become of size one.
            caption = net.clip_embed(math.sqrt(embedding.shape[-1]) * embedding)[:, None]
            before = [caption, time]
        else:
            before = [time, net.clip_embed(embedding)]
        hidden = net.ln_pre(torch.cat([*before, latents], dim=1))
        hidden = net.backbone(hidden, checkpointing=self.checkpointing)
        answer = net.output_proj(net.ln_post(hidden)[:, -x.shape[1] :])
        x0, share = answer.chunk(2, dim=-1)
        return x0, share


def _sinusoids(step: Float[Tensor, " batch"], width: int) -> Float[Tensor, "batch width"]:
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=step.device) / half)
    angles = step.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
