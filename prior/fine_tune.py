"""Starting a prior from a finished one, on one's own latents, and what that makes it forget."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from prior.denoiser import NetworkConfig
from prior.latents import Latents, MixtureConfig
from prior.lora import add_lora
from prior.model import Prior
from shapeloom.config import Config, UserError
from shapeloom.denoising import DenoisingNetwork
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.log import get_logger
from shapeloom.seed import derive_seed
from shapeloom.storage import Location

log = get_logger("prior")
MAX_FORGETTING = 0.1
"""Growth of the loss on the old latents beyond which fine-tuning warns."""


class FineTuneConfig(Config):
    """Starting from a finished prior instead of from nothing."""

    init_from: Path | None = Field(default=None, description="folder of the finished prior to start from")
    lora_rank: int = Field(
        default=0, ge=0, description="rank of the changes to the blocks' matrices; 0: all weights train"
    )
    last_layers: int = Field(
        default=0, ge=0, description="only so many of the last blocks, and what follows them, train; 0: all"
    )
    old_latents: Location | None = Field(
        default=None, description="latents that init_from was trained on, to measure what is forgotten"
    )
    replay: float = Field(default=0.25, ge=0, lt=1, description="share of samples that are old ones")

    @model_validator(mode="after")
    def _needs_a_start(self) -> "FineTuneConfig":
        if self.init_from is None and (self.lora_rank or self.last_layers or self.old_latents):
            raise ValueError("lora_rank, last_layers and old_latents mean nothing without init_from")
        return self


def start_from(
    prior: Prior, config: FineTuneConfig, latents: Latents, header: Mapping[str, Any], *,
    network: NetworkConfig, diffusion: DiffusionConfig, seed: int,
) -> DenoisingNetwork:  # fmt: skip
    """The network of `prior`, which is no prior any more: ready to be trained on other latents.

    Its statistics stay. Raises UserError when latents, CLIP, network or objective are others than its own.
    """
    folder = config.init_from
    prior.check(encoder_digest=header["encoder"], clip_digest=header["clip"])
    # Latents that know the field's layers fit a prior that doesn't.
    if replace(latents.shapes, layers=prior.shapes.layers) != prior.shapes:
        raise UserError(
            f"The prior in {folder} knows {prior.shapes}, but these latents are {latents.shapes}. Encode "
            "them as the prior's were, and set mixture.grid and mixture.labels as it did."
        )
    for name, theirs, ours in (
        ("network", prior.network.config, network), ("diffusion", prior.diffusion, diffusion)
    ):  # fmt: skip
        # Computing activations again changes nothing but memory.
        if theirs.model_dump(exclude={"checkpointing"}) != ours.model_dump(exclude={"checkpointing"}):
            raise UserError(
                f"The prior in {folder} was trained with {name}: {theirs.model_dump()}, but this config says "
                f"{ours.model_dump()}. Use the preset that it was trained with."
            )
    model = prior.network.train().requires_grad_(True)
    model.checkpointing = network.checkpointing
    _choose_what_trains(model, config, seed)
    return model


def _choose_what_trains(model: DenoisingNetwork, config: FineTuneConfig, seed: int) -> None:
    """Freezes the rest."""
    blocks, head = model.parts()
    if config.last_layers > len(blocks):
        raise UserError(f"fine_tune.last_layers={config.last_layers}, of {len(blocks)} blocks.")
    last = blocks[-config.last_layers :]  # of 0: all
    if config.lora_rank:
        model.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed("lora", seed))
            add_lora(last, config.lora_rank)
    elif config.last_layers:
        model.requires_grad_(False)
        for part in (last, *head):
            part.requires_grad_(True)


def check_conditions(model: DenoisingNetwork, mixture: MixtureConfig, sources: Sequence[Latents]) -> None:
    """Raises UserError for conditions that the network can't be shown."""
    if model.reads == "text" and (mixture.image_only or mixture.text_and_image):
        raise UserError(
            "This network reads captions alone: set mixture.image_only=0 mixture.text_and_image=0."
        )
    if model.reads == "text" and any(source.num_captionless for source in sources):
        raise UserError(
            "This network reads captions alone, but some of the latents have none: give every asset a "
            "caption (`captions.csv`), and prepare and encode the data again."
        )
    alone = mixture.no_condition + mixture.image_only
    if model.reads == "image" and (abs(alone - 1) > 1e-6 or mixture.max_views > 1):
        raise UserError(
            "This network reads one picture alone: set mixture.no_condition=0.1 "
            "mixture.image_only=0.9 mixture.text_and_image=0 mixture.max_views=1."
        )


def warn_of_forgetting(before: dict[str, float], after: dict[str, float]) -> None:
    """Logs how the loss on the old latents has changed; `before` and `after` are of `PriorTask.measure`."""
    if "old/loss" not in before:
        return
    growth = after["old/loss"] / before["old/loss"] - 1
    log.info("loss on the old latents: %.4f before, %.4f after", before["old/loss"], after["old/loss"])
    if growth > MAX_FORGETTING:
        log.warning(
            "fine-tuning raised the loss on the old latents by %.0f%%: raise fine_tune.replay, lower "
            "train.learning_rate or train.steps, or use fine_tune.lora_rank", 100 * growth,
        )  # fmt: skip
