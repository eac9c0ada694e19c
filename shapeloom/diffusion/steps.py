"""Step choices: the falling noise levels that a sampler walks (ratios sigma / alpha, see `schedules`).

Each choice gives `num_steps` levels from sigma_max to sigma_min, then 0: `num_steps` steps. The defaults suit
data of unit variance: EDM's sigma_max, and a larger sigma_min than EDM's, since a bounded latent's own noise
hides anything finer.
"""

import math
from typing import Literal, assert_never

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

StepChoice = Literal["karras", "exponential", "flow_shift", "align_your_steps"]
# Sabour et al. 2024, "Align Your Steps": the optimised levels published for Stable Diffusion 1.5.
_ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def karras_sigmas(
    num_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " levels"]:
    """Levels even in sigma^(1 / rho) (Karras et al. 2022, eq. 5)."""
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _closed((high + ramp * (low - high)) ** rho)


def exponential_sigmas(
    num_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 80.0
) -> Float[Tensor, " levels"]:
    """Levels even in log sigma, and so in log-SNR (Lu et al. 2022, "DPM-Solver")."""
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    return _closed(sigma_max * (sigma_min / sigma_max) ** ramp)


def flow_shift_sigmas(
    num_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 80.0, shift: float = 3.0
) -> Float[Tensor, " levels"]:
    """Levels even in rectified flow's time, shifted: t' = shift t / (1 + (shift - 1) t).

    Esser et al. 2024, eq. 23.
    The shift multiplies sigma / alpha by `shift`; 1 is none, more spends more steps on strong noise.
    """
    if shift <= 0:
        raise ValueError(f"expected shift > 0, got {shift}")
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    high, low = (sigma / shift / (1 + sigma / shift) for sigma in (sigma_max, sigma_min))
    t = high + ramp * (low - high)
    return _closed(shift * t / (1 - t))


def align_your_steps_sigmas(
    num_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 80.0
) -> Float[Tensor, " levels"]:
    """The spacing that Sabour et al. 2024 optimised for images, at any number of steps and between any ends.

    Their log levels are interpolated linearly, as they advise, and stretched to the ends. It is not optimised
    for latents of ours.
    """
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    table = np.log(_ALIGNED)
    place = np.interp(ramp.numpy() * (len(table) - 1), np.arange(len(table)), table)
    share = torch.from_numpy((place - table[-1]) / (table[0] - table[-1]))
    return _closed(torch.exp(math.log(sigma_min) + share * math.log(sigma_max / sigma_min)))


def make_sigmas(
    choice: StepChoice, num_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 80.0
) -> Float[Tensor, " levels"]:
    """The levels of the step choice that a config names."""
    ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    match choice:
        case "karras":
            return karras_sigmas(num_steps, **ends)
        case "exponential":
            return exponential_sigmas(num_steps, **ends)
        case "flow_shift":
            return flow_shift_sigmas(num_steps, **ends)
        case "align_your_steps":
            return align_your_steps_sigmas(num_steps, **ends)
        case _:
            assert_never(choice)


def _ramp(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    if num_steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"expected num_steps >= 1, 0 < sigma_min < sigma_max, got {num_steps}, {sigma_min}, {sigma_max}"
        )
    return torch.linspace(0, 1, num_steps, dtype=torch.float64)


def _closed(levels: Tensor) -> Tensor:
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
