"""How probable a denoiser finds samples: by its probability flow, and by a variational bound.

Both work in the samplers' frame, x = x_0 + sigma eps, with the same `denoise(x, sigma, condition) -> x_0`,
and take the most noise for a normal distribution of standard deviation sigma.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from shapeloom.diffusion.samplers import Denoise

C = TypeVar("C")


def log_likelihood(
    denoise: Denoise[C], x: Float[Tensor, " batch *shape"], sigmas: Float[Tensor, " levels"], condition: C, *,
    probe: Float[Tensor, " batch *shape"] | None = None,
) -> Float[Tensor, " batch"]:  # fmt: skip
    """Returns log densities in nats by the change of variables along the flow (Song et al. 2021, "Score-Based
    Generative Modeling", eq. 39), integrated by Heun's rule.

    Args:
        denoise: differentiable in x.
        x: samples with noise of sigmas[0], whose density is returned: data without noise may have none.
        sigmas: rising levels > 0.
        probe: random signs or standard normal numbers, which estimate the divergence without bias at the cost
            of one backward pass (Hutchinson); without it the divergence is exact, at one pass a dimension.

    Raises ValueError when the levels don't rise.
    """
    levels = [float(sigma) for sigma in sigmas]
    if len(levels) < 2 or levels[0] <= 0 or any(b <= a for a, b in pairwise(levels)):
        raise ValueError(f"sigmas must be two or more rising levels > 0, got {levels}")
    change = x.new_zeros(len(x))
    for low, high in pairwise(levels):
        slope, divergence = _flow(denoise, x, low, condition, probe)
        ahead, divergence_ahead = _flow(denoise, x + (high - low) * slope, high, condition, probe)
        x = x + (high - low) * (slope + ahead) / 2
        change = change + (high - low) * (divergence + divergence_ahead) / 2
    return change + _normal_log_density(x, levels[-1])


def _flow(
    denoise: Denoise[C], x: Tensor, sigma: float, condition: C, probe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dx / dsigma and its divergence for each sample."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        level = torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
        slope = (x - denoise(x, level, condition)) / sigma
        divergence = _divergence(slope, x, probe)
    return slope.detach(), divergence.detach()


def _divergence(slope: Tensor, x: Tensor, probe: Tensor | None) -> Tensor:
    if probe is not None:
        product = torch.autograd.grad(slope, x, probe)[0]
        return (probe * product).flatten(1).sum(dim=1)
    flat = slope.flatten(1)
    total = flat.new_zeros(len(flat))
    for i in range(flat.shape[1]):
        row = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0]
        total = total + row.flatten(1)[:, i]
    return total


@torch.no_grad()
def variational_bound(
    denoise: Denoise[C],
    x: Float[Tensor, " batch *shape"],
    sigmas: Float[Tensor, " levels"],
    condition: C,
    noise: Callable[[int], Float[Tensor, " batch *shape"]],
) -> Float[Tensor, " batch"]:
    """Returns an upper bound, in expectation over the noise, of -log density in nats.

    It sums the diffusion's terms for the given levels (Kingma et al. 2021, "Variational Diffusion Models",
    eq. 11 and 13), what the most noise leaves of the sample, and what the least takes from it. More levels
    make it tighter.

    Args:
        x: samples without noise.
        sigmas: falling levels > 0.
        noise: standard normal numbers for level i, shaped as x.

    Raises ValueError when the levels don't fall. `bits_per_dim` makes the usual figure of it.
    """
    levels = [float(sigma) for sigma in sigmas]
    if len(levels) < 2 or levels[-1] <= 0 or any(b >= a for a, b in pairwise(levels)):
        raise ValueError(f"sigmas must be two or more falling levels > 0, got {levels}")
    numbers = x[0].numel()
    # The most noise against the prior N(0, sigma^2); the least, of a normal distribution around x.
    bound = (x**2).flatten(1).sum(dim=1) / (2 * levels[0] ** 2)
    bound = bound + 0.5 * numbers * (1 + math.log(2 * math.pi * levels[-1] ** 2))
    for i, (high, low) in enumerate(pairwise(levels)):
        noisy = x + high * noise(i)
        error = x - denoise(noisy, torch.full((len(x),), high, dtype=x.dtype, device=x.device), condition)
        bound = bound + 0.5 * (low**-2 - high**-2) * (error**2).flatten(1).sum(dim=1)
    return bound


def bits_per_dim(nats: Float[Tensor, " batch"], numbers: int) -> Float[Tensor, " batch"]:
    """Negative log densities of samples of so many numbers, in bits a number."""
    return nats / (numbers * math.log(2))


def _normal_log_density(x: Tensor, sigma: float) -> Tensor:
    flat = x.flatten(1) / sigma
    return -0.5 * (flat**2 + math.log(2 * math.pi * sigma**2)).sum(dim=1)
