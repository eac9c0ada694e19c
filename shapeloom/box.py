"""The box that fields live in, [-1, 1]^3, how much of it an asset takes, and how it may be turned there.

Grids have cells of SIDE / num along each axis, and (points - LOW) * (num / SIDE) is a place in cells.
"""

import numpy as np
from jaxtyping import Int
from numpy import ndarray

LOW, HIGH = -1.0, 1.0
SIDE = HIGH - LOW
ASSET_HALF_SIZE = 0.95
"""An asset is centred, and scaled to touch [-0.95, 0.95]^3 along its largest extent: off the box's walls."""
MIRROR = np.diag([-1, 1, 1])
TURNS = [np.linalg.matrix_power(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), k) for k in range(4)]
"""By 0 to 3 quarters about +Z, counter-clockwise seen from above."""


def symmetries(*, mirrored: bool, turned: bool) -> list[Int[ndarray, "3 3"]]:
    """Returns the orthogonal matrices that map box and +Z to themselves, identity first: 1, 2, 4 or all 8."""
    turns = TURNS if turned else TURNS[:1]
    return turns + [MIRROR @ turn for turn in turns if mirrored]
