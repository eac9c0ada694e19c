"""Diffusion over whole steps i = 0 .. n-1, as published checkpoints were trained with it (Shap-E, DDPM).

    q(x_i | x_0) = N(sqrt(a_i) x_0, (1 - a_i) I),   a_i = prod_{j <= i} (1 - beta_j)   ("alphas_cumprod")

A step's posterior q(x_{i-1} | x_i, x_0) has mean c1 x_0 + c2 x_i (Ho et al. 2020, eq. 7); its variance may be
learned as a share v in [-1, 1] between its two bounds (Nichol & Dhariwal 2021, eq. 15). All in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

MAX_BETA = 0.999
"""Beyond which a step would leave nothing of the one before (Nichol & Dhariwal 2021)."""


@dataclass(frozen=True)
class DiscreteProcess:
    """The coefficients of every step."""

    betas: Float64[Tensor, " steps"]
    alphas_cumprod: Float64[Tensor, " steps"]
    posterior_mean_coef1: Float64[Tensor, " steps"]
    posterior_mean_coef2: Float64[Tensor, " steps"]
    posterior_variance: Float64[Tensor, " steps"]
    posterior_log_variance_clipped: Float64[Tensor, " steps"]
    """Step 0, whose variance is 0, takes step 1's."""

    @property
    def sigmas(self) -> Float64[Tensor, " steps"]:
        """Noise levels in the variance-exploding frame, sqrt(1 / a - 1)."""
        return (1 / self.alphas_cumprod - 1).sqrt()

    def add_noise(
        self,
        x0: Float[Tensor, " batch *shape"],
        eps: Float[Tensor, " batch *shape"],
        step: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch *shape"]:
        """A sample of q(x_i | x_0)."""
        kept = _at(self.alphas_cumprod.sqrt(), step, x0)
        return kept * x0 + _at((1 - self.alphas_cumprod).sqrt(), step, x0) * eps

    def posterior_mean(
        self,
        x0: Float[Tensor, " batch *shape"],
        x: Float[Tensor, " batch *shape"],
        step: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch *shape"]:
        """Mean of q(x_{i-1} | x_i = x, x_0)."""
        coef1, coef2 = self.posterior_mean_coef1, self.posterior_mean_coef2
        return _at(coef1, step, x0) * x0 + _at(coef2, step, x) * x

    def learned_log_variance(
        self, share: Float[Tensor, " batch *shape"], step: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch *shape"]:
        """Log variance of a step from what a network says in [-1, 1]: -1 the least, 1 beta."""
        f = (share + 1) / 2
        low = _at(self.posterior_log_variance_clipped, step, share)
        return f * _at(self.betas.log(), step, share) + (1 - f) * low

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


def _at(values: Tensor, step: Tensor, like: Tensor) -> Tensor:
    """values[step] in the type and with as many axes as `like`."""
    chosen = values.to(like.device)[step.long()].to(like.dtype)
    return chosen.reshape(-1, *(1,) * (like.ndim - 1))


def _process(alpha_bar: Callable[[float], float], num_steps: int) -> DiscreteProcess:
    """beta_i = 1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), at most MAX_BETA."""
    betas = torch.tensor(
        [
            min(1 - alpha_bar((i + 1) / num_steps) / alpha_bar(i / num_steps), MAX_BETA)
            for i in range(num_steps)
        ],
        dtype=torch.float64,
    )
    kept = (1 - betas).cumprod(0)
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    variance = betas * (1 - before) / (1 - kept)
    return DiscreteProcess(
        betas=betas,
        alphas_cumprod=kept,
        posterior_mean_coef1=betas * before.sqrt() / (1 - kept),
        posterior_mean_coef2=(1 - before) * (1 - betas).sqrt() / (1 - kept),
        posterior_variance=variance,
        posterior_log_variance_clipped=torch.cat([variance[1:2], variance[1:]]).log(),
    )


@lru_cache(1)
def exponential_process(num_steps: int = 1024) -> DiscreteProcess:
    """Shap-E's prior: alpha_bar(u) = exp(-12 u), noise levels 0.109 to 403."""
    return _process(lambda u: math.exp(-12 * u), num_steps)


@lru_cache(1)
def bottleneck_process(num_steps: int = 1024) -> DiscreteProcess:
    """Shap-E's bottleneck: alpha_bar(u) = 1 - u^5 ("inv_parabola")."""
    return _process(lambda u: 1 - u**5, num_steps)
