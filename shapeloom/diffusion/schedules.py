"""Noise schedules: how much signal and noise a sample holds at continuous time t in [0, 1].

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I),   t = 0 clean, t = 1 noise
    log_snr(t) = log(alpha^2 / sigma^2)
    ratio(t) = sigma / alpha    the noise level in the variance-exploding frame x_t / alpha

Every schedule is a walk through the same noise levels, so a network that knows `ratio` can be sampled with
any of them (Kingma et al. 2021, "Variational Diffusion Models"). `time` inverts `ratio`. At t = 1 the ratio
is infinite in both schedules here: samplers start from a finite one (see `samplers.karras_sigmas`).
"""

import math
from typing import Literal, Protocol, assert_never, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

ScheduleName = Literal["rectified_flow", "vp_cosine"]


@runtime_checkable
class Schedule(Protocol):
    """What objectives need; all functions act per element."""

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scale of the signal at time t in [0, 1]."""
        ...

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Standard deviation of the noise at time t in [0, 1]."""
        ...

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """log(alpha^2 / sigma^2): infinite at t = 0, falls monotonically."""
        ...

    def time(self, ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The t in [0, 1) at which sigma / alpha is `ratio` >= 0."""
        ...


class RectifiedFlow:
    """The straight line between data and noise: alpha = 1 - t, sigma = t (Liu et al. 2022)."""

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """t."""
        return t

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """2 log((1 - t) / t)."""
        return 2 * (torch.log1p(-t) - torch.log(t))

    def time(self, ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """ratio / (1 + ratio)."""
        return ratio / (1 + ratio)


class VpCosine:
    """Variance preserving on the quarter circle: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol & Dhariwal 2021 without their offset, as in Salimans & Ho 2022.
    """

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """cos(pi t / 2)."""
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """sin(pi t / 2)."""
        return torch.sin(t * (math.pi / 2))

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """-2 log tan(pi t / 2)."""
        return -2 * torch.log(torch.tan(t * (math.pi / 2)))

    def time(self, ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """(2 / pi) atan(ratio)."""
        return torch.atan(ratio) * (2 / math.pi)


def make_schedule(name: ScheduleName) -> Schedule:
    """The schedule that a config names."""
    match name:
        case "rectified_flow":
            return RectifiedFlow()
        case "vp_cosine":
            return VpCosine()
        case _:
            assert_never(name)
