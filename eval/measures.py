"""All measures of one system's outputs against held-out assets, each with draws of a bootstrap.

A measure is a mean of rows (one an output or a reference), or a function of sums that merge (Frechet) or of
all pairs (kernel). Draws are of prompts and of the seeds within each; rows of references are drawn as
references. Otherwise the references are held fixed: they are the same for all systems. Systems with equal
prompts have equal draws, so that the spread of differences between them is that of pairs (`eval.compare`).

    failed              share of outputs that are missing, unreadable or without a surface; they stay in all
                        else
    printable           share that is watertight, of one piece and without an inner shell, as the files are
    r_at_1, r_at_5      share whose own prompt is among the judge's first among `prompts`; a failed one's
                        never is
    clip_score          mean cosine of picture and prompt
    r_at_1/points/NETWORK and others   the same by shape, of a network of points and the CLIP beside it
    mmd_cd ... one_nna_cd   see `eval.sets`
    frechet/KIND/NETWORK and others   see `eval.distributions`
    diversity/...       mean distance between the outputs of one prompt over that between references: 1 for
                        outputs as unlike as any two references, 0 for copies
    chamfer ... normal_psnr   see `shapeloom.surface_metrics`, of outputs that have a truth
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from scipy.spatial.distance import cdist, pdist

from eval.chamfer import chamfer_matrix, symmetric_chamfer_matrix
from eval.distributions import (
    Gaussian,
    Moments,
    kernel_distance,
    kernel_matrix,
    neighbour_scores,
    percentile_interval,
    resampling_weights,
    spread_within,
    weighted_means,
)
from eval.folders import Item
from eval.looks import KINDS, POINTS, Look
from eval.printable import PRINTABLE
from eval.sets import set_rows
from shapeloom.clip import Clip
from shapeloom.config import Config
from shapeloom.metrics import Interval
from shapeloom.seed import numpy_rng
from shapeloom.surface_metrics import SURFACE_SCORES

FRECHET_GROUPS = 20
"""Parts of the outputs, by prompt, whose sums are drawn and merged."""


class MeasureConfig(Config):
    """How finely systems are compared."""

    set_size: int = Field(100, ge=2, description="outputs, and as many references, compared as clouds")
    neighbours: int = Field(5, ge=1, description="k of precision, recall, density and coverage")
    draws: int = Field(200, ge=20, description="of the bootstrap")
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """A measure of a system, its bootstrap's draws, and of how many outputs (or references) it is."""

    value: float
    draws: Float[ndarray, " draws"]
    num: int

    @property
    def interval(self) -> Interval:
        """95%."""
        return percentile_interval(self.draws)


@dataclass(frozen=True)
class Judged:
    """A system's outputs or the references, with their looks."""

    items: list[Item]
    looks: list[Look]

    def take(self, index: Int[ndarray, " some"]) -> "Judged":
        """Some of them."""
        return Judged([self.items[i] for i in index], [self.looks[i] for i in index])

    def features(self, key: str) -> Float[ndarray, "objects views features"] | None:
        """Of a network and a kind of picture; None unless all have them."""
        if not all(key in look.features for look in self.looks):
            return None
        return np.stack([look.features[key] for look in self.looks])

    @property
    def prompts(self) -> list[str]:
        """Of each; its name where it has none, so that it stands for itself."""
        return [item.prompt or item.name for item in self.items]

    @property
    def has_clouds(self) -> bool:
        """Whether all have surfaces, or fail to."""
        return all(len(look.points) for look in self.looks)


class Reference:
    """Held-out assets, and what is computed of them once for all systems."""

    def __init__(
        self, judged: Judged, config: MeasureConfig, networks: Mapping[str, str], *, num: int
    ) -> None:
        """networks: digest -> name. num: of outputs and references that are compared as sets: all
        of a table's systems have that many, since Frechet distances and neighbours depend on it."""
        self.config, self.networks, self.num = config, networks, num
        self.judged = judged.take(np.arange(len(judged.items))[:num])
        self.weights = resampling_weights(self.judged.prompts, num=config.draws, seed=config.seed + 1)
        self.keys = {
            f"{kind}/{name}": f"{digest} {kind}"
            for digest, name in networks.items()
            for kind in (*KINDS, POINTS)
        }
        self._features = {key: self.judged.features(key) for key in self.keys.values()}
        self._origins = {k: f.mean(axis=(0, 1)) for k, f in self._features.items() if f is not None}
        self._gaussians = {
            key: Gaussian(Moments.of(_flat(found, self._origins[key])))
            for key, found in self._features.items()
            if found is not None
        }
        self._kernels = {k: kernel_matrix(f, f) for k, f in self._features.items() if f is not None}
        self._clouds = [look.points for look in self.judged.looks[: config.set_size]]
        self._within = symmetric_chamfer_matrix(self._clouds) if self.judged.has_clouds else None

    def measure(self, system: Judged, retrievals: Sequence["Retrieval"]) -> dict[str, Measured]:
        """Returns every measure of a system that its outputs allow."""
        config = self.config
        found = self.of_each(system, retrievals)
        order = numpy_rng("outputs", config.seed).permutation(len(system.items))[: self.num]
        chosen = system.take(np.sort(order))
        weights = resampling_weights(chosen.prompts, num=config.draws, seed=config.seed)
        if self._within is not None and chosen.has_clouds:
            found |= dict(self._as_clouds(chosen.take(np.arange(len(self._clouds)))))
        for name, key in self.keys.items():
            features = chosen.features(key)
            if features is not None and self._features[key] is not None:
                found |= {
                    f"{measure}/{name}": m for measure, m in self._alike(features, key, chosen, weights)
                }
        return found

    def of_each(self, system: Judged, retrievals: Sequence["Retrieval"]) -> dict[str, Measured]:
        """Returns the measures that are of each output alone, which references have too."""
        weights = resampling_weights(system.prompts, num=self.config.draws, seed=self.config.seed)
        rows: dict[str, ndarray] = {"failed": np.array([bool(look.fault) for look in system.looks], float)}
        facts = {
            name: np.array([look.facts.get(name, np.nan) for look in system.looks])
            for name in (*PRINTABLE, *SURFACE_SCORES)
        }
        rows |= {"printable": np.prod([facts[name] for name in PRINTABLE], axis=0), **facts}
        for each in retrievals:
            rows |= each.rows(system)
        known = {name: int((~np.isnan(values)).sum()) for name, values in rows.items()}
        return {name: _mean(values, weights, known[name]) for name, values in rows.items() if known[name]}

    # ------------------------------------------------------------ as a set

    def _as_clouds(self, chosen: Judged) -> Iterator[tuple[str, Measured]]:
        clouds = [look.points for look in chosen.looks]
        within, across = symmetric_chamfer_matrix(clouds), chamfer_matrix(clouds, self._clouds)
        assert self._within is not None
        rows = set_rows(within, self._within, across)
        draws = self.config.draws
        own = resampling_weights(chosen.prompts, num=draws, seed=self.config.seed)
        theirs = resampling_weights(
            self.judged.prompts[: len(self._clouds)], num=draws, seed=self.config.seed + 1
        )
        for name in ("mmd_cd", "cov_cd"):
            yield name, _mean(rows[name], theirs, len(theirs[0]))
        yield "one_nna_cd", _mean(rows["one_nna_cd"], np.concatenate([own, theirs], axis=1), len(clouds))
        scale = float(self._within.sum() / max(1, self._within.size - len(self._within)))
        apart = spread_within(within, chosen.prompts) / scale
        if (known := ~np.isnan(apart)).any():
            yield "diversity_cd", _mean(apart, own, int(known.sum()))

    def _alike(
        self, features: Float[ndarray, "objects views features"], key: str, chosen: Judged, weights: ndarray
    ) -> Iterator[tuple[str, Measured]]:
        reference = self._features[key]
        assert reference is not None
        num = len(features)
        yield "frechet", self._frechet(features, key, chosen.prompts)
        within, between = kernel_matrix(features, features), kernel_matrix(features, reference)
        kernels = within, self._kernels[key], between
        yield "kernel", Measured(float(kernel_distance(*kernels)[0]), kernel_distance(*kernels, weights), num)
        means, others = features.mean(axis=1), reference.mean(axis=1)
        if num > self.config.neighbours:
            for name, rows in neighbour_scores(means, others, k=self.config.neighbours).items():
                drawn = weights if name in ("precision", "density") else self.weights
                yield name, _mean(rows, drawn, num)
        apart = spread_within(cdist(means, means), chosen.prompts) / pdist(others).mean()
        if (known := ~np.isnan(apart)).any():
            yield "diversity", _mean(apart, weights, int(known.sum()))

    def _frechet(
        self, features: Float[ndarray, "objects views features"], key: str, prompts: Sequence[str]
    ) -> Measured:
        """By sums over FRECHET_GROUPS parts, which merge to the whole and to each draw."""
        group = np.unique(prompts, return_inverse=True)[1] % FRECHET_GROUPS
        origin, gaussian = self._origins[key], self._gaussians[key]
        parts = [Moments.of(_flat(features[group == g], origin)) for g in np.unique(group)]
        num = len(parts)
        rng = numpy_rng("frechet draws", self.config.seed)
        copies = rng.multinomial(num, np.full(num, 1 / num), size=self.config.draws)
        draws = np.array([gaussian.frechet(Moments.merged(parts, row)) for row in copies])
        value = gaussian.frechet(Moments.merged(parts, np.ones(num, np.int64)))
        # Draws hold copies, which bias the distance upward; moved to the value, their spread alone counts.
        return Measured(value, (draws - draws.mean() + value).clip(min=0), len(features))


def _flat(features: ndarray, origin: ndarray) -> Float[ndarray, "pictures features"]:
    """All pictures' vectors about the references' mean, so that sums lose no digits."""
    return features.reshape(-1, features.shape[-1]).astype(np.float64) - origin


def _mean(values: Float[ndarray, " items"], weights: ndarray, num: int) -> Measured:
    return Measured(float(np.nanmean(values)), weighted_means(values, weights), num)


class Retrieval:
    """Which prompt an output shows, among as many prompts for each: by its pictures or by its shape."""

    def __init__(self, clip: Clip, prompts: Sequence[str], key: str | None = None, *, name: str = "") -> None:
        """clip: the judge, which sees shaded pictures itself; with a key, the one whose space the features
        of that key are in. prompts: the list's, each once; two or more. name: of the features, for people.
        """
        self.key = key or f"{clip.digest} shaded"
        self.name = name
        self.clip, self.prompts = clip, list(dict.fromkeys(prompts))
        self.text = clip.text(self.prompts).pooled.cpu()

    def rows(self, system: Judged) -> dict[str, Float[ndarray, " outputs"]]:
        """Returns r_at_1, r_at_5 and clip_score of each output; {} where some has no prompt or pictures.

        A prompt that isn't in the list, as of a held-out asset, takes the place of one that is.
        """
        features = system.features(self.key)
        own_prompts = [item.prompt for item in system.items]
        if features is None or not all(own_prompts):
            return {}
        seen = torch.nn.functional.normalize(torch.from_numpy(features).mean(dim=1), dim=-1)
        own = (seen * self.clip.text(own_prompts).pooled.cpu()).sum(dim=1)
        others = seen @ self.text.T
        rank = np.empty(len(own))
        for i, prompt in enumerate(own_prompts):
            is_other = torch.tensor([text != prompt for text in self.prompts])
            rivals = others[i][is_other][: len(self.prompts) - 1]
            rank[i] = int((rivals >= own[i]).sum())
        failed = np.array([bool(look.fault) for look in system.looks])
        rank[failed] = len(self.prompts)
        found = {f"r_at_{k}": (rank < k).astype(float) for k in (1, 5) if k < len(self.prompts)}
        found["clip_score"] = np.where(failed, 0.0, own.numpy()).astype(float)
        return {f"{measure}/{self.name}".rstrip("/"): rows for measure, rows in found.items()}
