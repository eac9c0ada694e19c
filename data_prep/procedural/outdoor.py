"""Builders of buildings, plants and figures; see `data_prep.procedural.draft` for the conventions."""

import itertools
import math

import numpy as np

from data_prep.procedural.draft import BODY, Draft, chance, graded, uniform
from data_prep.procedural.solids import SEGMENTS, Solid, arc, ball, box, circle, lathe, loft, rod, tube


def house(rng: np.random.Generator) -> Draft:
    """Walls under a gable or hip roof, with a door, windows and sometimes a chimney."""
    width, depth, two_floors = uniform(rng, 1.2, 1.7), uniform(rng, 1.0, 1.3), chance(rng, 0.4)
    walls = uniform(rng, 1.4, 1.65) if two_floors else uniform(rng, 1.05, 1.2)
    pitch, hip = uniform(rng, 0.32, 0.52), uniform(rng, 0.15, 0.3) * width * chance(rng)
    front, door = -depth / 2, uniform(rng, -0.2, 0.2) * width
    rows = [0.55, 1.2] if two_floors else [0.6]
    panes = [box((0.12, 0.3, 0.28), (side * width / 2, 0, z)) for z in rows for side in (-1, 1)]
    for x, z in [(side * 0.34 * width, z) for z in rows for side in (-1, 1)]:
        panes.append(box((0.26, 0.12, 0.28), (x, -front, z)))
        if z > 0.9 or abs(x - door) > 0.3:  # not where the door is
            panes.append(box((0.26, 0.12, 0.28), (x, front, z)))
    parts = {
        BODY: [box((width, depth, walls), (0, 0, walls / 2), bevel=0.01)],
        "roof": [_roof(width / 2 + 0.07, depth / 2 + 0.07, walls, pitch, hip)],
        "door": [box((0.3, 0.13, 0.56), (door, front, 0.28), bevel=0.02)],
        "windows": panes,
    }
    features: tuple[str, ...] = ("two floors",) if two_floors else ()
    if chance(rng, 0.4):
        top = walls + 0.55 * pitch + 0.2
        parts["chimney"] = [box((0.22, 0.22, 0.6), (0.26 * width, 0.22 * depth, top))]
        features += ("a chimney",)
    adjectives = graded(width, 1.35, 1.55, ("small", "wide"))
    return Draft(parts, ("roof", "door"), {"windows": "glass", "door": "wood"}, adjectives, features)


def _roof(x: float, y: float, low: float, pitch: float, hip: float) -> Solid:
    """A roof over [-x, x] x [-y, y] whose ridge along x is shorter by `hip` at both ends."""
    corners, top, end = [(-x, -y), (x, -y), (x, y), (-x, y)], low + pitch, x - hip
    ridge = [(-end, -0.06, top), (end, -0.06, top), (end, 0.06, top), (-end, 0.06, top)]
    return loft([[(*c, low - 0.08) for c in corners], [(*c, low + 0.02) for c in corners], ridge])


def tower(rng: np.random.Generator) -> Draft:
    """A round or square tower with battlements or a pointed roof."""
    radius, height, taper = uniform(rng, 0.38, 0.52), uniform(rng, 1.6, 2.5), uniform(rng, 0.8, 1.0)
    is_round = chance(rng, 0.6)
    # A square of the same width as the circle: its corners are further out.
    segments, turn = (SEGMENTS, 1.0) if is_round else (4, 0.95 * math.sqrt(2))
    foot, top = radius * turn, radius * taper * turn
    edge = 1.25 * top
    profile = [(0, 0), (1.15 * foot, 0), (1.15 * foot, 0.16), (foot, 0.2), (top, height - 0.35)]
    profile += [(edge, height - 0.25), (edge, height), (0, height)]
    parts = {BODY: [lathe(profile, segments=segments)]}
    if chance(rng):
        peak = height + uniform(rng, 0.7, 1.0)
        roof = [(0, height - 0.02), (1.4 * top, height - 0.02), (0.05, peak), (0, peak)]
        parts["roof"] = [lathe(roof, segments=segments)]
        name, features = "roof", ["a pointed roof"]
    else:
        spots = np.stack([np.cos(np.arange(8) * math.pi / 4), np.sin(np.arange(8) * math.pi / 4)], axis=1)
        if not is_round:  # the same directions on a square
            spots /= np.abs(spots).max(axis=1, keepdims=True)
        spots *= edge * (1.0 if is_round else math.sqrt(0.5)) - 0.1
        parts["battlements"] = [box((0.2, 0.2, 0.3), (x, y, height + 0.1)) for x, y in spots]
        name, features = "battlements", ["battlements"]
    if not is_round:
        features.append("square walls")
    parts["door"] = [box((0.3, 0.24, 0.52), (0, -0.95 * radius, 0.28), bevel=0.03)]
    parts["windows"] = [
        box((0.14, 0.18, 0.26), (0, side * 0.95 * radius * (1 + (taper - 1) * z), z * (height - 0.3)))
        for z in (0.55, 0.8)
        for side in (-1, 1)
    ]
    neutral = {"windows": "tyre", "door": "wood"}
    adjectives = graded(height, 1.85, 2.25, ("short", "tall"))
    return Draft(parts, (name, "door"), neutral, adjectives, tuple(features))


def tree(rng: np.random.Generator) -> Draft:
    """A conifer of stacked cones, or a round crown of balls with or without fruits, on a trunk."""
    trunk, stem = uniform(rng, 0.45, 0.8), uniform(rng, 0.12, 0.17)
    parts = {"trunk": [rod((0, 0, 0), (0, 0, trunk + 0.25), 1.3 * stem, stem)]}
    if chance(rng):
        num, width, step = int(rng.integers(2, 5)), uniform(rng, 0.62, 0.85), uniform(rng, 0.36, 0.46)
        parts[BODY] = []
        for i in range(num):
            low, high, wide = trunk + i * step, trunk + (i + 1.6) * step, width * (1 - 0.72 * i / num)
            narrow = 0.05 if i == num - 1 else 0.3 * wide
            parts[BODY].append(lathe([(0, low), (wide, low), (narrow, high), (0, high)]))
        height, features = trunk + (num + 0.6) * step, [f"{('two', 'three', 'four')[num - 2]} layers"]
    else:
        width, squash = uniform(rng, 0.55, 0.75), uniform(rng, 0.85, 1.25)
        middle = np.array([0, 0, trunk + 0.85 * width * squash])
        parts[BODY] = [ball((width, width, width * squash), middle)]
        for k in range(3):
            angle = 2.1 * k + uniform(rng, 0.0, 1.0)
            shift = np.array([0.6 * math.cos(angle), 0.6 * math.sin(angle), -0.2]) * width
            parts[BODY].append(ball((0.62 * width,) * 3, middle + shift, segments=16, stacks=8))
        height, features = float(middle[2]) + width * squash, ["a round crown"]
        if chance(rng, 0.4):
            parts["fruits"] = _fruits(1.02 * width, squash, middle)
            features.append("fruits")
    accents = ("fruits",) if "fruits" in parts else ("trunk",)
    adjectives = graded(height, 1.75, 2.05, ("small", "tall"))
    return Draft(parts, accents, {"trunk": "wood"}, adjectives, tuple(features))


def _fruits(radius: float, squash: float, middle: np.ndarray) -> list[Solid]:
    """Fourteen balls spread over a crown by the golden angle."""
    fruits = []
    for k in range(14):
        up, angle = math.asin(-0.45 + 1.35 * (k + 0.5) / 14), 2.4 * k
        spot = (math.cos(angle) * math.cos(up), math.sin(angle) * math.cos(up), math.sin(up) * squash)
        fruits.append(ball((0.12, 0.12, 0.12), np.array(spot) * radius + middle, segments=8, stacks=6))
    return fruits


def cactus(rng: np.random.Generator) -> Draft:
    """A fluted column with one to three raised arms, sometimes in a pot, sometimes with flowers."""
    height, radius, num_arms = uniform(rng, 1.3, 2.0), uniform(rng, 0.25, 0.33), int(rng.integers(1, 4))
    parts: dict[str, list[Solid]] = {BODY: []}
    features: tuple[str, ...] = (("an arm", "two arms", "three arms")[num_arms - 1],)
    floor = 0.0
    if chance(rng, 0.55):
        floor = 0.4
        parts["pot"] = [lathe([(0, 0), (0.36, 0), (0.46, 0.4), (0.52, 0.4), (0.52, 0.54), (0, 0.54)])]
        features += ("a pot",)
    top = floor + height
    profile = [(0, floor), (0.9 * radius, floor), (radius, floor + 0.3), (radius, top - 0.3)]
    profile += [(0.82 * radius, top - 0.12), (0.45 * radius, top - 0.02), (0, top)]
    parts[BODY].append(lathe(profile, segments=24, rib=0.12))
    tips = [np.array([0.0, 0.0, top])]
    for k in range(num_arms):
        reach, rise = uniform(rng, 0.45, 0.56), uniform(rng, 0.38, 0.62)
        bend = arc((reach - 0.16, 0.16), 0.16, (-90, 0), 5)
        path = np.concatenate([[(0.0, 0.0)], bend, [(reach, rise)]])
        path = path * ((1, -1, -1)[k], 1) + (0, floor + height * (0.32, 0.46, 0.3)[k])
        column, normal = ((1, (0, 1, 0)), (1, (0, 1, 0)), (0, (1, 0, 0)))[k]  # right, left, front
        path = np.insert(path, column, 0.0, axis=1)
        parts[BODY].append(tube(path, 0.16, normal=normal, segments=12))
        parts[BODY].append(ball((0.16, 0.16, 0.16), path[-1], segments=12, stacks=6))
        tips.append(path[-1] + (0, 0, 0.14))
    if chance(rng, 0.4):
        parts["flowers"] = [ball((0.15, 0.15, 0.1), tip, segments=10, stacks=6) for tip in tips]
        features += ("flowers",)
    return Draft(parts, ("pot", "flowers"), {}, graded(height, 1.5, 1.8, ("short", "tall")), features)


def mushroom(rng: np.random.Generator) -> Draft:
    """A domed cap with or without spots on a thick stem."""
    cap, rise, stem = uniform(rng, 0.75, 1.0), uniform(rng, 0.5, 0.85), uniform(rng, 0.6, 1.1)
    thick = uniform(rng, 0.2, 0.28)
    steps = np.radians(np.linspace(0, 90, 9))[:-1]
    dome = [(cap * math.cos(a), stem + rise * math.sin(a)) for a in steps]
    profile = [(0, stem + 0.08), (0.6 * cap, stem - 0.02), (0.94 * cap, stem - 0.08), *dome, (0, stem + rise)]
    shaft = [
        (0, 0),
        (1.4 * thick, 0),
        (1.3 * thick, 0.18),
        (thick, 0.5 * stem),
        (thick, stem + 0.1),
        (0, stem + 0.1),
    ]
    parts = {BODY: [lathe(profile, segments=28)], "stem": [lathe(shaft, segments=20)]}
    features: tuple[str, ...] = ()
    if chance(rng, 0.6):
        size = uniform(rng, 0.12, 0.16)
        spots = [
            (0.0, 90.0),
            *((72.0 * k, 50.0) for k in range(5)),
            *((60.0 * k + 30, 18.0) for k in range(6)),
        ]
        parts["spots"] = []
        for around, up in np.radians(spots):
            spot = (cap * math.cos(up) * math.cos(around), cap * math.cos(up) * math.sin(around))
            at = (*spot, stem + rise * math.sin(up))
            parts["spots"].append(ball((size, size, 0.8 * size), at, segments=8, stacks=6))
        features = ("spots",)
    adjectives = graded(stem, 0.75, 0.95, ("short", "tall"))
    neutral = {"stem": "cream", "spots": "cream"}
    return Draft(parts, ("spots",) if features else ("stem",), neutral, adjectives, features)


def robot(rng: np.random.Generator) -> Draft:
    """A box of a body with a square or round head, arms, legs and one or two antennas."""
    width, height, depth = uniform(rng, 0.75, 1.05), uniform(rng, 0.75, 1.1), uniform(rng, 0.5, 0.62)
    leg, head, round_head = uniform(rng, 0.38, 0.7), uniform(rng, 0.46, 0.6), chance(rng, 0.4)
    shoulder = leg + height
    middle = shoulder + 0.08 + 0.5 * head
    if round_head:
        skull = ball((0.62 * head, 0.55 * head, 0.55 * head), (0, 0, middle))
    else:
        skull = box((1.25 * head, head, head), (0, 0, middle), bevel=0.06)
    neck = rod((0, 0, shoulder - 0.05), (0, 0, middle), 0.14, segments=12)
    parts = {
        BODY: [box((width, depth, height), (0, 0, leg + height / 2), bevel=0.07), skull, neck],
        "arms": [piece for side in (-1, 1) for piece in _arm(side, width / 2, shoulder - 0.14, leg + 0.1)],
        "legs": [piece for side in (-1, 1) for piece in _leg(side * width / 4, leg)],
        "eyes": [
            ball((0.1, 0.08, 0.1), (side * 0.27 * head, -0.52 * head, middle + 0.04), segments=12, stacks=8)
            for side in (-1, 1)
        ],
    }
    places = [0.0] if chance(rng) else [-0.2, 0.2]
    top, noun = middle + 0.45 * head, "antenna" if len(places) == 1 else "antennas"
    parts[noun] = [rod((x, 0, top - 0.1), (x, 0, top + 0.26), 0.06, segments=10) for x in places]
    parts[noun] += [ball((0.11, 0.11, 0.11), (x, 0, top + 0.3), segments=10, stacks=6) for x in places]
    features: tuple[str, ...] = ("an antenna",) if len(places) == 1 else ("two antennas",)
    if round_head:
        features += ("a round head",)
    adjectives = graded(width, 0.83, 0.96, ("slim", "wide"))
    return Draft(parts, ("arms", "legs", noun), {"eyes": "cream"}, adjectives, features)


def _arm(side: int, x: float, shoulder: float, hand: float) -> list[Solid]:
    high, low = (side * (x + 0.14), 0.0, shoulder), (side * (x + 0.2), -0.05, hand)
    return [
        rod(high, low, 0.12, 0.1, segments=12),
        ball((0.16, 0.16, 0.16), low, segments=12, stacks=8),
        rod((side * (x - 0.06), 0, shoulder), high, 0.11, segments=12),
    ]


def _leg(x: float, height: float) -> list[Solid]:
    shin = box((0.24, 0.26, height + 0.04), (x, 0, height / 2 + 0.02))
    return [shin, box((0.3, 0.46, 0.16), (x, -0.08, 0.08))]


def snowman(rng: np.random.Generator) -> Draft:
    """Two or three balls with a carrot nose and buttons, with or without a hat and a scarf."""
    base = uniform(rng, 0.55, 0.7)
    radii = [base, 0.72 * base, 0.52 * base] if chance(rng, 0.7) else [base, 0.68 * base]
    centres = [0.92 * base]
    for low, high in itertools.pairwise(radii):
        centres.append(centres[-1] + 0.75 * (low + high))
    head, z, chest = radii[-1], centres[-1], radii[-2]
    spots = [(side * 0.38 * head, -0.88 * head, z + 0.22 * head) for side in (-1, 1)]
    spots += [(0, -chest * math.cos(up), centres[-2] + chest * math.sin(up)) for up in (-0.1, 0.35)]
    parts = {
        BODY: [ball((r, r, 0.95 * r), (0, 0, height)) for r, height in zip(radii, centres, strict=True)],
        "nose": [rod((0, -0.85 * head, z), (0, -0.95 * head - 0.34, z - 0.02), 0.1, 0.02, segments=12)],
        "buttons": [ball((0.08, 0.08, 0.08), spot, segments=8, stacks=6) for spot in spots],
    }
    features: tuple[str, ...] = ()
    if chance(rng, 0.75):
        brim, wide, tall = z + 0.72 * head, 1.02 * head, uniform(rng, 0.3, 0.55)
        hat = [(0, brim), (wide, brim), (wide, brim + 0.09), (0.68 * head, brim + 0.1)]
        parts["hat"] = [lathe([*hat, (0.68 * head, brim + tall), (0, brim + tall)])]
        features += ("a hat",)
    if chance(rng):
        collar = z - 0.85 * head
        ring = np.column_stack([circle() * 0.82 * head, np.full(SEGMENTS, collar)])
        end = box((0.18, 0.14, 0.42), (0.16, -0.95 * head, collar - 0.16), bevel=0.03)
        parts["scarf"] = [tube(ring, 0.12, normal=(0, 0, 1), closed=True), end]
        features += ("a scarf",)
    if len(radii) == 2:
        features += ("two balls",)
    accents = tuple(name for name in ("hat", "scarf") if name in parts) or ("buttons",)
    neutral = {"nose": "carrot", "buttons": "tyre", "hat": "tyre", "scarf": "tyre"}
    return Draft(parts, accents, neutral, graded(base, 0.59, 0.66, ("slim", "fat")), features)
