"""Noise schedules: how much signal and noise a sample holds at continuous time t in [0, 1].

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I),   t = 0 clean, t = 1 noise
    log_snr(t) = log(alpha^2 / sigma^2)
    ratio(t) = sigma / alpha    the noise level in the variance-exploding frame x_t / alpha

Every schedule is a walk through the same noise levels, so a network that knows `ratio` can be sampled with
any of them (Kingma et al. 2021, "Variational Diffusion Models"). `time` inverts `ratio`. At t = 1 the ratio
is infinite for rectified_flow and vp_cosine, 152 for vp_linear, 80 for edm and 403 for shap_e: samplers start
from a finite one (see `steps`), and the last three go on beyond t = 1 where it is larger.
"""

import math
from typing import Literal, Protocol, assert_never, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

ScheduleName = Literal["rectified_flow", "vp_cosine", "vp_linear", "edm", "shap_e"]


@runtime_checkable
class Schedule(Protocol):
    """What objectives need; all functions act per element."""

    keeps_variance: bool
    """Whether alpha^2 + sigma^2 = 1, as DDPM's steps need."""

    def alpha(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """Scale of the signal at time t in [0, 1]."""
        ...

    def sigma(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """Standard deviation of the noise at time t in [0, 1]."""
        ...

    def log_snr(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """log(alpha^2 / sigma^2): infinite at t = 0, falls monotonically."""
        ...

    def time(self, ratio: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """The t at which sigma / alpha is `ratio` >= 0; exact beyond the schedule's own [0, 1] too."""
        ...


class RectifiedFlow:
    """The straight line between data and noise: alpha = 1 - t, sigma = t (Liu et al. 2022)."""

    keeps_variance = False

    def alpha(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """t."""
        return t

    def log_snr(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """2 log((1 - t) / t)."""
        return 2 * (torch.log1p(-t) - torch.log(t))

    def time(self, ratio: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """ratio / (1 + ratio)."""
        return ratio / (1 + ratio)


class VpCosine:
    """Variance preserving on the quarter circle: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol & Dhariwal 2021 without their offset, as in Salimans & Ho 2022.
    """

    keeps_variance = True

    def alpha(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """cos(pi t / 2)."""
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """sin(pi t / 2)."""
        return torch.sin(t * (math.pi / 2))

    def log_snr(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """-2 log tan(pi t / 2)."""
        return -2 * torch.log(torch.tan(t * (math.pi / 2)))

    def time(self, ratio: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """(2 / pi) atan(ratio)."""
        return torch.atan(ratio) * (2 / math.pi)


class VpExponential:
    """Variance preserving with alpha^2 = exp(-B(t)), B(t) = rate t + growth t^2 / 2.

    B is the integral of DDPM's beta.
    rate 0.1, growth 19.9: DDPM's linear betas (Song et al. 2021, eq. 29).
    rate 12, growth 0: Shap-E's "exp" schedule, alpha^2 = exp(-12 t).
    """

    keeps_variance = True

    def __init__(self, rate: float, growth: float) -> None:
        self.rate, self.growth = rate, growth

    def _exponent(self, t: Tensor) -> Tensor:
        return t * (self.rate + self.growth * t / 2)

    def alpha(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """exp(-B / 2)."""
        return torch.exp(-self._exponent(t) / 2)

    def sigma(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """sqrt(1 - exp(-B))."""
        return torch.sqrt(-torch.expm1(-self._exponent(t)))

    def log_snr(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """-log(exp(B) - 1)."""
        return -torch.log(torch.expm1(self._exponent(t)))

    def time(self, ratio: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """The root of B(t) = log(1 + ratio^2), in the form that bears growth = 0."""
        exponent = torch.log1p(ratio**2)
        return 2 * exponent / (self.rate + torch.sqrt(self.rate**2 + 2 * self.growth * exponent))


class Edm:
    """Variance exploding: alpha = 1, sigma even in its seventh root from 0.002 to 80.

    Karras et al. 2022, eq. 5. At t = 0 a noise of 0.002 is left.
    Time below 0 stands for less: `time(0)` is about -0.28.
    """

    keeps_variance = False
    low, high, rho = 0.002 ** (1 / 7), 80 ** (1 / 7), 7

    def alpha(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """(low + t (high - low))^7, low and high the ends' seventh roots."""
        return (self.low + t * (self.high - self.low)) ** self.rho

    def log_snr(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """-2 log sigma."""
        return -2 * self.rho * torch.log(self.low + t * (self.high - self.low))

    def time(self, ratio: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """(ratio^(1/7) - low) / (high - low)."""
        return (ratio ** (1 / self.rho) - self.low) / (self.high - self.low)


def make_schedule(name: ScheduleName) -> Schedule:
    """The schedule that a config names."""
    match name:
        case "rectified_flow":
            return RectifiedFlow()
        case "vp_cosine":
            return VpCosine()
        case "vp_linear":
            return VpExponential(rate=0.1, growth=19.9)
        case "edm":
            return Edm()
        case "shap_e":
            return VpExponential(rate=12.0, growth=0.0)
        case _:
            assert_never(name)
