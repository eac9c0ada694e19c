"""Diffusion over whole steps i = 0 .. n-1, as published checkpoints were trained with it (Shap-E, DDPM).

    q(x_i | x_0) = N(sqrt(a_i) x_0, (1 - a_i) I),   a_i = prod_{j <= i} (1 - beta_j)   ("alphas_cumprod")

All in float64, but for what `DiscreteSchedule` is given.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

MAX_BETA = 0.999
"""Beyond which a step would leave nothing of the one before (Nichol & Dhariwal 2021)."""


@dataclass(frozen=True)
class DiscreteProcess:
    """The coefficients of every step."""

    betas: Float64[Tensor, " steps"]
    alphas_cumprod: Float64[Tensor, " steps"]

    @property
    def sigmas(self) -> Float64[Tensor, " steps"]:
        """Noise levels in the variance-exploding frame, sqrt(1 / a - 1)."""
        return (1 / self.alphas_cumprod - 1).sqrt()

    def step_of(self, sigma: Float[Tensor, " *batch"]) -> Float64[Tensor, " *batch"]:
        """The step (a fraction between two) of noise level sigma, linear in `alphas_cumprod`.

        As in the reference; 0 and n-1 beyond the schedule's ends.
        """
        # The reference rounds 1 / (sigma^2 + 1) to float32.
        level = (1 / (sigma.float() ** 2 + 1)).double()
        rising = self.alphas_cumprod.flip(0).to(sigma.device)
        above = torch.searchsorted(rising, level.contiguous()).clamp(1, len(rising) - 1)
        low, high = rising[above - 1], rising[above]
        step = len(rising) - 1 - (above - 1 + (level - low) / (high - low))
        return step.clamp(0, len(rising) - 1)


class DiscreteSchedule:
    """A `Schedule` of whole steps, as published picture models have: time i / n is step i = 0 .. n-1.

    Times between steps stand for the nearest one. alphas_cumprod: of each step; its precision is kept, so
    that x_t is bit for bit what the model was trained on.
    """

    keeps_variance = True

    def __init__(self, alphas_cumprod: Float[Tensor, " steps"]) -> None:
        self.alphas_cumprod = alphas_cumprod

    def step(self, t: Float[Tensor, " *batch"]) -> Int64[Tensor, " *batch"]:
        """The step of time t in [0, 1]."""
        num = len(self.alphas_cumprod)
        return (t * num).round().long().clamp(0, num - 1)

    def alpha(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """sqrt(a)."""
        return self._at(t) ** 0.5

    def sigma(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """sqrt(1 - a)."""
        return (1 - self._at(t)) ** 0.5

    def log_snr(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """log(a / (1 - a))."""
        return torch.logit(self._at(t))

    def time(self, ratio: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """The time of the step whose noise level is nearest to `ratio` (in a = 1 / (1 + ratio^2))."""
        rising = self.alphas_cumprod.double().flip(0).to(ratio.device)
        level = 1 / (1 + ratio.double() ** 2)
        above = torch.searchsorted(rising, level.contiguous()).clamp(1, len(rising) - 1)
        nearer_below = level - rising[above - 1] < rising[above] - level
        step = len(rising) - 1 - torch.where(nearer_below, above - 1, above)
        return (step.double() / len(rising)).to(ratio.dtype)

    def _at(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod.to(t.device)[self.step(t)]


@lru_cache(1)
def exponential_process(num_steps: int = 1024) -> DiscreteProcess:
    """Shap-E's prior: alpha_bar(u) = exp(-12 u), noise levels 0.109 to 403.

    beta_i = 1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), at most MAX_BETA.
    """
    alpha_bar = [math.exp(-12 * (i / num_steps)) for i in range(num_steps + 1)]
    betas = torch.tensor(
        [min(1 - alpha_bar[i + 1] / alpha_bar[i], MAX_BETA) for i in range(num_steps)], dtype=torch.float64
    )
    return DiscreteProcess(betas, (1 - betas).cumprod(0))
