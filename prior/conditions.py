"""What a prior may be told of a shape: a caption, pictures, a class, any mixture of them, or nothing."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NO_LABEL = -1


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
