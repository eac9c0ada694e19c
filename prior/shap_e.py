"""Shap-E's prior, text300M and image300M, under the names of its published checkpoints.

A transformer over 1,024 latent tokens, with the noise level and the condition as tokens before them: a
caption's CLIP ViT-L/14 vector, or the 256 cells of a picture's grid (`Clip.grid`). It predicts x_0, and the
variance of a step of the discrete process. It behaves as the prior's other network (`Denoiser`): it is told
noise levels, and takes x = x_0 + sigma eps.
Jun & Nichol 2023, "Shap-E", section 4.3; its parts are Point-E's (Nichol et al. 2022).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prior.conditions import Condition, Shapes
from shapeloom.config import Config, UserError
from shapeloom.diffusion.discrete import exponential_process
from shapeloom.nn.shap_e import Mlp, SelfTransformer, initialise

Reads = Literal["text", "image"]
GRID_CELLS = 256
"""Of a picture, in CLIP ViT-L/14: 16 x 16 patches."""


class _Transformer(nn.Module):
    """`wrapped.*` of the published checkpoints."""

    def __init__(self, shapes: Shapes, width: int, depth: int, heads: int, reads: Reads) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(0.05 * torch.randn(shapes.tokens, width))
        self.time_embed = Mlp(width)
        self.ln_pre = nn.LayerNorm(width)
        self.backbone = SelfTransformer(width, heads, depth)
        self.ln_post = nn.LayerNorm(width)
        self.input_proj = nn.Linear(shapes.channels, width)
        self.output_proj = nn.Linear(width, 2 * shapes.channels)
        self.clip_embed: nn.Module = (
            nn.Linear(shapes.clip_dim, width)
            if reads == "text"
            else nn.Sequential(nn.LayerNorm(shapes.grid_width), nn.Linear(shapes.grid_width, width))
        )
        initialise(self.backbone, width)
        initialise(self.time_embed, width)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)


class ShapEDenoiser(nn.Module):
    """Says what x_0 is; `raw` also the variance. Weights as published, in float32 or, halved, under autocast.

    It is told the exact time of a noise level; the reference rounds it down to a whole step.
    """

    published = True
    sigma_range = (0.1086, 160.0)
    """The least noise that the published models were trained on, and what the reference starts from."""
    config: Config
    """The `NetworkConfig` that made it."""
    standard_mean: Tensor
    standard_std: Tensor

    def __init__(
        self, shapes: Shapes, *, width: int, depth: int, heads: int, reads: Reads,
        checkpointing: bool = False, learned_variance: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.learned_variance = learned_variance
        self.shapes, self.reads, self.width, self.checkpointing = shapes, reads, width, checkpointing
        self.wrapped = _Transformer(shapes, width, depth, heads, reads)
        # Latents come as they are; the trainer and Prior ask every network.
        self.register_buffer("standard_mean", torch.zeros(shapes.tokens, shapes.channels), persistent=False)
        self.register_buffer("standard_std", torch.ones(shapes.tokens, shapes.channels), persistent=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, for fine-tuning some of them."""
        return self.wrapped.backbone.resblocks

    @property
    def head(self) -> list[nn.Module]:
        """What comes after the blocks."""
        return [self.wrapped.ln_post, self.wrapped.output_proj]

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
