"""Samplers: from noise to data along the probability-flow ODE, or with fresh noise along the way.

All of them work in the variance-exploding frame, x = x_0 + sigma eps, through one seam:

    denoise(x, sigma, condition) -> the expected x_0     x [batch, ...], sigma [batch] > 0

where the ODE is dx / dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, eq. 1). A network trained
with any schedule fits in: it sees alpha x at the time where sigma / alpha equals this sigma.

    name          order  calls a step  noise  source
    euler, ddim   1      1             no     Karras et al. 2022, Song et al. 2021: the same in any frame
    heun          2      2             no     Karras et al. 2022, algorithm 1
    ddpm          1      1             yes    Ho et al. 2020: ancestral (or learned variance)
    dpmpp_2m      2      1             no     Lu et al. 2022, "DPM-Solver++", algorithm 2
    dpmpp_2m_sde  2      1             yes    the same paper, section 5 (SDE-DPM-Solver++(2M))
    unipc         3      1             no     Zhao et al. 2023: predictor of order 2, corrector of order 3

With lambda = -log sigma the ODE is dx / dlambda = x_0 - x: multistep samplers fit x_0 over lambda and
integrate the rest exactly. Orders are of the ODE's solution, for the
stochastic ones of the distribution (weak).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, Literal, TypeVar, assert_never

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

C = TypeVar("C")
Denoise = Callable[[Tensor, Tensor, C], Tensor]
"""The seam between networks and samplers: (x, sigma, condition) -> x_0; the condition is handed through."""
LogVariance = Callable[[Tensor, Tensor, Tensor, C], Tensor]
"""(x, its sigma, the next sigma > 0, condition) -> log variance of the step, shaped as x (see `variance`)."""
SamplerName = Literal["euler", "heun", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc"]


def initial_noise(
    noise: Float[Tensor, " batch *shape"], sigmas: Float[Tensor, " levels"]
) -> Float[Tensor, " batch *shape"]:
    """The start of a trajectory: standard normal `noise` at the first level."""
    return noise * float(sigmas[0])


@torch.no_grad()
def sample(
    denoise: Denoise[C], x: Float[Tensor, " batch *shape"], sigmas: Float[Tensor, " levels"], condition: C, *,
    method: SamplerName = "heun", log_variance: LogVariance[C] | None = None,
    noise: Callable[[int], Float[Tensor, " batch *shape"]] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Float[Tensor, " batch *shape"]:  # fmt: skip
    """Walks x from sigmas[0] down to sigmas[-1] and returns it.

    Args:
        denoise: see the top of this file.
        x: samples at noise level sigmas[0] (`initial_noise`, or data with noise added: SDEdit).
        sigmas: falling noise levels (`steps`); the last may be 0.
        condition: handed to `denoise`.
        method: see the table above. A step to 0 lands on x_0 itself, whatever the method.
        log_variance: of ddpm's steps, where a network has learned it; none: the least that it can be.
        noise: standard normal numbers for step i, shaped as x; needed by ddpm and dpmpp_2m_sde. Seed it
            per sample, so that a sample doesn't depend on its batch mates.
        on_step: called with i after each step, for a progress bar.

    Raises ValueError when the levels don't fall, or the method needs noise and there is none.
    """
    levels = [float(s) for s in sigmas]
    if len(levels) < 2 or any(b >= a for a, b in pairwise(levels)) or levels[-1] < 0:
        raise ValueError(f"sigmas must be two or more falling levels >= 0, got {levels}")
    if noise is None and method in ("ddpm", "dpmpp_2m_sde"):
        raise ValueError(
            f"{method} needs `noise`: a function of the step that returns standard normal numbers"
        )
    if log_variance is not None and method != "ddpm":
        raise ValueError(f"log_variance is of the steps of ddpm, got it for {method}")
    walk = _Walk(denoise, condition, noise, log_variance)
    for i, (level, following) in enumerate(pairwise(levels)):
        x = walk.step(method, x, level, following, i)
        if on_step is not None:
            on_step(i)
    return x


@dataclass
class _Walk(Generic[C]):
    """One trajectory; `past` holds (sigma, x_0) of the latest evaluations, which multistep methods reuse."""

    denoise: Denoise[C]
    condition: C
    noise: Callable[[int], Tensor] | None
    log_variance: LogVariance[C] | None
    past: list[tuple[float, Tensor]] = field(default_factory=list)

    def x0(self, x: Tensor, sigma: float) -> Tensor:
        result = self.denoise(x, self._level(x, sigma), self.condition)
        self.past = [*self.past[-1:], (sigma, result)]
        return result

    def step(self, method: SamplerName, x: Tensor, start: float, end: float, i: int) -> Tensor:
        # unipc has evaluated its prediction of x at this level already.
        known = method == "unipc" and bool(self.past)
        x0 = self.past[-1][1] if known else self.x0(x, start)
        if end == 0:  # at sigma 0 the slope is not defined and lambda infinite
            return x0
        match method:
            case "euler" | "heun":
                slope = (x - x0) / start
                moved = x + (end - start) * slope
                if method == "euler":
                    return moved
                return x + (end - start) * (slope + (moved - self.x0(moved, end)) / end) / 2
            case "ddim":
                return x0 + end / start * (x - x0)
            case "ddpm":
                # The spread of q(x_end | x_start, x_0).
                spread = end * math.sqrt(1 - (end / start) ** 2)
                kept = math.sqrt(end**2 - spread**2) / start
                moved = x0 + kept * (x - x0)
                if self.log_variance is None:
                    return self._noised(moved, spread, i)
                levels = self._level(x, start), self._level(x, end)
                learned = torch.exp(self.log_variance(x, *levels, self.condition) / 2)
                return self._noised(moved, learned, i)
            case "dpmpp_2m":
                decay = end / start
                return decay * x + (1 - decay) * self._extrapolated(start, end)
            case "dpmpp_2m_sde":
                decay = (end / start) ** 2
                moved = decay * x + (1 - decay) * self._extrapolated(start, end)
                return self._noised(moved, end * math.sqrt(1 - decay), i)
            case "unipc":
                nodes = list(self.past)
                predicted = _integrate(x, nodes, start, end)
                return _integrate(x, [*nodes, (end, self.x0(predicted, end))], start, end)
            case _:
                assert_never(method)

    @staticmethod
    def _level(x: Tensor, sigma: float) -> Tensor:
        return torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)

    def _noised(self, x: Tensor, spread: float | Tensor, i: int) -> Tensor:
        assert self.noise is not None
        return x + spread * self.noise(i)

    def _extrapolated(self, start: float, end: float) -> Tensor:
        """x_0 in the middle of the step (in lambda), on the line through the last two evaluations."""
        x0 = self.past[-1][1]
        if len(self.past) < 2:
            return x0
        before, earlier = self.past[-2]
        return x0 + math.log(start / end) / (2 * math.log(before / start)) * (x0 - earlier)


def _integrate(x: Tensor, nodes: list[tuple[float, Tensor]], start: float, end: float) -> Tensor:
    """Exact solution of dx / dlambda = x_0 - x where x_0 is the polynomial in lambda through `nodes`.

    The weights of x_0 solve sum_j w_j u_j^k = m_k = int_0^h e^(u - h) u^k du, u = log(start / sigma),
    h its end.
    """
    h = math.log(start / end)
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(h**k - k * moments[-1])
    places = np.log(start / np.array([sigma for sigma, _ in nodes]))
    weights = np.linalg.solve(np.vander(places, increasing=True).T, moments)
    result = math.exp(-h) * x
    for weight, (_, x0) in zip(weights.tolist(), nodes, strict=True):
        result = result + weight * x0
    return result
