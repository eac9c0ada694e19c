"""The nearest training asset: what a model that only remembered its training set would show.

`LookAlikes` finds the nearest to a picture, by CLIP; `TrainingAssets` the nearest to a shape:
by Chamfer distance over farthest-point prefixes of the stored points, a shortlist by few points, then
the choice by more. It is drawn from its own stored points (`eval.pictures.surfels`), since the cameras of its
own views differ from those of the asset that it is compared with.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from data_prep.mesh import Mesh
from eval.chamfer import prepared, squared_distances
from eval.pictures import surfels
from shapeloom.clip import Clip
from shapeloom.log import progress
from shapeloom.metrics import chamfer_l1
from shapeloom.pictures import read_views, to_uint8
from shapeloom.shards import AssetSample, AssetShards
from shapeloom.surface_metrics import surface_scores
from shapeloom.surfaces import Surface, read_surface, spacing

SHORTLIST_POINTS = 128
POINTS = 512
SHORTLIST = 8
DRAWN_POINTS = 4096
LOOKS = 4
"""Views of a training asset that a picture is compared with."""


class TrainingAssets:
    """All training assets' points, searchable by shape."""

    def __init__(self, shards: AssetShards) -> None:
        self.shards = shards
        prefixes = []
        with progress(len(shards), "reading training points") as bar:
            for i in range(len(shards)):
                points = shards.read(i, points=True).points
                assert points is not None  # points were asked for
                prefixes.append(points[:POINTS].copy())
                bar.advance()
        shortest = min(len(prefix) for prefix in prefixes)
        self.points = [prefix[:shortest] for prefix in prefixes]
        self._few = [prepared(points[:SHORTLIST_POINTS]) for points in self.points]
        self._all = [prepared(points) for points in self.points]

    def nearest(self, points: Float[np.ndarray, "points 3"]) -> int:
        """Returns the index of the training asset with the least Chamfer distance to `points`."""
        return self.search(points)[0]

    def search(self, points: Float[np.ndarray, "points 3"], *, but: int | None = None) -> tuple[int, float]:
        """Returns the nearest training asset and its Chamfer distance; `but`: one that doesn't count."""
        query = np.asarray(points[:POINTS], np.float32)
        few = _chamfer(query[:SHORTLIST_POINTS], self._few)
        if but is not None:
            few[but] = np.inf
        shortlist = few.argsort(kind="stable")[: min(SHORTLIST, len(few) - (but is not None))]
        distances = _chamfer(query, [self._all[i] for i in shortlist])
        best = int(distances.argmin())
        return int(shortlist[best]), float(distances[best])

    def surface_scores(self, truth: Surface) -> tuple[int, dict[str, float]]:
        """Returns the nearest training asset's index, and its surface's scores in the place of a true one."""
        index = self.nearest(truth.points)
        return index, surface_scores(read_surface(self.shards, index), truth)

    def read(self, index: int) -> AssetSample:
        """Returns training asset `index` with its points."""
        return self.shards.read(index, points=True)


class LookAlikes:
    """All training assets' looks, searchable by a picture: what is found without making anything."""

    def __init__(self, shards: AssetShards, clip: Clip, *, size: int) -> None:
        """size: of the pictures that are compared, pixels a side; divides the data's resolution."""
        self.clip, looks = clip, []
        with progress(len(shards), "looking at training assets") as bar:
            for i in range(len(shards)):
                views = read_views(shards, i, range(min(LOOKS, shards.num_views)), size=size)
                looks.append(clip.image(to_uint8(views.rgb)))
                bar.advance()
        self._looks = torch.stack(looks)

    def nearest(self, picture: UInt8[np.ndarray, "1 size size 3"]) -> int:
        """Returns the training asset of which one view is the nearest to the picture, by CLIP's cosine."""
        (asked,) = self.clip.image(picture)
        return int((self._looks @ asked).amax(dim=1).argmax())


def _chamfer(query: Float[np.ndarray, "points 3"], clouds: Sequence[Any]) -> Float[np.ndarray, " clouds"]:
    """clouds: prepared."""
    own = prepared(query)
    squared = (squared_distances(own, each) for each in clouds)
    return np.array([chamfer_l1(np.sqrt(there), np.sqrt(back)) for there, back in squared])


def drawn_points(sample: AssetSample) -> Mesh:
    """Returns an asset's stored points as a mesh of small squares."""
    assert sample.points is not None and sample.points_rgb is not None and sample.points_normal is not None
    points = sample.points[:DRAWN_POINTS]
    normals = sample.points_normal[:DRAWN_POINTS] / 127.0
    return surfels(points, sample.points_rgb[:DRAWN_POINTS], normals, spacing=spacing(points))
