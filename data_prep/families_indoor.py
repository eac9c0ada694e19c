"""Builders of furniture, vessels and tools; see `data_prep.draft` for the conventions."""

import math

import numpy as np
from scipy.interpolate import PchipInterpolator

from data_prep.draft import BODY, Draft, chance, graded, uniform
from data_prep.solids import Solid, arc, box, circle, extrude, lathe, loft, moved, rod, tube, turned


def _four_legs(
    x: float, y: float, height: float, width: float, *, square: bool, splay: float = 0.0
) -> list[Solid]:
    legs = []
    for sx, sy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        foot = (sx * x * (1 + splay), sy * y * (1 + splay), 0.0)
        if square:
            legs.append(box((width, width, height), (sx * x, sy * y, height / 2)))
        else:
            legs.append(rod(foot, (sx * x, sy * y, height), 0.42 * width, 0.58 * width, segments=12))
    return legs


def chair(rng: np.random.Generator) -> Draft:
    """Four legs, a seat, and a solid, slatted or round back, with or without armrests."""
    width, depth = uniform(rng, 0.9, 1.15), uniform(rng, 0.9, 1.1)
    seat, back = uniform(rng, 0.65, 1.1), uniform(rng, 0.75, 1.3)
    style = rng.choice(["solid", "slatted", "round"])
    top = seat + 0.14
    legs = _four_legs(width / 2 - 0.1, depth / 2 - 0.1, seat, 0.15, square=chance(rng), splay=0.12)
    body, rear = [box((width, depth, 0.15), (0, 0, seat + 0.07), bevel=0.04)], depth / 2 - 0.07
    if style == "solid":
        body.append(box((width, 0.13, back), (0, rear, top + back / 2 - 0.02), bevel=0.05))
    elif style == "slatted":
        body.append(box((width, 0.14, 0.22), (0, rear, top + back - 0.11), bevel=0.04))
        body += [
            box((0.15, 0.12, back), (x * (width / 2 - 0.075), rear, top + back / 2 - 0.02))
            for x in (-1, 0, 1)
        ]
    else:
        outline = circle(24) * (width / 2, back / 2 + 0.06)
        body.append(moved(extrude(outline, 0.13), (0, rear, top + back / 2 - 0.06)))
    parts = {BODY: body, "legs": legs}
    features = () if style == "solid" else (f"a {style} back",)
    if chance(rng, 0.4):
        reach = depth - 0.12
        parts["armrests"] = [
            piece
            for side in (-1, 1)
            for piece in (
                box((0.14, reach, 0.12), (side * (width / 2 - 0.02), 0.0, top + 0.34)),
                box((0.12, 0.12, 0.34), (side * (width / 2 - 0.02), 0.1 - depth / 2, top + 0.16)),
            )
        ]
        features += ("armrests",)
    adjectives = graded(seat + back, 1.65, 2.05, ("low", "tall"))
    return Draft(parts, ("legs", "armrests"), adjectives=adjectives, features=features)


def table(rng: np.random.Generator) -> Draft:
    """A rectangular or round top on four legs or a pedestal."""
    height, length, depth = uniform(rng, 0.7, 1.25), uniform(rng, 1.5, 2.3), uniform(rng, 1.0, 1.3)
    is_round = chance(rng, 0.35)
    if is_round:
        length = depth = uniform(rng, 1.4, 1.9)
        top = lathe(
            [(0, height), (length / 2, height), (length / 2, height + 0.15), (0, height + 0.15)], segments=32
        )
    else:
        top = box((length, depth, 0.15), (0, 0, height + 0.07), bevel=0.03)
    features: tuple[str, ...] = ("a round top",) if is_round else ()
    if chance(rng, 0.5 if is_round else 0.15):
        foot = lathe(
            [(0, 0), (0.42, 0), (0.42, 0.08), (0.14, 0.2), (0.12, height + 0.05), (0, height + 0.05)]
        )
        support = [foot] if is_round else [moved(foot, (x * length / 4, 0, 0)) for x in (-1, 1)]
        name = "pedestal" if is_round else "pedestals"
        features += ("a pedestal" if is_round else "pedestals",)
    else:
        name, inset = "legs", 0.36 if is_round else 0.5
        x, y = (
            (length * inset * 0.75, depth * inset * 0.75)
            if is_round
            else (length / 2 - 0.13, depth / 2 - 0.13)
        )
        support = _four_legs(x, y, height + 0.02, 0.17, square=chance(rng))
    parts = {BODY: [top], name: support}
    if not is_round and name == "legs" and chance(rng, 0.35):
        parts["shelf"] = [box((length - 0.3, depth - 0.3, 0.12), (0, 0, 0.35 * height))]
        features += ("a shelf",)
    adjectives = graded(height, 0.85, 1.1, ("low", "tall")) + graded(length, 0.0, 2.05, ("", "long"))
    return Draft(parts, (name,), adjectives=adjectives, features=features)


def sofa(rng: np.random.Generator) -> Draft:
    """A long seat between two arms with a thick back."""
    width, depth = uniform(rng, 1.6, 2.7), uniform(rng, 0.95, 1.15)
    arm, back = uniform(rng, 0.55, 0.75), uniform(rng, 0.9, 1.15)
    parts = {
        BODY: [
            box((width, depth, 0.34), (0, 0, 0.32), bevel=0.05),
            box((width, 0.32, back), (0, depth / 2 - 0.16, 0.15 + back / 2), bevel=0.1),
            *(
                box((0.28, depth, arm), (s * (width / 2 - 0.1), -0.02, 0.14 + arm / 2), bevel=0.09)
                for s in (-1, 1)
            ),
        ],
        "legs": _four_legs(width / 2 - 0.15, depth / 2 - 0.15, 0.2, 0.16, square=True),
    }
    num_seats = 2 if width < 2.1 else 3
    inner = (width - 0.5) / num_seats
    if chance(rng, 0.6):
        places = [(i - (num_seats - 1) / 2) * inner for i in range(num_seats)]
        leaning = turned(box((inner - 0.06, 0.2, 0.42), (0, 0, 0), bevel=0.08), -14, axis="x")
        parts["cushions"] = [moved(leaning, (x, depth / 2 - 0.42, 0.69)) for x in places]
    features = ("cushions",) if "cushions" in parts else ()
    adjectives = graded(width, 1.95, 2.35, ("small", "wide"))
    return Draft(parts, ("legs", "cushions"), adjectives=adjectives, features=features)


def bed(rng: np.random.Generator) -> Draft:
    """A mattress on a frame with pillows and a headboard, its foot towards the viewer."""
    width, length, head = uniform(rng, 1.0, 1.8), uniform(rng, 1.9, 2.2), uniform(rng, 0.75, 1.35)
    rear = length / 2
    parts = {
        BODY: [
            box((width, length, 0.22), (0, 0, 0.33)),
            box((width + 0.04, 0.8 * length, 0.26), (0, -0.1 * length, 0.52), bevel=0.08),
        ],
        "headboard": [box((width + 0.1, 0.14, head), (0, rear, head / 2), bevel=0.05)],
        "legs": _four_legs(width / 2 - 0.1, length / 2 - 0.1, 0.26, 0.16, square=True),
        "mattress": [box((width - 0.04, length - 0.06, 0.22), (0, 0, 0.5), bevel=0.06)],
    }
    num_pillows = 1 if width < 1.3 else 2
    size = (width - 0.14) / num_pillows
    parts["pillows" if num_pillows == 2 else "pillow"] = [
        box((size - 0.08, 0.34, 0.18), ((i - (num_pillows - 1) / 2) * size, rear - 0.27, 0.68), bevel=0.07)
        for i in range(num_pillows)
    ]
    features: tuple[str, ...] = ()
    if chance(rng, 0.25):
        parts["posts"] = [rod((x, y, 0), (x, y, 1.55), 0.08, segments=12)
                          for x in (-width / 2, width / 2) for y in (-rear + 0.08, rear)]  # fmt: skip
        features = ("posts",)
    adjectives = graded(width, 1.25, 1.55, ("narrow", "wide"))
    pillow = "pillows" if num_pillows == 2 else "pillow"
    neutral = {"mattress": "white", pillow: "white"}
    return Draft(parts, ("headboard", pillow, "posts"), neutral, adjectives, features)


def lamp(rng: np.random.Generator) -> Draft:
    """A shade on a stem with a round base."""
    height, wide, narrow = uniform(rng, 1.3, 2.4), uniform(rng, 0.5, 0.62), uniform(rng, 0.2, 0.5)
    shade_height, stem = uniform(rng, 0.6, 0.8), uniform(rng, 0.055, 0.08)
    low = height - shade_height
    if chance(rng, 0.3):
        steps = np.radians(np.linspace(0, 90, 8))
        shade = [
            (0, low),
            *((wide * math.cos(a), low + shade_height * math.sin(a)) for a in steps[:-1]),
            (0, height),
        ]
        features: tuple[str, ...] = ("a round shade",)
    else:
        shade, features = [(0, low), (wide, low), (min(narrow, wide), height), (0, height)], ()
    base = [(0, 0), (0.42, 0), (0.4, 0.1), (0.12, 0.2), (0, 0.2)]
    parts = {BODY: [lathe(shade, segments=28)], "base": [lathe(base)]}
    if chance(rng, 0.3):
        body = [(0, 0.1), (0.15, 0.12), (0.27, 0.3), (0.27, 0.38), (0.12, 0.58), (0.07, 0.66), (0, 0.66)]
        parts["base"].append(lathe(body))
    parts["stem"] = [rod((0, 0, 0.1), (0, 0, low + 0.1), stem, segments=12)]
    adjectives = graded(height, 1.6, 2.05, ("short", "tall"))
    return Draft(parts, ("base", "stem"), adjectives=adjectives, features=features)


def bookshelf(rng: np.random.Generator) -> Draft:
    """An upright case with two to four compartments, open to the front, some of them with books."""
    width, height, depth = uniform(rng, 0.95, 1.5), uniform(rng, 1.5, 2.2), uniform(rng, 0.45, 0.6)
    num = int(rng.integers(2, 5)) if height > 1.8 else int(rng.integers(2, 4))
    thick, step = 0.1, (height - 0.1) / num
    body = [box((width, 0.1, height), (0, depth / 2 - 0.05, height / 2))]
    body += [box((thick, depth, height), (s * (width - thick) / 2, 0, height / 2)) for s in (-1, 1)]
    body += [box((width - 0.05, depth - 0.02, thick), (0, 0, 0.05 + i * step)) for i in range(num + 1)]
    parts = {BODY: body}
    if chance(rng, 0.65):
        parts["books"] = []
        for i in range(num):
            span = uniform(rng, 0.35, 0.8) * (width - 2 * thick)
            tall = uniform(rng, 0.6, 0.8) * (step - thick)
            side = 1 if chance(rng) else -1
            x = side * ((width - 2 * thick - span) / 2 - 0.02)
            parts["books"] += [
                box((span / 3 - 0.02, 0.34, tall * (1 - 0.12 * (j % 2))),
                    (x + (j - 1) * span / 3, -0.01, 0.09 + i * step + tall * (1 - 0.12 * (j % 2)) / 2), bevel=0.015)
                for j in range(3)
            ]  # fmt: skip
    features = ("books",) if "books" in parts else ()
    adjectives = graded(height, 1.7, 2.0, ("low", "tall")) + graded(width, 1.05, 1.35, ("narrow", "wide"))
    return Draft(parts, ("books",), adjectives=adjectives, features=features)


def mug(rng: np.random.Generator) -> Draft:
    """A hollow cup with one handle at its right side."""
    radius, height, taper = uniform(rng, 0.45, 0.6), uniform(rng, 0.8, 1.35), uniform(rng, 0.8, 1.05)
    wall, foot = 0.08, radius * taper
    cup = lathe(
        [(0, 0), (foot, 0), (radius, height), (radius - wall, height), (foot - wall, 0.1), (0, 0.1)],
        segments=32,
    )
    x, reach = 0.5 * (foot + radius) - 0.05, uniform(rng, 0.26, 0.36)
    path = arc((0, 0), 1.0, (-95, 95), 12) * (reach, 0.3 * height) + (x, 0.5 * height)
    handle = tube(np.insert(path, 1, 0.0, axis=1), 0.07, normal=(0, 1, 0))
    parts = {BODY: [cup], "handle": [handle]}
    if chance(rng, 0.4):
        parts["rim"] = [_ring(radius - wall / 2, height, 0.065)]
    if chance(rng, 0.35):
        low, high = foot + 0.3 * (radius - foot), foot + 0.65 * (radius - foot)
        parts["stripe"] = [_band(low, 0.3 * height, high, 0.65 * height)]
    features = tuple(f"a {name}" for name in ("stripe",) if name in parts)
    adjectives = graded(height / radius, 1.7, 2.3, ("wide", "tall"))
    return Draft(parts, ("handle", "rim", "stripe"), adjectives=adjectives, features=features)


def _ring(radius: float, height: float, thickness: float) -> Solid:
    path = np.column_stack([circle(32) * radius, np.full(32, height)])
    return tube(path, thickness, normal=(0, 0, 1), closed=True, segments=8)


def _band(low_radius: float, low: float, high_radius: float, high: float, *, grow: float = 0.025) -> Solid:
    inner, outer = (low_radius - 0.03, high_radius - 0.03), (low_radius + grow, high_radius + grow)
    profile = [(inner[0], low), (outer[0], low), (outer[1], high), (inner[1], high)]
    rings = [np.column_stack([circle(32) * r, np.full(32, z)]) for r, z in profile]
    return loft(rings, closed=True)


def bottle(rng: np.random.Generator) -> Draft:
    """A slim body with a shoulder, a neck and a cap."""
    radius, body, neck = uniform(rng, 0.34, 0.5), uniform(rng, 0.9, 1.4), uniform(rng, 0.3, 0.65)
    throat, shoulder = uniform(rng, 0.12, 0.17), uniform(rng, 0.2, 0.45)
    top = body + shoulder + neck
    rounding = [(radius - 0.06, 0), (radius, 0.06), (radius, body)]
    curve = [(throat + (radius - throat) * (0.5 + 0.5 * math.cos(t)), body + shoulder * t / math.pi)
             for t in np.linspace(0.5, math.pi, 6)]  # fmt: skip
    profile = [(0, 0), *rounding, *curve, (throat, top), (0, top)]
    cap = [(0, top - 0.1), (throat + 0.06, top - 0.1), (throat + 0.06, top + 0.12), (0, top + 0.12)]
    parts = {BODY: [lathe(profile, segments=28)], "cap": [lathe(cap)]}
    if chance(rng, 0.5):
        parts["label"] = [_band(radius, 0.25 * body, radius, 0.7 * body)]
    features = tuple(["a label"] * ("label" in parts)) + graded(neck, 0.0, 0.5, ("", "a long neck"))
    adjectives = graded(top / radius, 4.3, 5.4, ("stout", "slim"))
    return Draft(parts, ("cap", "label"), adjectives=adjectives, features=features)


def vase(rng: np.random.Generator) -> Draft:
    """A belly that narrows to a throat and opens into a flared mouth, hollow, with or without handles."""
    belly, throat = uniform(rng, 0.5, 0.72), uniform(rng, 0.2, 0.3)
    mouth, height = uniform(rng, 0.4, 0.55), uniform(rng, 1.4, 2.0)
    peak = uniform(rng, 0.3, 0.5)
    heights = np.array([0.0, 0.5 * peak, peak, 0.5 * (peak + 0.78), 0.78, 0.9, 1.0]) * height
    radii = np.array(
        [
            0.3,
            0.85 * belly + 0.04,
            belly,
            0.62 * belly + 0.38 * throat,
            throat,
            0.6 * throat + 0.4 * mouth,
            mouth,
        ]
    )
    fine = np.linspace(0, height, 15)
    outer = PchipInterpolator(heights, radii)(fine)
    profile = [
        (0, 0),
        *zip(outer, fine, strict=True),
        (mouth - 0.09, height),
        (throat - 0.09, 0.78 * height),
        (0, 0.6 * height),
    ]
    parts = {BODY: [lathe(profile, segments=28)]}
    parts["rim"] = [_ring(mouth - 0.05, height, 0.075)]
    if chance(rng, 0.35):
        parts["handles"] = []
        for side in (-1, 1):
            path = arc((0, 0), 1.0, (-90, 90), 10) * (0.33, 0.19 * height) + (throat - 0.02, 0.72 * height)
            handle = tube(np.insert(path * (side, 1), 1, 0.0, axis=1), 0.07, normal=(0, 1, 0))
            parts["handles"].append(handle)
    if chance(rng, 0.4):
        at = [float(PchipInterpolator(heights, radii)(h * height)) for h in (peak - 0.09, peak + 0.09)]
        parts["band"] = [_band(at[0], (peak - 0.09) * height, at[1], (peak + 0.09) * height, grow=0.05)]
    features = tuple(f for f, name in (("handles", "handles"), ("a band", "band")) if name in parts)
    adjectives = graded(height / belly, 2.5, 3.2, ("round", "tall"))
    return Draft(parts, ("rim", "handles", "band"), adjectives=adjectives, features=features)


def bowl(rng: np.random.Generator) -> Draft:
    """A wide hollow bowl on a foot."""
    radius, depth, foot = uniform(rng, 0.85, 1.05), uniform(rng, 0.42, 0.85), uniform(rng, 0.28, 0.42)
    angles = np.linspace(0.3, 0.5 * math.pi, 8)
    shape = np.stack([np.sin(angles), 1 - np.cos(angles)], axis=1)
    outer = shape * (radius, depth) + (0, 0.12)
    inner = shape[::-1] * (radius - 0.1, depth - 0.08) + (0, 0.2)
    top = outer[-1, 1]
    inner[0, 1] = top
    profile = [(0, 0.1), *outer, *inner, (0, 0.22)]
    parts = {
        BODY: [lathe(profile, segments=36)],
        "foot": [lathe([(0, 0), (foot + 0.05, 0), (foot, 0.24), (0, 0.24)])],
    }
    if chance(rng, 0.6):
        parts["rim"] = [_ring(radius - 0.05, float(top), 0.08)]
    if chance(rng, 0.4):
        at = radius * np.sin(np.arccos(1 - np.array([0.4, 0.75])))
        parts["stripe"] = [_band(at[0], 0.12 + 0.4 * depth, at[1], 0.12 + 0.75 * depth, grow=0.035)]
    features = ("a stripe",) if "stripe" in parts else ()
    adjectives = graded(depth, 0.55, 0.72, ("shallow", "deep"))
    return Draft(parts, ("foot", "rim", "stripe"), adjectives=adjectives, features=features)


def hammer(rng: np.random.Generator) -> Draft:
    """A handle standing upright with a heavy head on top: mallet, sledge or claw."""
    length, grip, head = uniform(rng, 1.3, 1.9), uniform(rng, 0.08, 0.11), uniform(rng, 0.9, 1.25)
    thick, style = uniform(rng, 0.36, 0.48), rng.choice(["mallet", "sledge", "claw"])
    if style == "mallet":
        pieces = [rod((-head / 2, 0, length), (head / 2, 0, length), thick / 2 + 0.04, segments=24)]
    elif style == "sledge":
        pieces = [box((head, thick, thick), (0, 0, length), bevel=0.07)]
    else:
        pieces = [
            rod((-head / 2, 0, length), (0.1, 0, length), thick / 2, segments=20),
            moved(
                extrude([(0, 0.2), (0.3, 0.16), (0.62, -0.22), (0.5, -0.28), (0.3, -0.08), (0, -0.2)], 0.34),
                (0.05, 0, length),
            ),
        ]
    parts = {BODY: pieces, "handle": [rod((0, 0, 0), (0, 0, length + 0.1), grip * 1.2, grip, segments=14)]}
    if chance(rng, 0.5):
        parts["grip"] = [lathe([(0, -0.02), (grip + 0.07, -0.02), (grip + 0.05, 0.5), (0, 0.5)], segments=16)]
    features = () if style == "sledge" else ({"mallet": "a round head", "claw": "a claw"}[str(style)],)
    adjectives = graded(length, 1.5, 1.75, ("short", "long"))
    return Draft(parts, ("handle", "grip"), adjectives=adjectives, features=features)


def guitar(rng: np.random.Generator) -> Draft:
    """A figure-eight body standing upright with its neck and head above."""
    lower, upper = uniform(rng, 0.5, 0.62), uniform(rng, 0.36, 0.46)
    waist, neck, depth = uniform(rng, 0.26, 0.34), uniform(rng, 0.85, 1.2), uniform(rng, 0.26, 0.36)
    half_width = PchipInterpolator(
        [-0.62, -0.5, -0.2, 0.13, 0.34, 0.46, 0.5], [0, 0.3, lower, waist, upper, 0.26, 0]
    )
    angle = np.radians(np.arange(40) * 9.0)
    height = np.clip(-0.06 - 0.56 * np.cos(angle), -0.62, 0.5)
    outline = np.stack([np.sign(np.sin(angle)) * half_width(height), height], axis=1)
    front, top = -depth / 2, 0.45 + neck
    parts = {
        BODY: [extrude(outline, depth)],
        "neck": [box((0.17, 0.14, neck + 0.35), (0, front, 0.27 + neck / 2))],
        "head": [box((0.3, 0.14, 0.36), (0, front, top + 0.12), bevel=0.04)],
        "sound hole": [rod((0, front - 0.03, -0.02), (0, 0, -0.02), 0.17, segments=20)],
        "bridge": [box((0.36, 0.1, 0.1), (0, front - 0.02, -0.36))],
    }
    neutral = {"sound hole": "black", "bridge": "black"}
    return Draft(parts, ("neck", "head"), neutral, graded(neck, 0.95, 1.1, ("short", "long")))


def umbrella(rng: np.random.Generator) -> Draft:
    """An open canopy with a scalloped edge on a shaft that ends in a hook."""
    radius, rise, length = uniform(rng, 0.85, 1.1), uniform(rng, 0.4, 0.65), uniform(rng, 1.2, 1.7)
    num_points = 4 * int(rng.choice([6, 8]))
    scallop = 1 - 0.1 * np.abs(np.sin(np.arange(num_points) * math.pi / 4))
    edge = circle(num_points) * scallop[:, None]
    steps = np.radians(np.linspace(0, 80, 7))
    outer = [(radius * math.cos(a), rise * math.sin(a)) for a in steps]
    inner = [((radius - 0.08) * math.cos(a), (rise - 0.09) * math.sin(a)) for a in steps[::-1]]
    rings = [np.column_stack([edge * r, np.full(num_points, length + z)]) for r, z in inner + outer]
    peak = length + rise
    hook = np.concatenate([[(0, 0.35)], arc((0.17, 0.1), 0.17, (180, 360), 10)])
    parts = {
        BODY: [loft(rings, start=(0, 0, peak - 0.09), end=(0, 0, peak))],
        "handle": [tube(np.insert(hook, 1, 0.0, axis=1), 0.075, normal=(0, 1, 0))],
        "shaft": [rod((0, 0, 0.3), (0, 0, peak - 0.05), 0.055, segments=12)],
        "tip": [rod((0, 0, peak - 0.05), (0, 0, peak + 0.2), 0.07, 0.04, segments=12)],
    }
    adjectives = graded(radius, 0.92, 1.03, ("narrow", "wide"))
    return Draft(parts, ("handle", "shaft", "tip"), adjectives=adjectives)
