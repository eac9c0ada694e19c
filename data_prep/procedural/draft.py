"""What a family builder returns: named parts in the neutral state, and the words that describe them.

Builders work in the project's frame (+Z up), objects face -Y, and sizes are free: data preparation fits every
asset to the cube. No part is thinner than about 4% of the object, so that it shows at 64x64 pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.procedural.solids import Solid

BODY = "body"


@dataclass(frozen=True)
class Draft:
    """One object before it gets its colours.

    parts: noun as captions say it -> solids; `BODY` holds what always has the main colour. accents: parts
    that may take the accent colour. neutral: part -> colour name where it is neither body nor accent (parts
    not named have the main colour). adjectives: such as "tall". features: noun phrases for optional parts.
    """

    parts: Mapping[str, Sequence[Solid]]
    accents: tuple[str, ...]
    neutral: Mapping[str, str] = field(default_factory=dict)
    adjectives: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


Builder = Callable[[np.random.Generator], Draft]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Returns a number in [low, high)."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float = 0.5) -> bool:
    """Returns True with the given probability."""
    return bool(rng.random() < probability)


def graded(value: float, low: float, high: float, words: tuple[str, str]) -> tuple[str, ...]:
    """Returns the first word below `low`, the second above `high`, and none between them."""
    if value < low:
        return words[:1]
    return words[1:] if value > high else ()
