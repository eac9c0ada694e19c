"""What a denoising network is trained to predict, and how a prediction becomes x_0.

With x_t = alpha x_0 + sigma eps (see `schedules`), every target is p x_0 + q eps:

    target  p       q       meaning
    x0      1       0       the clean sample
    eps     0       1       the noise (Ho et al. 2020)
    v       -s      c       velocity on the unit circle, (c, s) = (alpha, sigma) / hypot(alpha, sigma)
                            (Salimans & Ho 2022); of unit variance at every t for data of unit variance, and
                            then the same as EDM's preconditioned output F (Karras et al. 2022, eq. 7)
    flow    -1      1       velocity of the straight line (rectified flow)

Time arguments are [batch]; samples are [batch, ...].
"""

from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from shapeloom.diffusion.schedules import Schedule

Target = Literal["x0", "eps", "v", "flow"]
TimeSampling = Literal["uniform", "logit_normal"]


def _expand(per_sample: Tensor, like: Tensor) -> Tensor:
    """[batch] -> [batch, 1, ...] with as many axes as `like`."""
    return per_sample.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(
    schedule: Schedule,
    x0: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, "batch *shape"]:
    """x_t = alpha(t) x_0 + sigma(t) eps."""
    return _expand(schedule.alpha(t), x0) * x0 + _expand(schedule.sigma(t), x0) * eps


def _coefficients(target: Target, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The (p, q) of the table above."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    match target:
        case "x0":
            return one, zero
        case "eps":
            return zero, one
        case "v":
            radius = torch.hypot(alpha, sigma)
            return -sigma / radius, alpha / radius
        case "flow":
            return -one, one
        case _:
            assert_never(target)


def make_target(
    target: Target,
    schedule: Schedule,
    x0: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, "batch *shape"]:
    """What the network should say when shown x_t."""
    p, q = _coefficients(target, schedule.alpha(t), schedule.sigma(t))
    return _expand(p, x0) * x0 + _expand(q, x0) * eps


def to_x0(
    target: Target,
    schedule: Schedule,
    prediction: Float[Tensor, "batch *shape"],
    x_t: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, "batch *shape"]:
    """Solves x_t = alpha x_0 + sigma eps and prediction = p x_0 + q eps for x_0.

    For "eps" this divides by alpha(t), which is zero at t = 1: keep t below.
    """
    if target == "x0":  # the general solution below is 0 / 0 at t = 0
        return prediction
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = _coefficients(target, alpha, sigma)
    determinant = q * alpha - p * sigma
    return _expand(q / determinant, x_t) * x_t - _expand(sigma / determinant, x_t) * prediction


def sample_times(
    normal: Float[Tensor, " batch"], sampling: TimeSampling, *, mean: float = 0.0, std: float = 1.0
) -> Float[Tensor, " batch"]:
    """Training times in (0, 1) from standard normal numbers.

    "logit_normal": t = sigmoid(mean + std z) (Esser et al. 2024, section 3.1); with rectified flow this is
    EDM's log-normal noise level of the same mean and std. "uniform": the normal's distribution function.
    Cut to [1e-4, 1 - 1e-4]: at the ends the sample is all data or all noise, and log_snr is infinite.
    """
    match sampling:
        case "logit_normal":
            t = torch.sigmoid(mean + std * normal)
        case "uniform":
            t = torch.special.ndtr(normal)
        case _:
            assert_never(sampling)
    return t.clamp(1e-4, 1 - 1e-4)
