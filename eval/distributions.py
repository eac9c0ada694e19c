"""How alike two sets of feature vectors are, and how sure that is: pure functions without state.

An object has several pictures and each picture a vector: features are [objects, pictures, features].

    frechet       Frechet distance of Gaussians fitted to all pictures (Heusel et al. 2017); few are biased
                  upward
    kernel        squared maximum mean discrepancy with the kernel (x.y / features + 1)^3 (Binkowski et al.
                  2018), of pairs of pictures of different objects alone, so that it is unbiased, also below 0
    precision     share of samples within the k-NN ball of some reference; recall: the other way round
                  (Kynkaanniemi et al. 2019)
    density       how many of those balls a sample is in, over k; coverage: share of references with a sample
                  in their ball (Naeem et al. 2020)

The last four are of an object's mean vector. Resampling is two-staged: prompts, then the seeds of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.spatial.distance import cdist

from shapeloom.metrics import Interval
from shapeloom.seed import numpy_rng

OBJECTS_AT_ONCE = 32
"""Of which kernels with all others are held in memory."""


# ---------------------------------------------------------------- Gaussians


@dataclass(frozen=True)
class Moments:
    """Sums over vectors, which merge: those of two shards, added, are those of both; twice, of copies."""

    count: float
    total: Float[ndarray, " features"]
    outer: Float[ndarray, "features features"]

    @classmethod
    def of(cls, vectors: Float[ndarray, "n features"]) -> "Moments":
        """Of vectors, in float64."""
        x = np.asarray(vectors, np.float64)
        return cls(float(len(x)), x.sum(axis=0), x.T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @staticmethod
    def merged(parts: Sequence["Moments"], copies: Int[ndarray, " parts"]) -> "Moments":
        """Of each part so many times."""
        used = [(part, times) for part, times in zip(parts, copies.tolist(), strict=True) if times]
        outer = np.zeros_like(parts[0].outer)
        for part, times in used:
            outer += part.outer if times == 1 else times * part.outer
        count = float(sum(times * part.count for part, times in used))
        return Moments(count, np.sum([times * part.total for part, times in used], axis=0), outer)

    @property
    def mean(self) -> Float[ndarray, " features"]:
        """Of the vectors."""
        return self.total / self.count

    @property
    def covariance(self) -> Float[ndarray, "features features"]:
        """Unbiased. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a Gaussian needs two samples or more, got {self.count:.0f}")
        return (self.outer - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)


class Gaussian:
    """What many sets of features are measured against: its covariance's root is taken once."""

    def __init__(self, moments: Moments) -> None:
        self.mean, covariance = moments.mean, moments.covariance
        values, vectors = np.linalg.eigh(covariance)
        self.root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
        self.trace = float(np.trace(covariance))

    def frechet(self, other: Moments) -> float:
        """Returns |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)).

        The last trace is that of (R S_2 R)^(1/2) with R = S_1^(1/2), whose eigenvalues are real.
        """
        covariance = other.covariance
        shared = np.sqrt(np.linalg.eigvalsh(self.root @ covariance @ self.root).clip(min=0)).sum()
        apart = ((self.mean - other.mean) ** 2).sum()
        return max(0.0, float(apart + self.trace + np.trace(covariance) - 2 * shared))


def frechet_distance(first: Float[ndarray, "n features"], second: Float[ndarray, "m features"]) -> float:
    """Returns the Frechet distance of Gaussians fitted to both. Few samples bias it upward: compare equal
    numbers. Raises ValueError for fewer than two of either."""
    second = np.asarray(second, np.float64)
    origin = second.mean(axis=0) if len(second) else 0.0  # sums about it lose no digits
    a, b = (Moments.of(np.asarray(x, np.float64) - origin) for x in (first, second))
    return Gaussian(b).frechet(a)


# ---------------------------------------------------------------- kernels


def kernel_matrix(
    first: Float[ndarray, "n _ features"], second: Float[ndarray, "m _ features"]
) -> Float[ndarray, "n m"]:
    """Returns the mean kernel of all pairs of pictures, for each pair of objects."""
    num, views, width = second.shape
    others = second.reshape(-1, width).T.astype(np.float32)
    rows = []
    for start in range(0, len(first), OBJECTS_AT_ONCE):
        part = first[start : start + OBJECTS_AT_ONCE].astype(np.float32)
        kernel = (part.reshape(-1, width) @ others / width + 1) ** 3
        rows.append(kernel.reshape(len(part), part.shape[1], num, views).mean(axis=(1, 3), dtype=np.float64))
    return np.concatenate(rows)


def kernel_distance(
    within: Float[ndarray, "n n"],
    reference: Float[ndarray, "m m"],
    between: Float[ndarray, "n m"],
    weights: Int[ndarray, "draws n"] | None = None,
) -> Float[ndarray, " draws"]:
    """Returns the squared maximum mean discrepancy, of all objects once or of each draw of weights.

    Pairs of an object with itself are left out, copies that a draw made of it included. A draw of one object
    alone has no pairs: nan.
    """
    w = np.ones((1, len(within)), np.int64) if weights is None else weights
    square, total = w**2, w.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = (np.einsum("bi,ij,bj->b", w, within, w, optimize=True) - square @ np.diag(within)) / (
            total**2 - square.sum(axis=1)
        )
    num = len(reference)
    theirs = (reference.sum() - np.trace(reference)) / (num * (num - 1))
    return own + theirs - 2 * (w @ between.mean(axis=1)) / total


# ---------------------------------------------------------------- neighbours


def neighbour_scores(
    samples: Float[ndarray, "n features"], reference: Float[ndarray, "m features"], *, k: int
) -> dict[str, Float[ndarray, " _"]]:
    """Returns precision and density of each sample, recall and coverage of each reference.

    Their means are the measures. Raises ValueError for sets of `k` or fewer.
    """
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"sets need more than k = {k} objects, got {len(samples)} and {len(reference)}")
    # A ball reaches to the k-th other one: the 0th is the object itself.
    of_samples, of_reference = (np.partition(cdist(x, x), k, axis=1)[:, k] for x in (samples, reference))
    distance = cdist(samples, reference)
    inside = distance < of_reference
    return {
        "precision": inside.any(axis=1).astype(float),
        "recall": (distance < of_samples[:, None]).any(axis=0).astype(float),
        "density": inside.sum(axis=1) / k,
        "coverage": inside.any(axis=0).astype(float),
    }


def spread_within(distances: Float[ndarray, "n n"], groups: Sequence[str]) -> Float[ndarray, " n"]:
    """Returns each object's mean distance to the others of its group; nan where it has none."""
    names = np.array(groups)
    same = (names[:, None] == names) & ~np.eye(len(names), dtype=bool)
    return np.where(same, distances, 0).sum(axis=1) / np.where(same.any(axis=1), same.sum(axis=1), np.nan)


# ---------------------------------------------------------------- uncertainty


def resampling_weights(groups: Sequence[str], *, num: int, seed: int) -> Int[ndarray, "draws items"]:
    """Returns how often each item is in each of `num` bootstrap draws: of groups, then of a group's items.

    Equal groups in an equal order have equal draws, so that differences between systems are paired.
    """
    rng = numpy_rng("resampling", seed)
    names, member = np.unique(np.array(groups), return_inverse=True)
    copies = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num)
    weights = np.zeros((num, len(member)), np.int64)
    for group in range(len(names)):
        index = np.flatnonzero(member == group)
        share = np.full(len(index), 1 / len(index))
        weights[:, index] = rng.multinomial(copies[:, group] * len(index), share)
    return weights


def weighted_means(
    values: Float[ndarray, " items"], weights: Int[ndarray, "draws items"]
) -> Float[ndarray, " draws"]:
    """Returns each draw's mean of the values that aren't nan; nan for a draw without any."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights[:, known] @ values[known]) / weights[:, known].sum(axis=1)


def percentile_interval(draws: Float[ndarray, " draws"], *, level: float = 0.95) -> Interval:
    """Returns the middle part of the draws that are finite; (nan, nan) without any."""
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
