"""What files of polygons have in common: faces to triangles, colours to linear light, numbers out of text.

Whatever of a file's faces can't be kept is counted and said: faces read against faces written.
"""

import warnings as python_warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.parts import DEFAULT_GREY, Look
from data_prep.formats.polygons import triangulate
from shapeloom.color import srgb_to_linear


@dataclass(frozen=True)
class Triangles:
    """Triangles of a list of polygons, whose corners are numbered through."""

    corners: Int[ndarray, "triangles 3"]
    """Numbers of corners, for what the file gives corner by corner."""
    polygon: Int[ndarray, " triangles"]
    """For what it gives face by face."""
    faces: Int[ndarray, "triangles 3"]
    """Numbers of vertices."""


def to_triangles(
    vertices: Float[ndarray, "vertices 3"],
    corners: Int[ndarray, " corners"] | Float[ndarray, " corners"],
    counts: Int[ndarray, " polygons"],
    warnings: list[str],
    *,
    max_faces: int,
) -> Triangles:
    """Triangles of polygons: `corners` names vertices polygon after polygon, `counts` says how many of each.

    Polygons of fewer than three corners and those with vertices that aren't there are left out with a
    warning.
    Raises AssetError "too_large" for more than `max_faces` triangles, "unreadable" if no face can be kept.
    """
    corners, counts = as_indices(corners), np.asarray(counts, np.int64)
    starts = np.cumsum(counts) - counts
    beyond = np.zeros(len(corners) + 1, np.int64)
    beyond[1:] = np.cumsum((corners < 0) | (corners >= len(vertices)))
    lost = beyond[starts + counts] > beyond[starts]
    thin = ~lost & (counts < 3)
    say_lost(warnings, int(thin.sum()), len(counts), "they have fewer than three corners")
    say_lost(
        warnings, int(lost.sum()), len(counts), f"they name vertices beyond the {len(vertices)} there are"
    )
    kept = np.flatnonzero(~lost & ~thin)
    if len(counts) and not len(kept):
        raise AssetError("unreadable", "; ".join(warnings))
    if (counts[kept] - 2).sum() > max_faces:
        raise AssetError("too_large", f"has more than {max_faces} faces")
    sizes = counts[kept]
    numbers = np.arange(sizes.sum()) + np.repeat(starts[kept] - (np.cumsum(sizes) - sizes), sizes)
    triangles, polygon = triangulate(vertices[corners[numbers]], sizes)
    return Triangles(numbers[triangles], kept[polygon], corners[numbers][triangles])


def say_lost(warnings: list[str], lost: int, written: int, reason: str) -> None:
    """A warning if faces are left out."""
    if lost:
        warnings.append(f"left out {lost} of {written} faces: {reason}")


def linear_color(values: ndarray) -> Float[ndarray, "*rows 4"]:
    """Opaque linear colours of sRGB ones [*rows, 3 or 4]: fractions, bytes, or 16-bit numbers.

    Integers are fractions of their type's range if that has 8 or 16 bits; wider ones, and floats above 1, are
    bytes.
    """
    rgb = np.asarray(values)[..., :3]
    if rgb.dtype.kind in "ui" and rgb.dtype.itemsize <= 2:
        scale = float(np.iinfo(rgb.dtype).max)
    else:
        scale = 255.0 if np.nanmax(rgb, initial=0) > 1 else 1.0
    linear = srgb_to_linear(np.nan_to_num(np.clip(rgb.astype(float) / scale, 0, 1)))
    return np.concatenate([linear, np.ones((*linear.shape[:-1], 1))], axis=-1)


def plain_look(*, colored: bool) -> Look:
    """Of a surface that has no material: its own colours, or else grey."""
    return Look(np.array([1.0, 1, 1, 1]) if colored else np.array([*[DEFAULT_GREY] * 3, 1]))


def numbers(text: bytes) -> Float[ndarray, " numbers"]:
    """Numbers between blanks. Raises AssetError for words among them."""
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, float, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise AssetError("unreadable", "has other things than numbers where numbers belong") from error


def as_indices(values: ndarray) -> Int[ndarray, "..."]:
    """Numbers as indices; -1, which names nothing, for what is none."""
    if values.dtype.kind == "f":
        values = np.where(np.abs(values) < 1 << 53, values, -1)
    return values.astype(np.int64)


def corner_uv(uv: Float[ndarray, "rows 2"], rows: Int[ndarray, "faces 3"]) -> Float32[ndarray, "faces 3 2"]:
    """Texture coordinates at each corner."""
    return np.asarray(uv, np.float32)[rows]
