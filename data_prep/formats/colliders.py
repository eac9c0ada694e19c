"""Which shapes of an asset are game engines' colliders, and so not to be seen.

A name alone hides nothing ("USP" is a pistol), and a material's name never does: a second thing has to speak
for it. What is hidden is for the caller to list.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_PREFIX = re.compile(r"^(ucx|ubx|usp|ucp|mcdcx)[_\-](?=.)", re.I)
"""Unreal's, in front of the name of the mesh that it stands for, and often a number behind it."""
_WORD = re.compile(
    r"(?:^|[_\-. ])(collider|collision|colonly|convcolonly|hitbox|navmesh)(?=[_\-. \d]|$)", re.I
)
_NUMBER = re.compile(r"[_\-. ]*\d+$")
_SLACK = 0.05
"""A box covers another if it ends at most this share of its size short of it."""
_ROOM = 1.5
"""A collider hugs what it stands for: its box is at most this many times as long."""


@dataclass(frozen=True)
class Shape:
    """What a node, object or group shows of itself."""

    name: str
    has_material: bool
    bounds: Float[ndarray, "2 3"] | None = None
    """Lowest and highest corner in the frame that all shapes of the asset share; None if unknown."""


def find_colliders(shapes: Sequence[Shape]) -> list[int]:
    """Indices of the shapes that are colliders, in order. Never all of them.

    A prefix of Unreal's counts where the rest of the name is another shape's (`UCX_wall_01`, `wall`); a word
    such as `collider` where that holds too (`rock_collider`, `rock`), where the shape covers another, or
    where it alone has no material.
    """
    named = [suspicious(shape.name) for shape in shapes]
    others = [shape for shape, suspect in zip(shapes, named, strict=True) if not suspect]
    if len(others) == len(shapes) or not others:
        return []
    names = {key for other in others for key in (_plain(other.name), _NUMBER.sub("", _plain(other.name)))}
    painted = all(other.has_material for other in others)
    return [
        index
        for index, (shape, suspect) in enumerate(zip(shapes, named, strict=True))
        if suspect and _is_collider(shape, others, names, painted=painted)
    ]


def suspicious(name: str) -> bool:
    """Whether a name may be a collider's: the first of two things that have to speak for it."""
    return bool(_PREFIX.match(name) or _WORD.search(name))


def _is_collider(shape: Shape, others: Sequence[Shape], names: set[str], *, painted: bool) -> bool:
    prefix = _PREFIX.match(shape.name)
    rest = _plain(shape.name[prefix.end() :] if prefix else _WORD.sub("", shape.name))
    if rest and not names.isdisjoint((rest, _NUMBER.sub("", rest))):
        return True
    if prefix:
        return False
    return (painted and not shape.has_material) or any(_covers(shape, other) for other in others)


def _plain(name: str) -> str:
    return name.strip("_-. ").lower()


def _covers(shape: Shape, other: Shape) -> bool:
    if shape.bounds is None or other.bounds is None:
        return False
    size, within = np.ptp(shape.bounds, axis=0), np.ptp(other.bounds, axis=0)
    slack = _SLACK * size.max()
    inside = (shape.bounds[0] <= other.bounds[0] + slack) & (shape.bounds[1] >= other.bounds[1] - slack)
    return bool(inside.all() and (size <= _ROOM * within + slack).all())
