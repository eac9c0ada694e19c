"""VSD's own network: the 2-D model with low-rank changes, taught what the particles look like."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prior.lora import LowRank, add_lora, without_lora
from sampling.refine.config import EstimatorConfig
from sampling.refine.guides import Guide
from shapeloom.diffusion.distillation import own_loss
from shapeloom.seed import derive_seed


class OwnNetwork:
    """Shares its frozen weights with the guide, which must be asked through `guide_denoise` from now on."""

    def __init__(self, guide: Guide, config: EstimatorConfig, seed: int) -> None:
        self.guide = guide
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("lora", seed))
            guide.network.requires_grad_(False)
            add_lora(guide.network, config.lora_rank)
            parts = guide.own_parts()
        changes = [module for module in guide.network.modules() if isinstance(module, LowRank)]
        self.parameters: list[nn.Parameter] = [*parts]
        for change in changes:
            self.parameters += [change.a, change.b]
        self.optimiser = torch.optim.AdamW(self.parameters, config.lora_rate, weight_decay=0.0)

    def guide_denoise(self, x: Tensor, sigma: Float[Tensor, " batch"], condition: Any) -> Tensor:
        """The guide's answer, without the changes."""
        with without_lora(self.guide.network):
            return self.guide.denoise(x, sigma, condition)

    def learn(self, x: Tensor, sigma: Float[Tensor, " batch"], eps: Tensor, condition: Any) -> float:
        """Takes a step towards pictures x of the particles; returns the loss."""
        with torch.enable_grad():
            loss = own_loss(self.guide.own_denoise, x, sigma, eps, condition)
            self.optimiser.zero_grad()
            loss.backward()
        self.optimiser.step()
        return float(loss)
