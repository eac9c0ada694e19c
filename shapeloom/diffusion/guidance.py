"""Guidance: steering a denoiser by other answers, by gradients, by the range that data has.

Everything here wraps a `denoise(x, sigma, condition)` (see `samplers`) into another one, so that wrappers
combine: `within(classifier_free(denoise, ...), ...)`.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from shapeloom.diffusion.samplers import Denoise

C = TypeVar("C")
Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, math.inf)


def classifier_free(
    denoise: Denoise[C], negative: C, *, scale: float, interval: Interval = EVERYWHERE, rescale: float = 0.0,
    others: Sequence[tuple[C, float]] = (),
) -> Denoise[C]:  # fmt: skip
    """Returns a denoiser that moves from the `negative` condition's answer to the positive one's and beyond.

        x_0 = x_0(negative) + scale (x_0(condition) - x_0(negative))       (Ho & Salimans 2022)

    Args:
        negative: the null condition, or a negative prompt's.
        scale: 1 is the plain conditional denoiser (and costs no second call), 0 the negative one.
        interval: noise levels low <= sigma < high at which to guide; outside, the plain conditional denoiser
            (Kynkaanniemi et al. 2024).
        rescale: 0 to 1, how far the spread of the result is brought back to the conditional one's
            (Lin et al. 2023, section 3.4, per sample).
        others: more conditions with scales of their own, each of which adds scale (x_0(it) - x_0(negative))
            (Liu et al. 2022, "Compositional Visual Generation", eq. 11).

    Raises ValueError when scale is negative or rescale is outside [0, 1].
    """
    return _from_another(
        denoise, lambda x, sigma, _: denoise(x, sigma, negative), scale=scale, interval=interval,
        rescale=rescale, others=others,
    )  # fmt: skip


def autoguided(
    denoise: Denoise[C], weaker: Denoise[C], *, scale: float, interval: Interval = EVERYWHERE,
    rescale: float = 0.0,
) -> Denoise[C]:  # fmt: skip
    """Returns a denoiser that moves away from a weaker one's answer under the same condition.

        x_0 = weaker x_0 + scale (x_0 - weaker x_0)        (Karras et al. 2024, "Guiding a Diffusion Model
                                                            with a Bad Version of Itself", eq. 3)

    weaker: of a smaller network, or the same one earlier in training. The rest as in `classifier_free`.
    """
    return _from_another(denoise, weaker, scale=scale, interval=interval, rescale=rescale, others=())


def _from_another(
    denoise: Denoise[C], another: Denoise[C], *, scale: float, interval: Interval, rescale: float,
    others: Sequence[tuple[C, float]],
) -> Denoise[C]:  # fmt: skip
    if scale < 0 or not 0 <= rescale <= 1:
        raise ValueError(
            f"expected scale >= 0 and rescale in [0, 1], got scale {scale} and rescale {rescale}"
        )
    low, high = interval

    def guided(x: Tensor, sigma: Tensor, condition: C) -> Tensor:
        positive = denoise(x, sigma, condition)
        active = (sigma >= low) & (sigma < high)
        if (scale == 1 and not others) or not bool(active.any()):
            return positive
        other = another(x, sigma, condition)
        result = other + scale * (positive - other)
        for more, its_scale in others:
            result = result + its_scale * (denoise(x, sigma, more) - other)
        result = _rescaled(result, positive, rescale)
        return torch.where(_per_sample(active, x), result, positive)

    return guided


def perp_neg(
    denoise: Denoise[C], null: C, negatives: Sequence[tuple[C, Float[Tensor, " batch"]]], *, scale: float,
    rescale: float = 0.0,
) -> Denoise[C]:  # fmt: skip
    """Returns a denoiser that moves away from negative conditions, but never along the positive one.

        x_0 = x_0(null) + scale (d + sum_i w_i (d_i - (d_i . d / d . d) d))
        d = x_0(condition) - x_0(null), d_i = x_0(negative i) - x_0(null)

    (Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm", eq. 9.) Without negatives, or with
    weights of zero, it is `classifier_free` at the same scale.

    negatives: conditions with a weight for each sample, below zero to move away. rescale: see there.
    """

    def guided(x: Tensor, sigma: Tensor, condition: C) -> Tensor:
        positive, base = denoise(x, sigma, condition), denoise(x, sigma, null)
        direction = positive - base
        total = direction
        square = _dot(direction, direction).clamp_min(1e-12)  # a condition that changes nothing has no side
        for negative, weight in negatives:
            away = denoise(x, sigma, negative) - base
            across = away - _dot(away, direction) / square * direction
            total = total + _per_sample(weight.to(x), x) * across
        return _rescaled(base + scale * total, positive, rescale)

    return guided


def _rescaled(result: Tensor, positive: Tensor, rescale: float) -> Tensor:
    if rescale == 0:
        return result
    # A constant x_0 has nothing to bring back.
    ratio = _spread(positive) / _spread(result).clamp_min(1e-8)
    return result * (1 + rescale * (ratio - 1))


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Products of each sample over all its axes, [batch, 1, ...]."""
    return _per_sample((first * second).flatten(1).sum(dim=1), first)


def within(denoise: Denoise[C], low: Tensor, high: Tensor, *, quantile: float | None = None) -> Denoise[C]:
    """Returns a denoiser whose x_0 stays between `low` and `high`, which broadcast to it.

    Without `quantile` it is clamped (static thresholding). With it, a sample of which more than that share of
    numbers would be cut off is shrunk towards the middle first (dynamic thresholding; Saharia et al. 2022,
    "Photorealistic Text-to-Image Diffusion Models", section 2.3), which saturates less at high guidance.
    Raises ValueError for a quantile outside (0, 1].
    """
    if quantile is not None and not 0 < quantile <= 1:
        raise ValueError(f"expected a quantile in (0, 1], got {quantile}")
    middle, half = (low + high) / 2, (high - low) / 2

    def bounded(x: Tensor, sigma: Tensor, condition: C) -> Tensor:
        share = (denoise(x, sigma, condition) - middle) / half
        if quantile is not None:
            reach = share.abs().flatten(1).quantile(quantile, dim=1).clamp_min(1)
            share = share / _per_sample(reach, x)
        return middle + half * share.clamp(-1, 1)

    return bounded


def classifier_guided(
    denoise: Denoise[C],
    log_probability: Callable[[Tensor, Tensor, C], Float[Tensor, " batch"]],
    *,
    scale: float,
    interval: Interval = EVERYWHERE,
) -> Denoise[C]:
    """Returns a denoiser that follows a classifier of noisy samples.

        x_0 = x_0(x) + scale sigma^2 d log p(condition | x, sigma) / dx         (Dhariwal & Nichol 2021)

    log_probability: (x, sigma, condition) -> log p for each sample, differentiable in x. At scale 1 and with
    the true p this samples the conditional distribution from an unconditional denoiser.
    """
    low, high = interval

    def guided(x: Tensor, sigma: Tensor, condition: C) -> Tensor:
        x0 = denoise(x, sigma, condition)
        active = (sigma >= low) & (sigma < high)
        if scale == 0 or not bool(active.any()):
            return x0
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            slope = torch.autograd.grad(log_probability(noisy, sigma, condition).sum(), noisy)[0]
        return x0 + _per_sample(torch.where(active, scale * sigma**2, 0), x) * slope

    return guided


def score_guided(
    denoise: Denoise[C],
    score: Callable[[Tensor, C], Float[Tensor, " batch"]],
    *,
    scale: float,
    interval: Interval = EVERYWHERE,
) -> Denoise[C]:
    """Returns a denoiser that raises a score of clean samples, such as CLIP's of a decoder's pictures.

    The score of the expected x_0 takes the place of a noisy classifier's log-probability (Chung et al. 2023,
    "Diffusion Posterior Sampling", eq. 9), so its gradient goes through `denoise`, which must not stop it.

    score: (x_0, condition) -> a number for each sample, differentiable in x_0.
    """
    low, high = interval

    def guided(x: Tensor, sigma: Tensor, condition: C) -> Tensor:
        active = (sigma >= low) & (sigma < high)
        if scale == 0 or not bool(active.any()):
            return denoise(x, sigma, condition)
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            x0 = denoise(noisy, sigma, condition)
            slope = torch.autograd.grad(score(x0, condition).sum(), noisy)[0]
        return x0.detach() + _per_sample(torch.where(active, scale * sigma**2, 0), x) * slope

    return guided


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """[batch] with as many axes as x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each sample over all its axes, [batch, 1, ...]."""
    return _per_sample(x.flatten(1).std(dim=1), x)
