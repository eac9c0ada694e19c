"""Measures of pictures, retrieval, distances, and their uncertainty: pure functions without state.

Pictures are sRGB in [0, 1] on a white background, and all pixels count. Surfaces: see
`surface_metrics` too.
"""

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from skimage.metrics import structural_similarity
from torch import Tensor

from shapeloom.seed import numpy_rng

MAX_PSNR = 100.0
"""Decibels of equal pictures, whose PSNR would be infinite and spoil every mean."""

Interval = tuple[float, float]
T = TypeVar("T", ndarray, Tensor)


# ---------------------------------------------------------------- pictures


def psnr(
    predicted: Float[ndarray, "*batch height width 3"], truth: Float[ndarray, "*batch height width 3"]
) -> Float[ndarray, " *batch"]:
    """Returns the peak signal-to-noise ratio of each picture, dB, at most MAX_PSNR.

    A constant error of 0.1 gives 20 dB.
    """
    error = ((predicted.astype(np.float64) - truth) ** 2).mean(axis=(-3, -2, -1))
    return np.asarray(-10 * np.log10(np.maximum(error, 10 ** (-MAX_PSNR / 10))))


def ssim(predicted: Float[ndarray, "height width 3"], truth: Float[ndarray, "height width 3"]) -> float:
    """Returns the structural similarity of one picture, at most 1.

    Wang et al. (2004), with their Gaussian window of sigma 1.5 pixels, the mean of the three channels. Raises
    ValueError for pictures smaller than the window of 11 pixels.
    """
    if min(truth.shape[:2]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11x11 pixels, got {list(truth.shape[:2])}.")
    return float(
        structural_similarity(
            predicted.astype(np.float64), truth.astype(np.float64), channel_axis=-1, data_range=1.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
    )  # fmt: skip


def mask_iou(
    predicted: Float[ndarray, "*batch height width"], truth: Float[ndarray, "*batch height width"]
) -> Float[ndarray, " *batch"]:
    """Returns intersection over union of alpha > 0.5 for each picture; 1 where both masks are empty."""
    first, second = predicted > 0.5, truth > 0.5
    both, either = (first & second).sum(axis=(-2, -1)), (first | second).sum(axis=(-2, -1))
    return np.asarray(np.where(either > 0, both / np.maximum(either, 1), 1.0))


# ---------------------------------------------------------------- retrieval


def ranks(
    similarity: Float[ndarray, "samples prompts"], target: Int[ndarray, " samples"]
) -> Int[ndarray, " samples"]:
    """Returns at which place, from 0, each sample's own prompt comes; a tie counts against it.

    So a judge that answers the same to everything is always wrong, not always right.
    """
    own = np.take_along_axis(similarity, target[:, None], axis=1)
    return np.asarray((similarity >= own).sum(axis=1) - 1)


def retrieval_at_k(
    similarity: Float[ndarray, "samples prompts"], target: Int[ndarray, " samples"], k: int
) -> float:
    """Returns the share of samples whose own prompt is among the k most similar; chance is k / prompts."""
    return float((ranks(similarity, target) < k).mean())


# ---------------------------------------------------------------- surfaces


def chamfer_l1(forward: T, backward: T) -> Any:
    """Returns the mean of both directions' mean distances (Mescheder et al. 2019, "Occupancy Networks").

    forward [*batch, n]: distance of each point of one surface to the other; backward [*batch, m]: the other
    way round. Two parallel planes at a distance d give d.
    """
    return (forward.mean(-1) + backward.mean(-1)) / 2


def chamfer_l2(forward: T, backward: T) -> Any:
    """Returns the sum of both directions' mean squared distances, arguments as for `chamfer_l1`.

    Achlioptas et al. 2018, section 2, with means instead of sums. Two parallel planes give 2 d^2.
    """
    return (forward**2).mean(-1) + (backward**2).mean(-1)


# ---------------------------------------------------------------- uncertainty


def share_interval(right: Bool[ndarray, " trials"]) -> Interval:
    """Returns the 95% interval of the share of True (Wilson 1927).

    0 of 100 gives (0, 0.037), and no trials (0, 1).
    """
    from scipy.stats import binomtest  # nearly a second, which only evaluations have to wait

    if not len(right):
        return 0.0, 1.0
    low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return float(low), float(high)


def bootstrap_interval(
    values: Float[ndarray, " assets"], *, seed: int = 0, num: int = 2000, level: float = 0.95
) -> Interval:
    """Returns the percentile interval of the mean over resampled `values` (Efron 1979).

    scipy's refuses a single value, which splits of one asset have: (v, v) here.
    """
    if not len(values):
        raise ValueError("a bootstrap needs at least one value")
    draws = numpy_rng("bootstrap", seed).integers(0, len(values), (num, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
