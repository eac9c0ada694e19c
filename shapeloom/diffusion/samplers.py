"""Samplers: from noise to data along the probability-flow ODE, or with fresh noise along the way.

All of them work in the variance-exploding frame, x = x_0 + sigma eps, through one seam:

    denoise(x, sigma, condition) -> the expected x_0     x [batch, ...], sigma [batch] > 0

where the ODE is dx / dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, eq. 1). A network trained
with any schedule fits in: it sees alpha x at the time where sigma / alpha equals this sigma. An Euler step
here is exactly a DDIM step (Song et al. 2021) there.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

C = TypeVar("C")
Denoise = Callable[[Tensor, Tensor, C], Tensor]
"""The seam between networks and samplers: (x, sigma, condition) -> x_0; the condition is handed through."""
SamplerName = Literal["euler", "heun"]


def karras_sigmas(
    num_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " levels"]:
    """`num_steps` noise levels falling from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5).

    `num_steps` Euler steps walk them. The defaults suit data of unit variance: EDM's sigma_max, and a larger
    sigma_min than EDM's, since a bounded latent's own noise hides anything finer.
    """
    if num_steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"expected num_steps >= 1, 0 < sigma_min < sigma_max, got {num_steps}, {sigma_min}, {sigma_max}"
        )
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def initial_noise(
    noise: Float[Tensor, "batch *shape"], sigmas: Float[Tensor, " levels"]
) -> Float[Tensor, "batch *shape"]:
    """The start of a trajectory: standard normal `noise` at the first level."""
    return noise * float(sigmas[0])


def sample(
    denoise: Denoise[C],
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    condition: C,
    *,
    method: SamplerName = "heun",
    churn: float = 0.0,
    noise: Callable[[int], Float[Tensor, "batch *shape"]] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Walks x from sigmas[0] down to sigmas[-1] and returns it.

    Args:
        denoise: see the top of this file.
        x: samples at noise level sigmas[0] (`initial_noise`, or data with noise added: SDEdit).
        sigmas: falling noise levels; the last may be 0.
        condition: handed to `denoise`.
        method: "euler" (order 1, one call a step) or "heun" (order 2, two calls a step but the last).
        churn: EDM's S_churn: each step first raises sigma by the factor 1 + min(churn / steps, sqrt(2) - 1)
            with fresh noise (Karras et al. 2022, algorithm 2).
        noise: standard normal numbers for step i, shaped as x; needed with churn. Seed it per sample, so
            that a sample doesn't depend on its batch mates.
        on_step: called with i after each step, for a progress bar.

    Raises ValueError when the levels don't fall or churn comes without noise.
    """
    levels = [float(s) for s in sigmas]
    if len(levels) < 2 or any(b >= a for a, b in pairwise(levels)) or levels[-1] < 0:
        raise ValueError(f"sigmas must be two or more falling levels >= 0, got {levels}")
    if churn > 0 and noise is None:
        raise ValueError(
            "churn > 0 needs `noise`: a function of the step that returns standard normal numbers"
        )
    growth = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    for i, (level, following) in enumerate(pairwise(levels)):
        start = level
        if growth > 0 and noise is not None:
            start = level * (1 + growth)
            x = x + math.sqrt(start**2 - level**2) * noise(i)
        x = _step(denoise, x, start, following, condition, second_order=method == "heun")
        if on_step is not None:
            on_step(i)
    return x


def _step(
    denoise: Denoise[C], x: Tensor, start: float, end: float, condition: C, *, second_order: bool
) -> Tensor:
    slope = _slope(denoise, x, start, condition)
    moved = x + (end - start) * slope
    if not second_order or end == 0:  # at sigma 0 the slope is not defined; Euler lands on x_0 itself
        return moved
    return x + (end - start) * (slope + _slope(denoise, moved, end, condition)) / 2


def _slope(denoise: Denoise[C], x: Tensor, sigma: float, condition: C) -> Tensor:
    level = torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)
    return (x - denoise(x, level, condition)) / sigma
