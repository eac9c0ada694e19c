"""Builders of vehicles; see `data_prep.procedural.draft` for the conventions."""

import numpy as np

from data_prep.procedural.draft import BODY, Draft, chance, graded, uniform
from data_prep.procedural.solids import Solid, ball, box, circle, extrude, loft, moved, rod


def _wheels(x: float, ys: list[float], radius: float) -> list[Solid]:
    return [
        rod((side * x - 0.1, y, radius), (side * x + 0.1, y, radius), radius, segments=20)
        for side in (-1, 1)
        for y in ys
    ]


def car(rng: np.random.Generator) -> Draft:
    """A body with a glass cabin under a roof, on four wheels: sedan or hatchback by where its cabin is."""
    length, width, wheel = uniform(rng, 1.9, 2.5), uniform(rng, 0.9, 1.05), uniform(rng, 0.22, 0.27)
    lower, upper = uniform(rng, 0.4, 0.52), uniform(rng, 0.3, 0.44)
    cabin, shift = uniform(rng, 0.48, 0.66) * length, uniform(rng, 0.0, 0.14) * length
    floor = 0.7 * wheel
    deck = floor + lower
    middle = (0, shift, deck + upper / 2)
    parts = {
        BODY: [
            box((width, length, lower), (0, 0, floor + lower / 2), bevel=0.09),
            box((0.84 * width, 0.66 * cabin, 0.13), (0, shift, deck + upper), bevel=0.05),
            box((0.95 * width, 0.13, upper), middle, taper=(0.86, 1.0)),
        ],
        "windows": [box((0.92 * width, cabin, upper), middle, taper=(0.86, 0.62))],
        "wheels": _wheels(width / 2 - 0.04, [-0.31 * length, 0.31 * length], wheel),
    }
    features: tuple[str, ...] = ()
    if chance(rng, 0.25):
        rear = length / 2 - 0.12
        parts["spoiler"] = [box((width, 0.22, 0.1), (0, rear, deck + 0.24))]
        parts["spoiler"] += [box((0.1, 0.1, 0.24), (s * 0.3 * width, rear, deck + 0.11)) for s in (-1, 1)]
        features = ("a spoiler",)
    neutral = {"windows": "glass", "wheels": "tyre"}
    adjectives = graded(length, 2.1, 2.32, ("short", "long"))
    return Draft(parts, ("wheels", "spoiler"), neutral, adjectives, features)


def truck(rng: np.random.Generator) -> Draft:
    """A cab in front of a box, a tank or an open bed, on six wheels."""
    cargo, width, wheel = uniform(rng, 1.4, 2.1), uniform(rng, 0.85, 1.0), uniform(rng, 0.22, 0.27)
    cab, tall = uniform(rng, 0.56, 0.68), uniform(rng, 0.85, 1.0)
    front, floor = -(cargo + cab) / 2, 1.1 * wheel
    middle, style = front + cab + 0.08 + cargo / 2, str(rng.choice(["box", "tank", "bed"]))
    rear, nose, brow = middle + cargo / 2, front + 0.6 * cab, floor + 0.74 * tall
    parts = {
        BODY: [
            box((0.7 * width, cargo + cab, 0.16), (0, 0.05, floor)),
            *_cargo(style, cargo, width, middle, floor, height=uniform(rng, 1.0, 1.25)),
        ],
        "cab": [
            box((width, cab, 0.5 * tall), (0, front + cab / 2, floor + 0.25 * tall), bevel=0.05),
            box((width, 0.8 * cab, 0.52 * tall), (0, nose, brow), bevel=0.05, taper=(0.92, 0.9)),
        ],
        "windows": [
            box((0.86 * width, 0.1, 0.32 * tall), (0, front + 0.23 * cab, brow - 0.01), bevel=0.03),
            box((1.01 * width, 0.42 * cab, 0.28 * tall), (0, nose, brow - 0.02), bevel=0.03),
        ],
        "wheels": _wheels(width / 2 - 0.05, [front + 0.36, rear - 0.3, rear - 0.32 - 2.1 * wheel], wheel),
    }
    features = {"box": (), "tank": ("a tank",), "bed": ("an open bed",)}[style]
    # A cab of another colour would outweigh a load as low as a bed.
    accents = ("wheels",) if style == "bed" else ("cab", "wheels")
    neutral = {"windows": "glass", "wheels": "tyre"}
    return Draft(parts, accents, neutral, graded(cargo, 1.6, 1.9, ("short", "long")), features)


def _cargo(style: str, length: float, width: float, y: float, floor: float, *, height: float) -> list[Solid]:
    if style == "box":
        return [box((width + 0.06, length, height), (0, y, floor + 0.06 + height / 2), bevel=0.03)]
    if style == "tank":
        high = floor + 0.5
        return [rod((0, y - length / 2, high), (0, y + length / 2, high), 0.48, segments=24)]
    walls = [box((width, length, 0.14), (0, y, floor + 0.1))]
    for side in (-1, 1):
        walls.append(box((0.12, length, 0.5), (side * (width / 2 - 0.06), y, floor + 0.32)))
        walls.append(box((width, 0.12, 0.5), (0, y + side * (length / 2 - 0.06), floor + 0.32)))
    return walls


def boat(rng: np.random.Generator) -> Draft:
    """A hull with a pointed bow, and a cabin with or without a funnel, or a mast with two sails."""
    length, beam, depth = uniform(rng, 1.9, 2.4), uniform(rng, 0.75, 0.95), uniform(rng, 0.44, 0.58)
    parts = {BODY: [_hull(length, beam, depth)]}
    if chance(rng):
        mast, boom = uniform(rng, 1.3, 1.75), 0.4 * length
        parts["mast"] = [rod((0, -0.1, depth - 0.1), (0, -0.1, depth + mast), 0.065, segments=12)]
        sail = [(-0.02, depth + 0.16), (boom, depth + 0.16), (0.05, depth + mast - 0.08)]
        jib = [(-0.18, depth + 0.16), (-0.4 * length, depth + 0.22), (-0.16, depth + 0.8 * mast)]
        parts["sails"] = [extrude(sail, 0.1, axis="x"), extrude(jib, 0.1, axis="x")]
        adjectives = graded(mast, 1.45, 1.62, ("low", "tall"))
        return Draft(parts, ("sails", "mast"), adjectives=adjectives, features=("sails",))
    height, aft = uniform(rng, 0.38, 0.6), 0.14 * length
    parts["cabin"] = [
        box((0.62 * beam, 0.36 * length, height), (0, aft, depth + height / 2 - 0.05), bevel=0.04),
        box((0.72 * beam, 0.42 * length, 0.1), (0, aft, depth + height - 0.03)),
    ]
    features: tuple[str, ...] = ("a cabin",)
    if chance(rng):
        top, place = depth + height, 0.2 * length
        parts["funnel"] = [rod((0, place, top - 0.1), (0, place, top + 0.42), 0.14)]
        features += ("a funnel",)
    adjectives = graded(length, 2.05, 2.25, ("short", "long"))
    return Draft(parts, ("cabin", "funnel"), adjectives=adjectives, features=features)


def _hull(length: float, beam: float, depth: float) -> Solid:
    station = np.array([-0.5, -0.42, -0.28, -0.05, 0.25, 0.5])
    half_width = np.array([0.06, 0.4, 0.74, 0.96, 1.0, 0.84]) * beam / 2
    height = depth * (1 + 1.2 * np.clip(-station - 0.1, 0, 1) ** 1.5)
    section = np.array([(-1, 1), (-0.8, 0.35), (-0.4, 0.0), (0.4, 0.0), (0.8, 0.35), (1, 1)])
    rings = []
    for y, half, high in zip(station, half_width, height, strict=True):
        rake = 0.12 * (1 - section[:, 1]) * (y < -0.2)  # the stem leans forward
        rings.append(np.column_stack([section[:, 0] * half, y * length + rake, section[:, 1] * high]))
    return loft(rings)


def airplane(rng: np.random.Generator) -> Draft:
    """A fuselage with swept or straight wings, a tail, and jet engines or a propeller at its nose."""
    length, radius, span = uniform(rng, 1.9, 2.4), uniform(rng, 0.24, 0.31), uniform(rng, 0.95, 1.25)
    chord, sweep = uniform(rng, 0.45, 0.58), uniform(rng, 0.0, 0.45)
    rear = length / 2
    wings = _wing((-chord / 2, chord / 2), (sweep - 0.1, sweep + 0.24), span)
    fin = [(rear - 0.42, 0.1), (rear + 0.02, 0.1), (rear + 0.08, 0.72), (rear - 0.16, 0.72)]
    tailplane = moved(_wing((-0.18, 0.16), (0.0, 0.2), 0.48), (0, rear - 0.18, radius / 2))
    parts = {
        BODY: [_fuselage(length, radius)],
        "wings": [moved(wings, (0, -0.05 * length, -0.05))],
        "tail": [extrude(fin, 0.12, axis="x"), tailplane],
    }
    if chance(rng, 0.35):
        nose = (0, -rear - 0.03, 0)
        parts["propeller"] = [
            box((0.95, 0.1, 0.14), nose, bevel=0.03),
            ball((0.13, 0.16, 0.13), nose, segments=12, stacks=6),
        ]
        extra, features = "propeller", ("a propeller",)
    else:
        places, extra = ([0.45], "engines") if chance(rng) else ([0.38, 0.7], "engines")
        parts["engines"] = [
            rod(
                (side * x * span, sweep * x - 0.36, -0.17),
                (side * x * span, sweep * x + 0.1, -0.17),
                0.12,
                0.1,
            )
            for x in places
            for side in (-1, 1)
        ]
        features = ("two engines",) if len(places) == 1 else ("four engines",)
    adjectives = graded(length, 2.05, 2.25, ("short", "long"))
    # Wings and tail together would outweigh the fuselage.
    accents = ("wings" if chance(rng) else "tail", extra)
    return Draft(parts, accents, adjectives=adjectives, features=features)


def _wing(root: tuple[float, float], tip: tuple[float, float], span: float) -> Solid:
    """A flat wing across x; chords from front to rear at the root and at both tips."""
    outline = [(0, root[0]), (span, tip[0]), (span, tip[1]), (0, root[1]), (-span, tip[1]), (-span, tip[0])]
    return extrude(outline, 0.12, axis="z")


def _fuselage(length: float, radius: float) -> Solid:
    station = np.array([0.02, 0.08, 0.2, 0.6, 0.85, 1.0])
    girth = np.array([0.45, 0.78, 1.0, 1.0, 0.62, 0.28]) * radius
    lift = np.where(station > 0.7, (radius - girth) / 2, 0)  # the tail cone rises
    rings = [
        np.insert(circle() * r + (0, z), 1, (y - 0.5) * length, axis=1)
        for y, r, z in zip(station, girth, lift, strict=True)
    ]
    return loft(rings, start=(0, -length / 2, 0))
