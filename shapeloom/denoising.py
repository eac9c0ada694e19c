"""What a denoising network is told, and what it must offer to be trained, fine-tuned and sampled.

It may be told a caption, pictures, a class, any mixture of them, or nothing.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from shapeloom.config import Config

NO_LABEL = -1
MAX_SIZE = 16384
"""Of tokens, channels and widths; the largest published prior has 1,024."""


@dataclass(frozen=True)
class Shapes:
    """What a prior's latents and conditions look like; saved in its prior.json."""

    tokens: int
    channels: int
    clip_dim: int
    text_width: int
    grid_width: int = 0
    """Channels of a token of a picture's grid; 0: the prior reads no grids."""
    classes: tuple[str, ...] = ()
    """Names of the class labels that the prior knows, in their order."""
    layers: tuple[int, ...] = ()
    """How many latent tokens belong to each hidden layer of the field, in their order; empty: unknown."""
    is_set: bool = False
    """Whether the tokens have no order, as points of a cloud have none."""

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Shapes":
        """From JSON; raises TypeError for unknown keys, ValueError for sizes that no prior has."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        shapes = cls(**values)
        sizes = {name: getattr(shapes, name) for name in ("tokens", "channels", "clip_dim", "text_width")}
        for name, size in sizes.items() | {("grid_width", shapes.grid_width + 1)}:
            if not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
                raise ValueError(f"shapes.{name} must be a number from 1 to {MAX_SIZE:,}, got {size!r}")
        if shapes.layers and (min(shapes.layers) < 1 or sum(shapes.layers) != shapes.tokens):
            raise ValueError(f"shapes.layers must share out the {shapes.tokens} tokens, got {shapes.layers}")
        return shapes


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch.

    Rows of text where `has_text` is False are ignored, so are views where `has_view` is, and a label of -1.
    """

    text_pooled: Float[Tensor, "batch embed"]
    text_tokens: Float[Tensor, "batch length text_width"]
    text_mask: Bool[Tensor, "batch length"]
    has_text: Bool[Tensor, " batch"]
    image_pooled: Float[Tensor, "batch views embed"]
    has_view: Bool[Tensor, "batch views"]
    label: Int64[Tensor, " batch"]
    image_grid: Float[Tensor, "batch views cells grid_width"] | None = None
    """For priors that read grids."""

    def without(self) -> "Condition":
        """The null condition for the same batch."""
        return replace(
            self,
            has_text=torch.zeros_like(self.has_text),
            has_view=torch.zeros_like(self.has_view),
            label=torch.full_like(self.label, NO_LABEL),
        )


FIELDS = ("text_pooled", "text_tokens", "text_mask", "has_text", "image_pooled", "has_view", "label")
"""The entries of a training batch that make a `Condition`; `image_grid` is there for priors that read it."""


def from_batch(batch: dict[str, Tensor]) -> Condition:
    """The condition that a training batch holds."""
    return Condition(**{name: batch[name] for name in FIELDS}, image_grid=batch.get("image_grid"))


def select(condition: Condition, rows: Int64[Tensor, " chosen"]) -> Condition:
    """Those rows of a batch's condition."""
    parts: dict[str, Any] = {}
    for field in fields(condition):
        part = getattr(condition, field.name)
        parts[field.name] = None if part is None else part[rows]
    return Condition(**parts)


class DenoisingNetwork(nn.Module, ABC):
    """What trainer, fine-tuning and samplers ask of a network; all that they know of it."""

    reads: Literal["text", "image", "both"] = "both"
    """The conditions that it can be shown; "image": one picture a shape."""
    sigma_range: tuple[float, float] = (0.02, 80.0)
    """Noise levels that samplers walk through."""
    standardises: bool = True
    """Whether `standard_*` take the mean and spread of what it learns; else they stay 0 and 1."""
    clamps: Literal["x0", "samples", "nothing"] = "samples"
    """What is kept within [-1, 1]: each expected x_0, before guidance; samples, as a tanh keeps latents."""
    shapes: Shapes
    config: Config
    """The sizes that made it."""
    checkpointing: bool
    """Whether it computes activations again in the backward pass; may be changed."""
    standard_mean: Tensor
    standard_std: Tensor
    """Buffers [tokens, channels]."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch tokens outputs"]:
        """What it says of x = x_0 + sigma eps (x_0 standardised), sigma > 0: see `diffusion.objectives`.

        Where it has learned the variance too, channels of its share follow: see `diffusion.variance`.
        """

    @abstractmethod
    def parts(self) -> tuple[nn.ModuleList, list[nn.Module]]:
        """Returns its blocks and what comes after them, for fine-tuning some of them."""
