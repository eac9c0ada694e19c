"""Score distillation: gradients by which pictures (or latents) move towards what a diffusion model expects.

    x        clean samples that something renders: [batch, ...]; what is distilled into
    sigma    noise level sigma / alpha of each sample, in the samplers' frame: z = x + sigma eps
    x_hat    denoise(z, sigma, condition), the expected clean sample (see `samplers`); so the model's noise is
             eps_hat = (z - x_hat) / sigma, the same in every frame
    w        weight of a noise level; alpha_bar = 1 / (1 + sigma^2) as in DDPM

Every estimator returns the gradient of an objective by x, of x's shape, without a graph: hand it to
`x.backward(gradient)`, and the chain rule through whatever made x is autograd's.

    SDS   w (eps_hat - eps)                      = w (x - x_hat) / sigma
          Poole et al. 2022, "DreamFusion", eq. 3 (Jacobian of the network left out)
    VSD   w (eps_hat - eps_own)                  = w (x_own - x_hat) / sigma
          Wang et al. 2023, "ProlificDreamer", eq. 9; `own` knows the distribution of x itself
    ISM   w (eps_hat(z_t, t) - eps_null(z_s, s))   z_s, z_t on the null condition's own path from x
          Liang et al. 2023, "LucidDreamer", eq. 17: no fresh noise but at the path's start

One convention of guidance for all: x_hat = x_0(null) + scale (x_0(condition) - x_0(null)), of
`guidance.classifier_free` and `guidance.perp_neg`: scale 1 is the plain conditional model.
"""

from itertools import pairwise
from typing import Literal, TypeVar, assert_never

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from shapeloom.config import Config
from shapeloom.diffusion.samplers import Denoise

C = TypeVar("C")
D = TypeVar("D")
Weighting = Literal["sds", "uniform", "fantasia3d"]
Annealing = Literal["none", "step", "linear", "sqrt"]


class TimesConfig(Config):
    """The times of a diffusion's schedule (0 clean, 1 noise) at which it is asked, and how they narrow."""

    low: float = Field(0.02, gt=0, lt=1, description="the least")
    high: float = Field(0.98, gt=0, lt=1, description="the largest at the beginning")
    last_high: float = Field(0.5, gt=0, lt=1, description="the largest at the end, where it is annealed")
    anneal: Annealing = Field(
        "none",
        description="of the largest: at once after a fifth of the steps (ProlificDreamer), evenly, or one "
        "time a step that falls with the root of the steps (HiFA)",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "TimesConfig":
        if not self.low < min(self.high, self.last_high):
            raise ValueError(f"low={self.low} must be below high={self.high} and last_high={self.last_high}")
        return self


def time_range(config: TimesConfig, progress: float) -> tuple[float, float]:
    """Returns the least and the largest time at `progress` in [0, 1]; equal where one time is asked."""
    match config.anneal:
        case "none":
            return config.low, config.high
        case "step":
            return config.low, config.last_high if progress >= 0.2 else config.high
        case "linear":
            return config.low, config.high + progress * (config.last_high - config.high)
        case "sqrt":  # Zhu and Zhuang 2023, "HiFA", eq. 8: deterministic, so least and largest are one
            now = config.high - (config.high - config.low) * progress**0.5
            return now, now
        case _:
            assert_never(config.anneal)


def level_weight(weighting: Weighting, sigma: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Returns w of noise levels.

    sds: 1 - alpha_bar (DreamFusion's sigma_t^2); uniform: 1 (Magic3D); fantasia3d: sqrt(alpha_bar)
    (1 - alpha_bar) (Chen et al. 2023).
    """
    noise_share = sigma**2 / (1 + sigma**2)
    match weighting:
        case "sds":
            return noise_share
        case "uniform":
            return torch.ones_like(sigma)
        case "fantasia3d":
            return noise_share / (1 + sigma**2).sqrt()
        case _:
            assert_never(weighting)


@torch.no_grad()
def sds(
    denoise: Denoise[C], x: Float[Tensor, " batch *shape"], sigma: Float[Tensor, " batch"],
    eps: Float[Tensor, " batch *shape"], condition: C, *, weighting: Weighting = "sds",
) -> Float[Tensor, " batch *shape"]:  # fmt: skip
    """Returns w (eps_hat - eps); eps cancels but for where it makes the model look.

    In expectation it vanishes only at the model's mode: particles of one condition all go there.
    """
    x_hat = denoise(_noised(x, sigma, eps), sigma, condition)
    return _in_noise(weighting, sigma, x - x_hat)


@torch.no_grad()
def vsd(
    denoise: Denoise[C], own: Denoise[D], x: Float[Tensor, " batch *shape"], sigma: Float[Tensor, " batch"],
    eps: Float[Tensor, " batch *shape"], condition: C, own_condition: D, *, weighting: Weighting = "sds",
) -> Float[Tensor, " batch *shape"]:  # fmt: skip
    """Returns w (eps_hat - eps_own): zero in expectation where x is distributed as the model says.

    own: the denoiser of the particles' own distribution, which `own_loss` teaches; never guided. The exact
    one of a single particle answers x, and this is `sds`.
    """
    z = _noised(x, sigma, eps)
    return _in_noise(weighting, sigma, own(z, sigma, own_condition) - denoise(z, sigma, condition))


def own_loss(
    own: Denoise[D], x: Float[Tensor, " batch *shape"], sigma: Float[Tensor, " batch"],
    eps: Float[Tensor, " batch *shape"], own_condition: D,
) -> Float[Tensor, ""]:  # fmt: skip
    """Returns the mean of |eps_own - eps|^2 (ProlificDreamer, eq. 10), differentiable in what `own` learns.

    x without a graph: the particles don't follow it.
    """
    x = x.detach()
    error = own(_noised(x, sigma, eps), sigma, own_condition) - x
    return ((error / _expand(sigma, x)) ** 2).mean()


@torch.no_grad()
def ism(
    denoise: Denoise[C], plain: Denoise[C], x: Float[Tensor, " batch *shape"],
    levels: Float[Tensor, "levels batch"], eps: Float[Tensor, " batch *shape"], condition: C, null: C, *,
    weighting: Weighting = "sds",
) -> Float[Tensor, " batch *shape"]:  # fmt: skip
    """Returns w (eps_hat(z_t) - eps_null(z_s)) at the last level t and the one before it, s.

    Args:
        denoise: guided; plain: without guidance, which walks from x up to z_t by DDIM's steps (Euler's).
        levels: two or more rising noise levels a sample; eps is added at the first, the smaller the better.

    Raises ValueError for fewer levels.
    """
    if len(levels) < 2:
        raise ValueError(f"the path to z_t has two levels or more, not {len(levels)}")
    z, slope = _noised(x, levels[0], eps), torch.zeros_like(x)
    for low, high in pairwise(levels):
        slope = (z - plain(z, low, null)) / _expand(low, x)  # the model's noise at `low`
        z = z + _expand(high - low, x) * slope
    sigma = levels[-1]
    eps_hat = (z - denoise(z, sigma, condition)) / _expand(sigma, x)
    return _expand(level_weight(weighting, sigma), x) * (eps_hat - slope)


def _noised(x: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    return x + _expand(sigma, x) * eps


def _in_noise(weighting: Weighting, sigma: Tensor, difference: Tensor) -> Tensor:
    """A difference of clean samples as the one of the noises that they stand for, weighted."""
    return _expand(level_weight(weighting, sigma) / sigma, difference) * difference


def _expand(per_sample: Tensor, like: Tensor) -> Tensor:
    """[batch] -> [batch, 1, ...] with as many axes as `like`."""
    return per_sample.reshape(-1, *(1,) * (like.ndim - 1))
