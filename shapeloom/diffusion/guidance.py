"""Guidance: steering a denoiser by comparing two conditions.

Everything here wraps a `denoise(x, sigma, condition)` (see `samplers`) into another one.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from shapeloom.diffusion.samplers import Denoise

C = TypeVar("C")


def classifier_free(
    denoise: Denoise[C],
    negative: C,
    *,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
    rescale: float = 0.0,
) -> Denoise[C]:
    """Returns a denoiser that moves from the `negative` condition's answer to the positive one's and beyond.

        x_0 = x_0(negative) + scale (x_0(condition) - x_0(negative))       (Ho & Salimans 2022)

    Args:
        negative: the null condition, or a negative prompt's.
        scale: 1 is the plain conditional denoiser (and costs no second call), 0 the negative one.
        interval: noise levels low <= sigma < high at which to guide; outside, the plain conditional denoiser
            (Kynkaanniemi et al. 2024).
        rescale: 0 to 1, how far the spread of the result is brought back to the conditional one's
            (Lin et al. 2023, section 3.4, per sample).

    Raises ValueError when scale is negative or rescale is outside [0, 1].
    """
    if scale < 0 or not 0 <= rescale <= 1:
        raise ValueError(
            f"expected scale >= 0 and rescale in [0, 1], got scale {scale} and rescale {rescale}"
        )
    low, high = interval

    def guided(x: Tensor, sigma: Tensor, condition: C) -> Tensor:
        positive = denoise(x, sigma, condition)
        active = (sigma >= low) & (sigma < high)
        if scale == 1 or not bool(active.any()):
            return positive
        other = denoise(x, sigma, negative)
        result = other + scale * (positive - other)
        if rescale > 0:
            ratio = _spread(positive) / _spread(result).clamp_min(
                1e-8
            )  # a constant x_0 has nothing to bring back
            result = result * (1 + rescale * (ratio - 1))
        return torch.where(active.reshape(-1, *(1,) * (x.ndim - 1)), result, positive)

    return guided


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each sample over all its axes, [batch, 1, ...]."""
    return x.flatten(1).std(dim=1).reshape(-1, *(1,) * (x.ndim - 1))
