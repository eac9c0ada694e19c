"""Samples as a set: are they like held-out assets, as varied as those, and not copies of training assets?

Surfaces are compared as point clouds by `chamfer_l2`, d(X, Y), in the units of the box [-1, 1]^3. Of as
many samples as held-out assets:

    mmd_cd      mean over held-out assets of the distance to the nearest sample (less is better)
    cov_cd      share of held-out assets that are some sample's nearest (more is better)
    one_nna_cd  how often the nearest other cloud of both sets together comes from a cloud's own set: 0.5 if
                none can tell them apart, 1 if all can (Yang et al. 2019, "PointFlow", section 5.1)
    frechet     Frechet distance of Gaussians fitted to the judge's features of views (Heusel et al. 2017)

Beside them the shares of samples that could be printed (`eval.printable`), crumbs dropped as for export. A
sample without a surface is a point at the centre, and can't be printed: it is never left out.

The same figures of training assets in the samples' place stand beside them: what cannot be beaten honestly.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field

from data_prep.geometry.farthest import farthest_first
from eval.chamfer import Cloud, Distances, chamfer_matrix, symmetric_chamfer_matrix
from eval.nearest import TrainingAssets
from eval.printable import PRINTABLE, printability
from sampling.mesh import DEFAULT_MESH, drop_crumbs
from shapeloom.config import Config, UserError
from shapeloom.decoder import Decoder, select
from shapeloom.log import get_logger, progress
from shapeloom.metrics import share_interval
from shapeloom.rendering.isosurface import extract_surface
from shapeloom.seed import derive_seed, numpy_rng
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath, write_atomic

OVERSAMPLE = 4
"""Points on a sample's surface among which the farthest are chosen, for each that is: as for stored ones."""

Summary = dict[str, Any]

log = get_logger("eval")


class SetsConfig(Config):
    """How many samples are compared as sets, and how finely."""

    max_samples: int = Field(
        200, ge=0, description="of training assets' captions, no more than there are held-out assets; 0: none"
    )
    points: int = Field(2048, ge=16, description="of each cloud; no more than the data holds")
    resolution: int = Field(64, ge=16, le=512, description="of the samples' surfaces")


@dataclass(frozen=True)
class Neighbour:
    """The training asset nearest to a sample."""

    index: int
    """In the split "train"."""
    distance: float
    """To the sample."""
    own: float
    """From that training asset to the training asset nearest to it."""

    @property
    def is_copied(self) -> bool:
        """Whether the sample is closer to the asset than any other training asset is."""
        return self.distance < self.own


# ---------------------------------------------------------------- measures


def set_rows(samples: Distances, reference: Distances, between: Distances) -> dict[str, Float[ndarray, " _"]]:
    """Returns what mmd_cd, cov_cd (of each reference) and one_nna_cd (of each sample, then of each reference)
    are the means of.

    samples, reference: distances within each set; between: [samples, references]. The sets should be of one
    size: in a larger one nearest neighbours are found more easily. Exact copies of the reference have a
    one_nna_cd of 0: each one's nearest is its copy. Raises ValueError for fewer than two of either.
    """
    num, others = between.shape
    if min(num, others) < 2:
        raise ValueError(f"sets need two clouds or more each, got {num} and {others}")
    told = []
    for own, across in ((samples, between), (reference, between.T)):
        away = own + np.diag(np.full(len(own), np.inf))
        told.append(away.min(axis=1) < across.min(axis=1))
    covered = np.isin(np.arange(others), between.argmin(axis=1))
    rows = {"mmd_cd": between.min(axis=0), "cov_cd": covered, "one_nna_cd": np.concatenate(told)}
    return {name: np.asarray(values, np.float64) for name, values in rows.items()}


def set_scores(samples: Distances, reference: Distances, between: Distances) -> dict[str, float]:
    """Returns mmd_cd, cov_cd and one_nna_cd (see `set_rows`)."""
    rows = set_rows(samples, reference, between)
    return {name: float(values.mean()) for name, values in rows.items()}


# ---------------------------------------------------------------- clouds


@torch.no_grad()
def sample_clouds(
    decoder: Decoder, latents: Float[torch.Tensor, "samples tokens channels"], config: SetsConfig
) -> tuple[list[Cloud], list[dict[str, bool]]]:
    """Returns points on each sample's surface, spread evenly, and whether it could be printed.

    One point at the centre for a sample without any surface.
    """
    clouds, printable = [], []
    with progress(len(latents), "surfaces of samples") as bar:
        for number in range(len(latents)):
            weights = select(decoder.weights(latents[number : number + 1]), 0)
            vertices, faces = extract_surface(
                partial(decoder.sdf, weights), resolution=config.resolution, device=latents.device
            )
            clouds.append(_spread(vertices, faces, config.points, seed=number))
            kept = drop_crumbs(vertices, faces, min_share=DEFAULT_MESH.min_component)
            printable.append(printability(*kept))
            bar.advance()
    return clouds, printable


def _spread(vertices: ndarray, faces: ndarray, num: int, *, seed: int) -> Cloud:
    if not len(faces):
        return np.zeros((1, 3), np.float32)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    seed = derive_seed("clouds", seed) % 2**32
    points = np.asarray(trimesh.sample.sample_surface(mesh, OVERSAMPLE * num, seed=seed)[0], np.float32)
    return points[farthest_first(points, num)]


def stored_clouds(assets: Sequence[tuple[AssetShards, int]], num: int) -> list[Cloud]:
    """Returns the first `num` of each asset's stored points, which are in farthest-point order.

    Raises UserError where fewer are stored: clouds of unequal sizes have no fair distance.
    """
    clouds = []
    for shards, index in assets:
        points = shards.read(index, points=True).points
        assert points is not None  # they were asked for
        if len(points) < num:
            raise UserError(
                f"sets.points is {num}, but the assets of {shards.folder} have {len(points)} points each: "
                "set sets.points no higher, or prepare the data with more (data_prep's num_points)."
            )
        clouds.append(points[:num])
    return clouds


def draw_assets(
    data: AnyPath, splits: Sequence[str], num: int, *, seed: int
) -> list[tuple[AssetShards, int]]:
    """Returns up to `num` assets of the splits, drawn by `seed`."""
    available = AssetShards(data).header["splits"]
    readers = [AssetShards(data, split) for split in splits if available.get(split)]
    assets = [(reader, index) for reader in readers for index in range(len(reader))]
    order = numpy_rng("sets", seed).permutation(len(assets))[:num]
    return [assets[i] for i in order]


# ---------------------------------------------------------------- all of it


def nearest_neighbours(clouds: Sequence[Cloud], training: TrainingAssets) -> list[Neighbour]:
    """Returns each cloud's nearest training asset."""
    own: dict[int, float] = {}
    out = []
    for cloud in clouds:
        index, distance = training.search(cloud)
        if index not in own:
            own[index] = training.search(training.points[index], but=index)[1]
        out.append(Neighbour(index, distance, own[index]))
    return out


@dataclass(frozen=True)
class DrawnSets:
    """Held-out assets, and as many training assets, in whose place samples stand."""

    held_out: list[tuple[AssetShards, int]]
    training: list[tuple[AssetShards, int]]


def draw_sets(
    data: AnyPath, config: SetsConfig, *, seed: int, splits: Sequence[str] = ("val", "test")
) -> DrawnSets | str:
    """Returns two sets of one size, at most `max_samples`, or the reason why there are none.

    splits: of the held-out assets. Training assets are those with a caption.
    """
    held_out = draw_assets(data, splits, config.max_samples, seed=seed)
    known = draw_assets(data, ("train",), len(AssetShards(data)), seed=seed)
    training = [(shards, index) for shards, index in known if shards.rows[index].captions]
    num = min(len(held_out), len(training))
    if num < 2 or len(known) < 3:
        return "sets need two held-out assets, two training assets with captions, and a third one"
    return DrawnSets(held_out[:num], training[:num])


def evaluate_sets(
    assets: DrawnSets, decoder: Decoder, latents: Float[torch.Tensor, "samples tokens channels"],
    config: SetsConfig, folder: Path,
) -> tuple[Summary, list[Neighbour]]:  # fmt: skip
    """Returns the scores of samples as a set of shapes, and each one's nearest training asset.

    As many samples as there are assets in either set. Kept in `folder`/sets.json.
    """
    path = folder / "sets.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        return kept["summary"], [Neighbour(**each) for each in kept["neighbours"]]
    reference, known = (stored_clouds(each, config.points) for each in (assets.held_out, assets.training))
    samples, printable = sample_clouds(decoder, latents, config)
    log.info(
        "comparing %d samples with as many held-out and training assets, all pairs of them", len(samples)
    )
    within = symmetric_chamfer_matrix(reference)
    summary: Summary = {"num_samples": len(samples), "num_empty": sum(len(c) == 1 for c in samples)}
    for name, clouds in (("", samples), ("training_", known)):
        across = chamfer_matrix(clouds, reference)
        scores = set_scores(symmetric_chamfer_matrix(clouds), within, across)
        summary |= {f"{name}{key}": round(value, 5) for key, value in scores.items()}
    checks = {name: np.array([each[name] for each in printable]) for name in PRINTABLE}
    for name, holds in {**checks, "printable": np.all(list(checks.values()), axis=0)}.items():
        summary[name] = round(float(holds.mean()), 5)
        summary[f"{name}_interval"] = [round(end, 5) for end in share_interval(holds)]
    training = TrainingAssets(assets.training[0][0])
    neighbours = nearest_neighbours(samples, training)
    for name, found in (("", neighbours), ("held_out_", nearest_neighbours(reference, training))):
        copied = np.array([each.is_copied for each in found])
        summary[f"{name}memorised"] = round(float(copied.mean()), 5)
        summary[f"{name}memorised_interval"] = [round(end, 5) for end in share_interval(copied)]
    kept = {"summary": summary, "neighbours": [vars(each) for each in neighbours]}
    write_atomic(path, json.dumps(kept))
    return summary, neighbours
