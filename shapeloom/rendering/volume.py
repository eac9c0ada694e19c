"""Emission-absorption along rays (Max 1995), with densities constant within intervals.

sigma: density a unit of length; delta: an interval's length. Interval i is reached with transmittance
T_i = exp(-sum_{j<i} sigma_j delta_j) and adds weight w_i = T_i (1 - exp(-sigma_i delta_i)).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RayValues:
    """What rays see. rgb is premultiplied by alpha; distance is the expected t, premultiplied likewise."""

    rgb: Float[Tensor, "*rays 3"]
    alpha: Float[Tensor, " *rays"]
    distance: Float[Tensor, " *rays"]


def ray_weights(
    density: Float[Tensor, "*rays samples"], delta: Float[Tensor, "*rays samples"]
) -> Float[Tensor, "*rays samples"]:
    """Returns w_i; they sum to the ray's alpha, exactly 1 - exp(-sum sigma delta)."""
    return transmittance(density, delta) * -torch.expm1(-density * delta)


def transmittance(
    density: Float[Tensor, "*rays samples"], delta: Float[Tensor, "*rays samples"]
) -> Float[Tensor, "*rays samples"]:
    """Returns T_i, the share of light that reaches each interval's start."""
    optical_depth = density * delta
    # The sum before each interval: an exclusive cumulative sum.
    return torch.exp(optical_depth - optical_depth.cumsum(dim=-1))


def composite(
    density: Float[Tensor, "*rays samples"],
    rgb: Float[Tensor, "*rays samples 3"],
    t: Float[Tensor, "*rays samples"],
    edges: Float[Tensor, "*rays edges"],
) -> RayValues:
    """Returns colour, alpha and distance of rays whose intervals lie between `edges`, sampled at `t`."""
    weights = ray_weights(density, edges[..., 1:] - edges[..., :-1])
    return RayValues(
        rgb=(weights[..., None] * rgb).sum(dim=-2),
        alpha=weights.sum(dim=-1),
        distance=(weights * t).sum(dim=-1),
    )


def importance_samples(
    edges: Float[Tensor, "*rays edges"], weights: Float[Tensor, "*rays samples"], num_samples: int
) -> Float[Tensor, "*rays fine"]:
    """Returns `num_samples` sorted positions spread evenly over the distribution of `weights` (NeRF, 5.2).

    Deterministic: the quantiles (i + 0.5)/num_samples of the piecewise constant density.
    """
    # A hundredth of the mean weight everywhere keeps rays without any weight well defined (uniform).
    padded = weights + 0.01 * weights.mean(dim=-1, keepdim=True) + 1e-8
    cdf = torch.cumsum(padded, dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf / cdf[..., -1:]], dim=-1)
    quantile = (torch.arange(num_samples, device=edges.device, dtype=edges.dtype) + 0.5) / num_samples
    quantile = quantile.expand(*cdf.shape[:-1], num_samples).contiguous()
    above = torch.searchsorted(cdf.contiguous(), quantile, right=True).clamp(1, cdf.shape[-1] - 1)
    cdf_low, cdf_high = cdf.gather(-1, above - 1), cdf.gather(-1, above)
    edge_low, edge_high = edges.gather(-1, above - 1), edges.gather(-1, above)
    share = (quantile - cdf_low) / (cdf_high - cdf_low).clamp(min=1e-12)
    return edge_low + share.clamp(0, 1) * (edge_high - edge_low)
