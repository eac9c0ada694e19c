"""The variance of a step towards less noise, learned (Nichol & Dhariwal 2021, "Improved DDPM", section 3.1).

A step from noise level `start` to `end` < `start` is a normal distribution around its mean. Its variance lies
between two bounds, here in the samplers' frame, x = x_0 + sigma eps:

    low   end^2 (start^2 - end^2) / start^2                  "beta-tilde": exact for data of no variance
    high  (1 + end^2) (start^2 - end^2) / (1 + start^2)      "beta": exact for data of unit variance

A network says a share v of each number, -1 at the low bound and 1 at the high one, in their logarithms
(eq. 15); beyond them it may go. Whole DDPM steps are `start` and `end` at neighbouring times of a variance-
preserving schedule, where both bounds times the end's alpha^2 are DDPM's (`discrete`).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def learned_log_variance(
    share: Float[Tensor, " batch *shape"], start: Float[Tensor, " batch"], end: Float[Tensor, " batch"]
) -> Float[Tensor, " batch *shape"]:
    """Log variance of the step from noise level `start` to `end`, 0 < end < start."""
    low, high = (_expand(bound, share) for bound in _log_bounds(start, end))
    f = (share + 1) / 2
    return f * high + (1 - f) * low


def variance_loss(
    x0: Float[Tensor, " batch *shape"],
    predicted: Float[Tensor, " batch *shape"],
    share: Float[Tensor, " batch *shape"],
    start: Float[Tensor, " batch"],
    end: Float[Tensor, " batch"],
) -> Float[Tensor, " batch *shape"]:
    """KL(q(x_end | x_start, x_0) || p(x_end | x_start)) of each number in nats: a term of L_vlb.

    `predicted` x_0 gives the mean of p and gets no gradient (section 3.1: L_vlb teaches the variance alone).
    The same in every frame.
    """
    log_variance = learned_log_variance(share, start, end)
    low = _expand(_log_bounds(start, end)[0], x0)
    error = _expand(1 - (end / start) ** 2, x0) * (x0 - predicted.detach())
    difference = low - log_variance
    return 0.5 * (torch.expm1(difference) - difference + error**2 * torch.exp(-log_variance))


def _log_bounds(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    # Neighbouring times of a thousand differ little: their difference is taken before it is rounded.
    removed = torch.log((start - end) * (start + end))
    low = removed + 2 * torch.log(end / start)
    return low, removed + torch.log1p(end**2) - torch.log1p(start**2)


def _expand(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(-1, *(1,) * (like.ndim - 1))
