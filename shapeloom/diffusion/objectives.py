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

from collections.abc import Callable
from typing import Literal, TypeVar, assert_never

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from shapeloom.config import Config
from shapeloom.diffusion.schedules import Schedule, ScheduleName, make_schedule

Target = Literal["x0", "eps", "v", "flow"]
TimeSampling = Literal["uniform", "logit_normal"]
Weighting = Literal["uniform", "min_snr", "edm"]
C = TypeVar("C")


class DiffusionConfig(Config):
    """What the denoiser learns to predict, and at which noise levels."""

    schedule: ScheduleName = Field("rectified_flow", description="how data turns to noise")
    target: Target = Field("v", description="what the network predicts")
    times: TimeSampling = Field("logit_normal", description="how training's noise levels are drawn")
    times_mean: float = Field(default=0.0, description="of logit(t): larger means noisier training samples")
    times_std: float = Field(1.0, gt=0, description="of logit(t)")
    weighting: Weighting = Field("uniform", description="of the noise levels in the loss")
    learned_variance: bool = Field(
        default=False,
        description="learn the variance of DDPM's steps too, for sampler=ddpm; schedule: a vp one",
    )

    @model_validator(mode="after")
    def _steps_have_a_variance(self) -> "DiffusionConfig":
        if not self.learned_variance:
            return self
        if not make_schedule(self.schedule).keeps_variance:
            raise ValueError(
                f"learned_variance is of DDPM's steps, which keep the variance; schedule={self.schedule} "
                "doesn't: use vp_cosine, vp_linear or shap_e"
            )
        if self.times != "uniform":
            raise ValueError(
                "learned_variance is learnt by a sum over all steps, each as often as the others: set "
                f"times=uniform, not {self.times}"
            )
        return self


def _expand(per_sample: Tensor, like: Tensor) -> Tensor:
    """[batch] -> [batch, 1, ...] with as many axes as `like`."""
    return per_sample.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(
    schedule: Schedule,
    x0: Float[Tensor, " batch *shape"],
    eps: Float[Tensor, " batch *shape"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, " batch *shape"]:
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
    x0: Float[Tensor, " batch *shape"],
    eps: Float[Tensor, " batch *shape"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, " batch *shape"]:
    """What the network should say when shown x_t."""
    p, q = _coefficients(target, schedule.alpha(t), schedule.sigma(t))
    return _expand(p, x0) * x0 + _expand(q, x0) * eps


def to_x0(
    target: Target,
    schedule: Schedule,
    prediction: Float[Tensor, " batch *shape"],
    x_t: Float[Tensor, " batch *shape"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, " batch *shape"]:
    """Solves x_t = alpha x_0 + sigma eps and prediction = p x_0 + q eps for x_0.

    For "eps" this divides by alpha(t), which is zero at t = 1: keep t below.
    """
    if target == "x0":  # the general solution below is 0 / 0 at t = 0
        return prediction
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = _coefficients(target, alpha, sigma)
    determinant = q * alpha - p * sigma
    return _expand(q / determinant, x_t) * x_t - _expand(sigma / determinant, x_t) * prediction


def convert(
    prediction: Float[Tensor, " batch *shape"], source: Target, target: Target, schedule: Schedule,
    x_t: Float[Tensor, " batch *shape"], t: Float[Tensor, " batch"],
) -> Float[Tensor, " batch *shape"]:  # fmt: skip
    """A prediction of `source` as the prediction of `target` that says the same; needs sigma(t) > 0."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0 = to_x0(source, schedule, prediction, x_t, t)
    eps = (x_t - _expand(alpha, x_t) * x0) / _expand(sigma, x_t)
    return make_target(target, schedule, x0, eps, t)


def predict_x0(
    network: Callable[[Tensor, Tensor, C], Tensor],
    diffusion: DiffusionConfig,
    x: Float[Tensor, " batch *shape"],
    sigma: Float[Tensor, " batch"],
    condition: C,
) -> Float[Tensor, " batch *shape"]:
    """The expected x_0 of x = x_0 + sigma eps: the seam that samplers use (`samplers`).

    network: says of x, sigma and a condition what `diffusion` asks for.
    """
    schedule = make_schedule(diffusion.schedule)
    prediction, _ = split_answer(network(x, sigma, condition).to(x.dtype), diffusion)
    t = schedule.time(sigma)
    x_t = _expand(schedule.alpha(t), x) * x
    return to_x0(diffusion.target, schedule, prediction, x_t, t)


def split_answer(
    answer: Float[Tensor, " batch *outputs"], diffusion: DiffusionConfig
) -> tuple[Float[Tensor, " batch *shape"], Float[Tensor, " batch *shape"] | None]:
    """Returns the target as the network sees it, and the variance's share if it was learned."""
    if not diffusion.learned_variance:
        return answer, None
    prediction, share = answer.chunk(2, dim=-1)
    return prediction, share


def loss_weight(
    weighting: Weighting, target: Target, schedule: Schedule, t: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Factor of the target's squared error at time t.

    "uniform": 1, whatever the target. The others fix the weight of x_0's error, and so give every
    target the same loss: "min_snr" min(SNR, 5) (Hang et al. 2023), "edm" 1 + SNR (Karras et al. 2022,
    table 1, for data of unit variance), under which "v" has the factor 1.
    """
    if weighting == "uniform":
        return torch.ones_like(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = _coefficients(target, alpha, sigma)
    snr = torch.exp(schedule.log_snr(t))
    x0_weight = snr.clamp(max=5.0) if weighting == "min_snr" else 1 + snr
    return x0_weight * (sigma / (q * alpha - p * sigma)) ** 2  # of x_0's error to the target's: see `to_x0`


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
