"""Words of view for models that aren't told cameras: what a side is called, and what it isn't.

The front is +X, azimuth 0. Beyond 60 degrees above the horizon everything is an overhead view (DreamFusion).
"""

from collections.abc import Sequence
from math import exp

OVERHEAD_DEGREES = 60.0
SIDES = ("front", "side", "back")
# Armandpour et al. 2023 ("Perp-Neg"), the shifted exponential decays a exp(-b r) + c of threestudio.
_FRONT_OF_FRONT = (4.0, 0.5, -2.426)
_SIDE_OF_FRONT = (4.0, 0.5, -2.426)
_SIDE_OF_BACK = (1.0, 0.5, -0.606)
_FRONT_OF_BACK = (1.0, 0.5, 0.967)


def side_of(azimuth: float, elevation: float) -> str:
    """Returns front, side, back or overhead; the front and the back reach 45 degrees to either side."""
    if elevation > OVERHEAD_DEGREES:
        return "overhead"
    return SIDES[round(_from_front(azimuth) / 90)]


def with_view(prompt: str, side: str) -> str:
    """Returns a prompt with a side's words."""
    return f"{prompt}, {side} view"


def negative_sides(azimuth: float, elevation: float) -> list[tuple[str, float]]:
    """Returns two sides that a view isn't, with Perp-Neg's weights (0 or below)."""
    if elevation > OVERHEAD_DEGREES:
        return [("front", 0.0), ("side", 0.0)]
    angle = _from_front(azimuth)
    if angle < 90:  # from the side (r = 0) to the front (r = 1)
        r = 1 - angle / 90
        return [("front", -_decay(_FRONT_OF_FRONT, r)), ("side", -_decay(_SIDE_OF_FRONT, 1 - r))]
    r = 2 - angle / 90  # from the back to the side
    return [("side", -_decay(_SIDE_OF_BACK, r)), ("front", -_decay(_FRONT_OF_BACK, r))]


def negatives(
    prompts: Sequence[str], azimuths: Sequence[float], elevations: Sequence[float]
) -> list[tuple[list[str], list[float]]]:
    """Returns two lists of negative prompts for a batch, each with a weight for each view."""
    sides = [negative_sides(*angles) for angles in zip(azimuths, elevations, strict=True)]
    return [
        (
            [with_view(prompt, each[i][0]) for prompt, each in zip(prompts, sides, strict=True)],
            [each[i][1] for each in sides],
        )
        for i in (0, 1)
    ]


def _from_front(azimuth: float) -> float:
    """Degrees between the front and an azimuth, 0 to 180."""
    return abs((azimuth + 180) % 360 - 180)


def _decay(numbers: tuple[float, float, float], r: float) -> float:
    a, b, c = numbers
    return a * exp(-b * r) + c
