"""What isn't worth learning from: flat or colourless assets, blank views, near duplicates.

What a filter leaves out is a failure with its reason; what it only notes is a warning of the sample.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray
from pydantic import Field

from data_prep.failures import AssetError
from data_prep.mesh import Mesh
from shapeloom.config import Config

FLAT = 0.01
"""Assets thinner than this share of their longest side get a warning."""
_GRID = 10
"""Cells a side of the feature's grid over [-1, 1]^3."""
_BASIS_ASSETS, _AXES = 512, 64
"""Assets that say along which axes features differ most, and how many of these are looked at first."""


class Filters(Config):
    """Which assets are left out for their quality; the defaults leave out only what shows next to nothing."""

    min_thickness: float = Field(
        default=0,
        ge=0,
        lt=1,
        description="smallest side over the longest; 0.01 leaves out pictures and planes",
    )
    max_blank_views: float = Field(
        default=0.5, ge=0, le=1, description="share of views that may show nothing"
    )
    drop_colourless: bool = Field(default=False, description="leave out assets that are white all over")
    near_duplicate: float = Field(
        default=0.1,
        ge=0,
        le=2,
        description="distance below which the report calls two assets near duplicates",
    )


def check_shape(mesh: Mesh, filters: Filters) -> list[str]:
    """Warnings about a mesh's proportions. Raises AssetError "flat" as the filters say."""
    sides = np.ptp(mesh.triangles.reshape(-1, 3), axis=0)
    thickness = float(sides.min() / sides.max())
    if thickness < filters.min_thickness:
        raise AssetError("flat", f"its thickness is {thickness:.2%} of its longest side")
    return [f"flat: its thickness is {thickness:.2%} of its longest side"] if thickness < FLAT else []


def check_views(covered: Bool[ndarray, " views"], filters: Filters) -> list[str]:
    """Warnings about blank views, given which show anything. Raises AssetError "invisible" or "blank"."""
    blank, num = int((~covered).sum()), len(covered)
    if blank == num:
        raise AssetError("invisible", f"none of its {num} views shows anything")
    if blank > filters.max_blank_views * num:
        raise AssetError("blank", f"{blank} of its {num} views show nothing")
    return [f"{blank} of {num} views show nothing"] if blank else []


def check_colors(srgb: UInt8[ndarray, "points 3"], filters: Filters) -> list[str]:
    """Warnings about base colours. Raises AssetError "colourless" as the filters say."""
    if not bool((srgb >= 250).all()):
        return []
    message = "its whole surface is white, as where materials or textures were lost"
    if filters.drop_colourless:
        raise AssetError("colourless", message)
    return [f"colourless: {message}"]


def feature(
    points: Float32[ndarray, "points 3"], srgb: UInt8[ndarray, "points 3"]
) -> Float32[ndarray, " dim"]:
    """A unit vector of where an asset's surface is and how it is coloured there.

    Points are shared out among the eight nearest cells of a grid, so that it changes little with the sample
    of points; square roots keep dense places from drowning the others.
    """
    place = (points.astype(np.float64) + 1) / 2 * (_GRID - 1)
    low = np.clip(np.floor(place).astype(np.int64), 0, _GRID - 2)
    fraction = place - low
    color = np.concatenate([np.ones((len(points), 1)), srgb / 255.0], axis=1)
    grid = np.zeros((_GRID**3, 4))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, fraction, 1 - fraction), axis=1)
        cell = np.ravel_multi_index(tuple((low + corner).T), (_GRID,) * 3)
        for channel in range(4):
            grid[:, channel] += np.bincount(cell, weight * color[:, channel], _GRID**3)
    flat = np.sqrt(grid).reshape(-1)
    return (flat / np.linalg.norm(flat)).astype(np.float32)


class Pair(NamedTuple):
    """Two near duplicates, by position, and the distance of their features in [0, sqrt(2)]."""

    first: int
    second: int
    distance: float


def near_duplicates(features: Float[ndarray, "assets dim"], limit: float) -> list[Pair]:
    """All pairs nearer than `limit`, nearest first; features are of length one.

    A projection brings no two farther apart, so that only those that are near in it are looked at whole:
    every pair is compared still, but for a hundredth of the cost.
    """
    some = features[:: max(1, len(features) // _BASIS_ASSETS)]
    axes = np.linalg.qr(some.T @ np.linalg.eigh(some @ some.T)[1][:, -_AXES:])[0]
    projected = features @ axes
    half, one = np.square(projected).sum(axis=1, keepdims=True) / 2, np.ones((len(projected), 1), np.float32)
    # Products of these are half the squared distances below zero.
    left, right = np.hstack([projected, -half, -one]), np.hstack([projected, one, half])
    pairs = []
    for start in range(0, len(features), 1024):
        below = left[start : start + 1024] @ right[start:].T
        near = np.flatnonzero(below > -(limit**2) / 2 - 1e-5)  # float32's rounding is a tenth of that
        rows, columns = np.divmod(near, below.shape[1])
        later = columns > rows
        for first, second in zip(start + rows[later], start + columns[later], strict=True):
            squared = float(2 - 2 * features[first] @ features[second])
            if squared < limit**2:
                pairs.append(Pair(int(first), int(second), float(np.sqrt(max(0, squared)))))
    return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))
