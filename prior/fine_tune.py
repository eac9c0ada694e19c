"""Starting a prior from a finished one, on one's own latents, and what that makes it forget."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from prior.denoiser import DiffusionConfig, Network, NetworkConfig, load_prior, make_network
from prior.latents import Latents
from prior.lora import add_lora
from shapeloom.config import Config, UserError
from shapeloom.log import get_logger
from shapeloom.seed import derive_seed

log = get_logger("prior")
MAX_FORGETTING = 0.1
"""Growth of the loss on the old latents beyond which fine-tuning warns."""


class FineTuneConfig(Config):
    """Starting from a finished prior instead of from nothing."""

    init_from: Path | None = Field(default=None, description="folder of the finished prior to start from")
    lora_rank: int = Field(
        default=0, ge=0, description="rank of the changes to the blocks' matrices; 0: all weights train"
    )
    old_latents: Path | None = Field(
        default=None, description="latents that init_from was trained on, to measure what is forgotten"
    )
    replay: float = Field(default=0.25, ge=0, lt=1, description="share of samples that are old ones")

    @model_validator(mode="after")
    def _needs_a_start(self) -> "FineTuneConfig":
        if self.init_from is None and (self.lora_rank or self.old_latents):
            raise ValueError("lora_rank and old_latents mean nothing without init_from")
        return self


def start_from(
    config: FineTuneConfig, latents: Latents, header: Mapping[str, Any], *,
    network: NetworkConfig, diffusion: DiffusionConfig, seed: int,
) -> Network:  # fmt: skip
    """A finished prior's network, ready to be trained on other latents; its statistics stay.

    Raises UserError when latents, CLIP, network or objective are others than the prior's.
    """
    assert config.init_from is not None
    folder, prior = config.init_from, load_prior(config.init_from)
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
    model = make_network(prior.shapes, network)
    model.load_state_dict(prior.network.state_dict())
    if config.lora_rank:
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed("lora", seed))
            model.requires_grad_(requires_grad=False)
            add_lora(model.blocks, config.lora_rank)
    return model


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
