"""Builders of furniture; see `data_prep.procedural.draft` for the conventions."""

import math

import numpy as np

from data_prep.procedural.draft import BODY, Draft, chance, graded, uniform
from data_prep.procedural.solids import Solid, box, circle, extrude, lathe, moved, rod, turned


def _four_legs(x: float, y: float, height: float, width: float, *, square: bool) -> list[Solid]:
    """Legs at (+-x, +-y): square and straight, or round and slightly spread and tapered."""
    legs = []
    for sx, sy in ((-x, -y), (x, -y), (-x, y), (x, y)):
        if square:
            legs.append(box((width, width, height), (sx, sy, height / 2)))
        else:
            legs.append(
                rod((1.1 * sx, 1.1 * sy, 0), (sx, sy, height), 0.42 * width, 0.58 * width, segments=12)
            )
    return legs


def chair(rng: np.random.Generator) -> Draft:
    """Four legs, a seat, and a solid, slatted or round back, with or without armrests."""
    width, depth = uniform(rng, 0.9, 1.15), uniform(rng, 0.9, 1.1)
    seat, back = uniform(rng, 0.65, 1.1), uniform(rng, 0.75, 1.3)
    style, top, rear = str(rng.choice(["solid", "slatted", "round"])), seat + 0.14, depth / 2 - 0.07
    parts = {
        BODY: [box((width, depth, 0.15), (0, 0, seat + 0.07), bevel=0.04)],
        "legs": _four_legs(width / 2 - 0.1, depth / 2 - 0.1, seat, 0.16, square=chance(rng)),
    }
    parts[BODY] += [moved(piece, (0, rear, top - 0.02)) for piece in _chair_back(style, width, back)]
    features: tuple[str, ...] = () if style == "solid" else (f"a {style} back",)
    if chance(rng, 0.4):
        parts["armrests"] = []
        for x in (0.02 - width / 2, width / 2 - 0.02):
            parts["armrests"].append(box((0.14, depth - 0.12, 0.12), (x, 0, top + 0.34)))
            parts["armrests"].append(box((0.12, 0.12, 0.34), (x, 0.1 - depth / 2, top + 0.16)))
        features += ("armrests",)
    adjectives = graded(seat + back, 1.65, 2.05, ("low", "tall"))
    return Draft(parts, ("legs", "armrests"), adjectives=adjectives, features=features)


def _chair_back(style: str, width: float, height: float) -> list[Solid]:
    """A back that stands on z = 0."""
    if style == "solid":
        return [box((width, 0.13, height), (0, 0, height / 2), bevel=0.05)]
    if style == "round":
        outline = circle(24) * (width / 2, height / 2 + 0.06) + (0, height / 2)
        return [extrude(outline, 0.13)]
    places = (0.075 - width / 2, 0.0, width / 2 - 0.075)
    rail = box((width, 0.14, 0.22), (0, 0, height - 0.11), bevel=0.04)
    return [rail, *(box((0.15, 0.12, height - 0.04), (x, 0, height / 2 - 0.02)) for x in places)]


def table(rng: np.random.Generator) -> Draft:
    """A rectangular or round top on four legs or on one or two pedestals, with or without a shelf."""
    height, length, depth = uniform(rng, 0.7, 1.2), uniform(rng, 1.5, 2.3), uniform(rng, 1.05, 1.3)
    is_round, square = chance(rng, 0.35), chance(rng)
    if is_round:
        length = depth = uniform(rng, 1.4, 1.9)
        half, edge = length / 2, height + 0.16
        top = lathe([(0, height), (half, height), (half, edge), (0, edge)], segments=32)
    else:
        top = box((length, depth, 0.16), (0, 0, height + 0.07), bevel=0.03)
    features: tuple[str, ...] = ("a round top",) if is_round else ()
    adjectives = graded(height, 0.85, 1.08, ("low", "tall"))
    if chance(rng, 0.5 if is_round else 0.15):
        name, places = ("pedestal", [0.0]) if is_round else ("pedestals", [-length / 4, length / 4])
        post = [(0, 0), (0.42, 0), (0.42, 0.08), (0.14, 0.2), (0.12, height + 0.05), (0, height + 0.05)]
        parts = {BODY: [top], name: [moved(lathe(post), (x, 0, 0)) for x in places]}
        features += ("a pedestal",) if is_round else ("pedestals",)
        return Draft(parts, (name,), adjectives=adjectives, features=features)
    x, y = (0.27 * length, 0.27 * depth) if is_round else (length / 2 - 0.13, depth / 2 - 0.13)
    parts = {BODY: [top], "legs": _four_legs(x, y, height + 0.02, 0.17, square=square)}
    if not is_round and chance(rng, 0.35):
        parts["shelf"] = [box((length - 0.3, depth - 0.3, 0.12), (0, 0, 0.35 * height))]
        features += ("a shelf",)
    return Draft(parts, ("legs",), adjectives=adjectives, features=features)


def sofa(rng: np.random.Generator) -> Draft:
    """A long seat between two arms with a thick back, with or without cushions."""
    width, depth = uniform(rng, 1.6, 2.7), uniform(rng, 0.95, 1.15)
    arm, back = uniform(rng, 0.55, 0.75), uniform(rng, 0.9, 1.15)
    side = width / 2 - 0.1
    parts = {
        BODY: [
            box((width, depth, 0.34), (0, 0, 0.32), bevel=0.05),
            box((width, 0.32, back), (0, depth / 2 - 0.16, 0.15 + back / 2), bevel=0.1),
            *(box((0.28, depth, arm), (x, -0.02, 0.14 + arm / 2), bevel=0.09) for x in (-side, side)),
        ],
        "legs": _four_legs(side - 0.05, depth / 2 - 0.15, 0.2, 0.16, square=True),
    }
    if chance(rng, 0.6):
        num = 2 if width < 2.1 else 3
        size = (width - 0.5) / num
        cushion = turned(box((size - 0.06, 0.2, 0.42), (0, 0, 0), bevel=0.08), -14.0, axis="x")
        places = [(i - (num - 1) / 2) * size for i in range(num)]
        parts["cushions"] = [moved(cushion, (x, depth / 2 - 0.42, 0.69)) for x in places]
    features = ("cushions",) if "cushions" in parts else ()
    adjectives = graded(width, 1.95, 2.35, ("small", "wide"))
    return Draft(parts, ("legs", "cushions"), adjectives=adjectives, features=features)


def bed(rng: np.random.Generator) -> Draft:
    """A blanket and pillows on a mattress and a frame with a headboard, its foot towards the viewer."""
    width, length, head = uniform(rng, 1.0, 1.8), uniform(rng, 1.9, 2.2), uniform(rng, 0.75, 1.25)
    rear, pillow = length / 2, "pillow" if width < 1.3 else "pillows"
    num_pillows = 1 if pillow == "pillow" else 2
    size = (width - 0.14) / num_pillows
    places = [(i - (num_pillows - 1) / 2) * size for i in range(num_pillows)]
    parts = {
        BODY: [
            box((width, length, 0.22), (0, 0, 0.33)),
            box((width + 0.04, 0.8 * length, 0.26), (0, -0.1 * length, 0.52), bevel=0.08),
        ],
        "headboard": [box((width + 0.1, 0.14, head), (0, rear, head / 2), bevel=0.05)],
        "legs": _four_legs(width / 2 - 0.1, rear - 0.1, 0.26, 0.16, square=True),
        "mattress": [box((width - 0.04, 0.32 * length, 0.22), (0, 0.33 * length, 0.5), bevel=0.06)],
        pillow: [box((size - 0.08, 0.34, 0.18), (x, rear - 0.27, 0.68), bevel=0.07) for x in places],
    }
    features: tuple[str, ...] = ()
    if chance(rng, 0.25):
        corners = [(x, y) for x in (-width / 2, width / 2) for y in (0.08 - rear, rear)]
        parts["posts"] = [rod((x, y, 0), (x, y, 1.55), 0.08, segments=12) for x, y in corners]
        features = ("posts",)
    neutral = {"mattress": "white", pillow: "white"}
    adjectives = graded(width, 1.25, 1.55, ("narrow", "wide"))
    return Draft(parts, ("headboard", pillow, "posts"), neutral, adjectives, features)


def lamp(rng: np.random.Generator) -> Draft:
    """A conical or round shade on a stem, with a flat or a bulbous base."""
    height, wide, narrow = uniform(rng, 1.3, 2.3), uniform(rng, 0.5, 0.65), uniform(rng, 0.2, 0.48)
    shade_height, stem = uniform(rng, 0.6, 0.8), uniform(rng, 0.06, 0.08)
    low = height - shade_height
    if chance(rng, 0.3):
        steps = np.radians(np.linspace(0, 90, 8))[:-1]
        shade = [
            (0, low),
            *((wide * math.cos(a), low + shade_height * math.sin(a)) for a in steps),
            (0, height),
        ]
        features: tuple[str, ...] = ("a round shade",)
    else:
        shade, features = [(0, low), (wide, low), (narrow, height), (0, height)], ()
    parts = {
        BODY: [lathe(shade, segments=28)],
        "base": [lathe([(0, 0), (0.42, 0), (0.4, 0.1), (0.12, 0.2), (0, 0.2)])],
        "stem": [rod((0, 0, 0.1), (0, 0, low + 0.1), stem, segments=12)],
    }
    if chance(rng, 0.3):
        belly = [(0, 0.1), (0.15, 0.12), (0.27, 0.3), (0.27, 0.38), (0.12, 0.58), (0.07, 0.66), (0, 0.66)]
        parts["base"].append(lathe(belly))
    adjectives = graded(height, 1.6, 2.0, ("short", "tall"))
    return Draft(parts, ("base", "stem"), adjectives=adjectives, features=features)


def bookshelf(rng: np.random.Generator) -> Draft:
    """An upright case of two to four compartments, open to the front, with or without books."""
    width, height, depth = uniform(rng, 0.95, 1.5), uniform(rng, 1.5, 2.2), uniform(rng, 0.45, 0.6)
    num = int(rng.integers(2, 5 if height > 1.8 else 4))
    step, side = (height - 0.1) / num, (width - 0.1) / 2
    parts = {
        BODY: [
            box((width, 0.1, height), (0, depth / 2 - 0.05, height / 2)),
            *(box((0.1, depth, height), (x, 0, height / 2)) for x in (-side, side)),
            *(box((width - 0.05, depth - 0.02, 0.1), (0, 0, 0.05 + i * step)) for i in range(num + 1)),
        ]
    }
    if chance(rng, 0.65):
        parts["books"] = []
        for i in range(num):
            span, tall = uniform(rng, 0.4, 0.8) * (width - 0.2), uniform(rng, 0.6, 0.8) * (step - 0.1)
            first = (1 if chance(rng) else -1) * ((width - 0.2 - span) / 2 - 0.02) - span / 3
            for j, size in enumerate((tall, 0.88 * tall, tall)):
                centre = (first + j * span / 3, -0.01, 0.09 + i * step + size / 2)
                parts["books"].append(box((span / 3 - 0.02, 0.34, size), centre, bevel=0.015))
    features = ("books",) if "books" in parts else ()
    adjectives = graded(height, 1.7, 2.0, ("low", "tall")) + graded(width, 1.05, 1.35, ("narrow", "wide"))
    return Draft(parts, ("books",), {"books": "cream"}, adjectives, features)
