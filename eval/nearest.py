"""The nearest training asset: what a model that only remembered its training set would show.

Nearest by Chamfer distance over farthest-point prefixes of the stored points: a shortlist by few points, then
the choice by more. It is drawn from its own stored points (`eval.pictures.surfels`), since the cameras of its
own views differ from those of the asset that it is compared with.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_prep.mesh import Mesh
from eval.pictures import surfels
from shapeloom.log import progress
from shapeloom.metrics import chamfer_l1
from shapeloom.shards import AssetSample, AssetShards
from shapeloom.surface_metrics import surface_scores
from shapeloom.surfaces import Surface, read_surface, spacing

SHORTLIST_POINTS = 128
POINTS = 512
SHORTLIST = 8
DRAWN_POINTS = 4096


class TrainingAssets:
    """All training assets' points, searchable by shape."""

    def __init__(self, shards: AssetShards) -> None:
        self.shards = shards
        prefixes = []
        with progress(len(shards), "reading training points") as bar:
            for i in range(len(shards)):
                points = shards.read(i, points=True).points
                assert points is not None  # points were asked for
                prefixes.append(torch.from_numpy(points[:POINTS].copy()))
                bar.advance()
        shortest = min(len(prefix) for prefix in prefixes)
        self.points = torch.stack([prefix[:shortest] for prefix in prefixes])

    def nearest(self, points: Float[np.ndarray, "points 3"]) -> int:
        """Returns the index of the training asset with the least Chamfer distance to `points`."""
        return self.search(points)[0]

    def search(self, points: Float[np.ndarray, "points 3"], *, but: int | None = None) -> tuple[int, float]:
        """Returns the nearest training asset and its Chamfer distance; `but`: one that doesn't count."""
        query = torch.from_numpy(np.asarray(points[:POINTS], np.float32))
        few = _chamfer(query[:SHORTLIST_POINTS], self.points[:, :SHORTLIST_POINTS])
        if but is not None:
            few[but] = torch.inf
        shortlist = few.topk(min(SHORTLIST, len(few) - (but is not None)), largest=False).indices
        distances = _chamfer(query, self.points[shortlist])
        best = int(distances.argmin())
        return int(shortlist[best]), float(distances[best])

    def surface_scores(self, truth: Surface) -> tuple[int, dict[str, float]]:
        """Returns the nearest training asset's index, and its surface's scores in the place of a true one."""
        index = self.nearest(truth.points)
        return index, surface_scores(read_surface(self.shards, index), truth)

    def read(self, index: int) -> AssetSample:
        """Returns training asset `index` with its points."""
        return self.shards.read(index, points=True)


def _chamfer(
    query: Float[Tensor, "points 3"], assets: Float[Tensor, "assets others 3"]
) -> Float[Tensor, " assets"]:
    distances = torch.cdist(query.expand(len(assets), -1, -1), assets)
    return chamfer_l1(distances.amin(dim=2), distances.amin(dim=1))


def drawn_points(sample: AssetSample) -> Mesh:
    """Returns an asset's stored points as a mesh of small squares."""
    assert sample.points is not None and sample.points_rgb is not None and sample.points_normal is not None
    points = sample.points[:DRAWN_POINTS]
    normals = sample.points_normal[:DRAWN_POINTS] / 127.0
    return surfels(points, sample.points_rgb[:DRAWN_POINTS], normals, spacing=spacing(points))
