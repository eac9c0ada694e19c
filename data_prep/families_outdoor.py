"""Builders of vehicles, buildings, plants and figures; see `data_prep.draft` for the conventions."""

import math

import numpy as np

from data_prep.draft import BODY, Draft, chance, graded, uniform
from data_prep.solids import SEGMENTS, Solid, arc, ball, box, circle, extrude, lathe, loft, moved, rod, tube


def _wheels(x: float, ys: list[float], radius: float, width: float) -> list[Solid]:
    return [
        rod((s * x - width / 2, y, radius), (s * x + width / 2, y, radius), radius, segments=20)
        for s in (-1, 1)
        for y in ys
    ]


def car(rng: np.random.Generator) -> Draft:
    """A body with a glass cabin under a roof, on four wheels; sedan, hatchback or van-like by its cabin."""
    length, width, wheel = uniform(rng, 1.9, 2.5), uniform(rng, 0.9, 1.05), uniform(rng, 0.23, 0.29)
    lower, upper = uniform(rng, 0.38, 0.5), uniform(rng, 0.34, 0.5)
    cabin, shift = uniform(rng, 0.48, 0.68) * length, uniform(rng, 0.0, 0.14) * length
    floor = 0.7 * wheel
    deck = floor + lower
    parts = {
        BODY: [
            box((width, length, lower), (0, 0, floor + lower / 2), bevel=0.09),
            box((0.82 * width, 0.62 * cabin, 0.12), (0, shift, deck + upper), bevel=0.05),
            *(box((0.86 * width, 0.1, upper), (0, shift + y * cabin, deck + upper / 2), taper=(0.95, 1))
              for y in (-0.27, 0.02, 0.29)),
        ],
        "windows": [box((0.92 * width, cabin, upper), (0, shift, deck + upper / 2 - 0.02), bevel=0.02, taper=(0.86, 0.62))],
        "wheels": _wheels(width / 2 - 0.04, [-0.31 * length, 0.31 * length], wheel, 0.2),
    }  # fmt: skip
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
    cargo, width, wheel = uniform(rng, 1.3, 2.1), uniform(rng, 0.85, 1.0), uniform(rng, 0.22, 0.27)
    cab, tall = uniform(rng, 0.6, 0.72), uniform(rng, 0.85, 1.05)
    front, floor = -(cargo + cab) / 2, wheel * 1.1
    middle, style = front + cab + 0.08 + cargo / 2, rng.choice(["box", "tank", "bed"])
    cab_parts = [
        box((width, cab, tall * 0.5), (0, front + cab / 2, floor + tall * 0.25), bevel=0.05),
        box(
            (width, cab * 0.8, tall * 0.52),
            (0, front + cab * 0.6, floor + tall * 0.74),
            bevel=0.05,
            taper=(0.92, 0.9),
        ),
    ]
    chassis = box((0.7 * width, cargo + cab, 0.16), (0, 0.05, floor))
    if style == "box":
        high = uniform(rng, 1.0, 1.25)
        load = [box((width + 0.06, cargo, high), (0, middle, floor + 0.06 + high / 2), bevel=0.03)]
    elif style == "tank":
        load = [
            rod(
                (0, middle - cargo / 2, floor + 0.48),
                (0, middle + cargo / 2, floor + 0.48),
                0.47,
                segments=24,
            )
        ]
    else:
        load = [box((width, cargo, 0.14), (0, middle, floor + 0.1))]
        load += [box((0.12, cargo, 0.46), (s * (width / 2 - 0.06), middle, floor + 0.3)) for s in (-1, 1)]
        load += [box((width, 0.12, 0.46), (0, middle + s * (cargo / 2 - 0.06), floor + 0.3)) for s in (-1, 1)]
    rear = middle + cargo / 2
    parts = {
        BODY: [chassis, *load],
        "cab": cab_parts,
        "windows": [
            box((width * 0.86, 0.1, tall * 0.32), (0, front + cab * 0.23, floor + tall * 0.73), bevel=0.03),
            box(
                (width * 1.01, cab * 0.42, tall * 0.28),
                (0, front + cab * 0.6, floor + tall * 0.72),
                bevel=0.03,
            ),
        ],
        "wheels": _wheels(
            width / 2 - 0.05, [front + 0.36, rear - 0.3, rear - 0.32 - 2.1 * wheel], wheel, 0.2
        ),
    }
    features = {"box": (), "tank": ("a tank",), "bed": ("an open bed",)}[str(style)]
    neutral = {"windows": "glass", "wheels": "tyre"}
    adjectives = graded(cargo, 1.5, 1.85, ("short", "long"))
    return Draft(parts, ("cab", "wheels") if style != "bed" else ("wheels",), neutral, adjectives, features)


def boat(rng: np.random.Generator) -> Draft:
    """A hull with a pointed bow, and a cabin with a funnel or a mast with two sails."""
    length, beam, depth = uniform(rng, 1.9, 2.4), uniform(rng, 0.75, 0.95), uniform(rng, 0.42, 0.56)
    stations = np.array([-0.5, -0.42, -0.28, -0.05, 0.25, 0.5])
    widths = np.array([0.06, 0.4, 0.74, 0.96, 1.0, 0.84])
    rise = depth * (1 + 0.35 * np.clip(-stations - 0.1, 0, 1) ** 1.5 * 4)
    section = np.array([(-1, 1), (-0.8, 0.35), (-0.4, 0.0), (0.4, 0.0), (0.8, 0.35), (1, 1)])
    rings = [
        np.column_stack(
            [
                section[:, 0] * w * beam / 2,
                np.full(6, y * length - (1 - section[:, 1]) * (y < -0.2) * -0.12),
                section[:, 1] * h,
            ]
        )
        for y, w, h in zip(stations, widths, rise, strict=True)
    ]
    parts, features = {BODY: [loft(rings)]}, ()
    if chance(rng, 0.5):
        mast, boom = uniform(rng, 1.4, 1.9), 0.42 * length
        parts["mast"] = [rod((0, -0.1, depth - 0.1), (0, -0.1, depth + mast), 0.06, segments=12)]
        sail = [(-0.02, depth + 0.16), (boom, depth + 0.16), (0.05, depth + mast - 0.08)]
        jib = [(-0.18, depth + 0.16), (-0.4 * length, depth + 0.2), (-0.16, depth + 0.8 * mast)]
        parts["sails"] = [extrude(sail, 0.1, axis="x"), extrude(jib, 0.1, axis="x")]
        features, accents = ("sails",), ("sails", "mast")
        words = graded(mast, 1.55, 1.75, ("low", "tall"))
    else:
        high = uniform(rng, 0.38, 0.6)
        parts["cabin"] = [box((0.62 * beam, 0.36 * length, high), (0, 0.14 * length, depth + high / 2 - 0.05), bevel=0.04),
                          box((0.72 * beam, 0.42 * length, 0.1), (0, 0.14 * length, depth + high - 0.03))]  # fmt: skip
        features, accents = ("a cabin",), ("cabin", "funnel")
        if chance(rng, 0.5):
            top = depth + high
            parts["funnel"] = [
                rod((0, 0.2 * length, top - 0.1), (0, 0.2 * length, top + 0.42), 0.14, segments=16)
            ]
            features += ("a funnel",)
        words = graded(length, 2.05, 2.25, ("short", "long"))
    return Draft(parts, accents, adjectives=words, features=features)


def _wing(root: tuple[float, float], tip: tuple[float, float], span: float, thick: float) -> Solid:
    """A flat wing across x: chord intervals (front, rear) at the root and at both tips."""
    outline = [(0, root[0]), (span, tip[0]), (span, tip[1]), (0, root[1]), (-span, tip[1]), (-span, tip[0])]
    return extrude(outline, thick, axis="z")


def airplane(rng: np.random.Generator) -> Draft:
    """A fuselage with swept or straight wings, a tail, and jet engines or a propeller at its nose."""
    length, radius, span = uniform(rng, 2.0, 2.6), uniform(rng, 0.2, 0.26), uniform(rng, 1.0, 1.35)
    chord, sweep = uniform(rng, 0.42, 0.55), uniform(rng, 0.0, 0.45)
    station = np.array([0.0, 0.02, 0.08, 0.2, 0.6, 0.85, 1.0])
    girth = np.array([0.0, 0.45, 0.78, 1.0, 1.0, 0.62, 0.28]) * radius
    unit = circle(SEGMENTS)
    rings = [np.column_stack([unit[:, 0] * g, np.full(SEGMENTS, (s - 0.5) * length), unit[:, 1] * g + (s > 0.7) * (radius - g) * 0.5])
             for s, g in zip(station[1:], girth[1:], strict=True)]  # fmt: skip
    tail = length / 2
    wing = moved(
        _wing((-chord / 2, chord / 2), (-0.1 + sweep, 0.22 + sweep), span, 0.11), (0, -0.05 * length, -0.05)
    )
    fin = [(tail - 0.42, 0.1), (tail + 0.02, 0.1), (tail + 0.08, 0.68), (tail - 0.16, 0.68)]
    parts = {
        BODY: [loft(rings, start=(0, -length / 2, 0))],
        "wings": [wing],
        "tail": [
            extrude(fin, 0.11, axis="x"),
            moved(_wing((-0.18, 0.16), (0.0, 0.2), 0.48, 0.11), (0, tail - 0.18, 0.5 * radius)),
        ],
    }
    if chance(rng, 0.35):
        nose = -length / 2 - 0.03
        parts["propeller"] = [
            box((0.95, 0.1, 0.13), (0, nose, 0), bevel=0.03),
            ball((0.13, 0.16, 0.13), (0, nose, 0), segments=12, stacks=6),
        ]
        extra, features = "propeller", ("a propeller",)
    else:
        num, extra = (2 if chance(rng) else 4), "engines"
        places = [0.42] if num == 2 else [0.36, 0.68]
        parts["engines"] = [
            rod((s * x * span, -0.36 + sweep * x, -0.17), (s * x * span, 0.1 + sweep * x, -0.17), 0.12, 0.1)
            for x in places for s in (-1, 1)
        ]  # fmt: skip
        features = ({2: "two engines", 4: "four engines"}[num],)
    adjectives = graded(length, 2.2, 2.42, ("short", "long"))
    return Draft(parts, ("wings", "tail", extra), adjectives=adjectives, features=features)


def house(rng: np.random.Generator) -> Draft:
    """Walls under a gable or hip roof, with a door, windows and sometimes a chimney."""
    width, depth = uniform(rng, 1.2, 1.7), uniform(rng, 1.0, 1.3)
    two_floors = chance(rng, 0.4)
    walls = uniform(rng, 1.35, 1.6) if two_floors else uniform(rng, 0.85, 1.0)
    pitch, over, hip = uniform(rng, 0.45, 0.75), 0.1, uniform(rng, 0.0, 0.3) * width
    hip = hip if chance(rng) else 0.0
    x, y, top = width / 2 + over, depth / 2 + over, walls + pitch
    eave = [(-x, -y), (x, -y), (x, y), (-x, y)]
    ridge = [(hip - x, -0.06, top), (x - hip, -0.06, top), (x - hip, 0.06, top), (hip - x, 0.06, top)]
    roof = loft(
        [[(px, py, walls - 0.08) for px, py in eave], [(px, py, walls + 0.02) for px, py in eave], ridge]
    )
    front, door = -depth / 2, uniform(rng, -0.2, 0.2) * width
    rows = [0.52, 1.13] if two_floors else [0.55]
    spots = [(s * 0.34 * width, z) for z in rows for s in (-1, 1)]
    panes = [box((0.26, 0.12, 0.28), (px, f, z)) for px, z in spots for f in (front, -front)
             if f > 0 or z > 0.9 or abs(px - door) > 0.3]  # fmt: skip
    panes += [box((0.12, 0.3, 0.28), (s * width / 2, 0, z)) for z in rows for s in (-1, 1)]
    parts = {
        BODY: [box((width, depth, walls), (0, 0, walls / 2), bevel=0.01)],
        "roof": [roof],
        "door": [box((0.3, 0.13, 0.56), (door, front, 0.28), bevel=0.02)],
        "windows": panes,
    }
    features: tuple[str, ...] = ("two floors",) if two_floors else ()
    if chance(rng, 0.4):
        parts["chimney"] = [box((0.22, 0.22, 0.6), (0.26 * width, 0.22 * depth, walls + 0.55 * pitch + 0.2))]
        features += ("a chimney",)
    adjectives = graded(width, 1.35, 1.55, ("small", "wide"))
    return Draft(parts, ("roof", "door"), {"windows": "glass", "door": "wood"}, adjectives, features)


def tower(rng: np.random.Generator) -> Draft:
    """A round or square tower with battlements or a pointed roof."""
    radius, height, taper = uniform(rng, 0.38, 0.52), uniform(rng, 1.6, 2.5), uniform(rng, 0.8, 1.0)
    is_round, pointed = chance(rng, 0.6), chance(rng, 0.5)
    segments, turn = (SEGMENTS, 1.0) if is_round else (4, math.sqrt(2) * 0.95)
    foot, top = radius * turn, radius * taper * turn
    profile = [(0, 0), (foot * 1.15, 0), (foot * 1.15, 0.16), (foot, 0.2), (top, height - 0.35), (top * 1.25, height - 0.25),
               (top * 1.25, height), (0, height)]  # fmt: skip
    parts = {BODY: [lathe(profile, segments=segments)]}
    reach = radius * taper * 1.25
    if pointed:
        roof = [
            (0, height - 0.02),
            (top * 1.45, height - 0.02),
            (0.05, height + uniform(rng, 0.7, 1.0)),
            (0, height + 0.95),
        ]
        roof[-1] = (0.0, roof[-2][1])
        parts["roof"] = [lathe(roof, segments=segments)]
        name, features = "roof", ("a pointed roof",)
    else:
        around = np.radians(np.arange(8) * 45.0)
        flat = 1.0 if is_round else 0.95
        spots = [(math.cos(a), math.sin(a)) for a in around]
        if not is_round:
            spots = [(math.copysign(min(1, abs(1.42 * cx)), cx) if abs(cx) > 0.1 else 0,
                      math.copysign(min(1, abs(1.42 * cy)), cy) if abs(cy) > 0.1 else 0) for cx, cy in spots]  # fmt: skip
        parts["battlements"] = [
            box((0.2, 0.2, 0.3), ((reach - 0.1) * flat * cx, (reach - 0.1) * flat * cy, height + 0.1))
            for cx, cy in spots
        ]
        name, features = "battlements", ("battlements",)
    front = -radius * 0.95
    parts["door"] = [box((0.3, 0.24, 0.52), (0, front * 1.0, 0.28), bevel=0.03)]
    parts["windows"] = [
        box((0.14, 0.24, 0.26), (0, s * radius * (1 + (taper - 1) * z) * 0.95, z * (height - 0.3)), bevel=0.02)
        for z in (0.55, 0.8) for s in (-1, 1)
    ]  # fmt: skip
    features += () if is_round else ("square walls",)
    neutral = {"windows": "tyre", "door": "wood"}
    return Draft(parts, (name, "door"), neutral, graded(height, 1.85, 2.25, ("short", "tall")), features)


def tree(rng: np.random.Generator) -> Draft:
    """A conifer of stacked cones or a round crown of balls, on a trunk, with or without fruits."""
    trunk, stem = uniform(rng, 0.45, 0.8), uniform(rng, 0.11, 0.16)
    fruits: list[Solid] = []
    if chance(rng, 0.5):
        layers, width = int(rng.integers(2, 5)), uniform(rng, 0.62, 0.85)
        step, z = uniform(rng, 0.36, 0.46), trunk
        crown: list[Solid] = []
        for i in range(layers):
            r = width * (1 - 0.8 * i / layers)
            profile = [
                (0, z),
                (r, z),
                (0.05 if i == layers - 1 else r * 0.3, z + step * 1.6),
                (0, z + step * 1.6),
            ]
            crown.append(lathe(profile))
            z += step
        height, features = z + 0.6 * step, (f"{('two', 'three', 'four')[layers - 2]} layers",)
    else:
        width = uniform(rng, 0.55, 0.75)
        squash = uniform(rng, 0.85, 1.25)
        z = trunk + width * squash * 0.85
        crown = [ball((width, width, width * squash), (0, 0, z))]
        for k in range(3):
            a, r = k * 2.1 + uniform(rng, 0, 1), width * 0.62
            crown.append(
                ball((r, r, r), (0.6 * width * math.cos(a), 0.6 * width * math.sin(a), z - 0.2 * width))
            )
        height, features = z + width * squash, ("a round crown",)
        if chance(rng, 0.4):
            for k in range(14):
                up = math.asin(-0.45 + 1.35 * (k + 0.5) / 14)
                a = k * 2.4
                spot = np.array(
                    [math.cos(a) * math.cos(up), math.sin(a) * math.cos(up), math.sin(up) * squash]
                )
                fruits.append(ball((0.12, 0.12, 0.12), spot * width * 1.02 + (0, 0, z), segments=8, stacks=6))
    parts = {BODY: crown, "trunk": [rod((0, 0, 0), (0, 0, trunk + 0.25), stem * 1.3, stem)]}
    if fruits:
        parts["fruits"] = fruits
        features += ("fruits",)
    neutral = {"trunk": "wood"}
    accents = ("fruits",) if fruits else ("trunk",)
    return Draft(parts, accents, neutral, graded(height, 1.75, 2.05, ("small", "tall")), features)


def cactus(rng: np.random.Generator) -> Draft:
    """A fluted column with one to three raised arms, sometimes in a pot, sometimes with flowers."""
    height, radius, arms = uniform(rng, 1.3, 2.0), uniform(rng, 0.24, 0.32), int(rng.integers(1, 4))
    potted, floor = chance(rng, 0.55), 0.0
    parts: dict[str, list[Solid]] = {BODY: []}
    if potted:
        floor = 0.4
        pot = [(0, 0), (0.36, 0), (0.46, 0.4), (0.52, 0.4), (0.52, 0.54), (0, 0.54)]
        parts["pot"] = [lathe(pot)]
    top = floor + height
    profile = [(0, floor), (radius * 0.9, floor), (radius, floor + 0.3), (radius, top - 0.3), (radius * 0.82, top - 0.12),
               (radius * 0.45, top - 0.02), (0, top)]  # fmt: skip
    parts[BODY].append(lathe(profile, segments=24, rib=0.12))
    tops = [(0.0, 0.0, top)]
    for k in range(arms):
        side, reach, rise = (1, -1, 1)[k], uniform(rng, 0.42, 0.55), uniform(rng, 0.35, 0.6)
        low = floor + height * (0.32, 0.46, 0.3)[k]
        bend = arc((reach - 0.16, 0.16), 0.16, (-90, 0), 5)
        path = np.concatenate([[(0.0, 0.0)], bend, [(reach, rise), (reach, rise + 0.02)]]) * (side, 1) + (
            0,
            low,
        )
        flat = np.insert(path, 1, 0.0, axis=1) if k < 2 else np.insert(path * (-1, 1), 0, 0.0, axis=1)
        parts[BODY].append(tube(flat, 0.15, normal=(0, 1, 0) if k < 2 else (1, 0, 0), segments=12))
        parts[BODY].append(ball((0.15, 0.15, 0.15), flat[-1], segments=12, stacks=6))
        tops.append(tuple(flat[-1] + (0, 0, 0.14)))
    features = (("an arm", "two arms", "three arms")[arms - 1],)
    if chance(rng, 0.4):
        parts["flowers"] = [ball((0.15, 0.15, 0.1), spot, segments=10, stacks=6) for spot in tops]
        features += ("flowers",)
    features += ("a pot",) if potted else ()
    return Draft(parts, ("pot", "flowers"), {}, graded(height, 1.5, 1.8, ("short", "tall")), features)


def mushroom(rng: np.random.Generator) -> Draft:
    """A domed or pointed cap with or without spots on a thick stem."""
    cap, rise, stem = uniform(rng, 0.7, 1.0), uniform(rng, 0.45, 0.85), uniform(rng, 0.6, 1.2)
    thick = uniform(rng, 0.2, 0.3)
    steps = np.radians(np.linspace(0, 90, 9))[:-1]
    dome = [(cap * math.cos(a), stem + rise * math.sin(a)) for a in steps]
    profile = [(0, stem + 0.08), (cap * 0.6, stem - 0.02), (cap * 0.94, stem - 0.08), *dome, (0, stem + rise)]
    shaft = [
        (0, 0),
        (thick * 1.45, 0),
        (thick * 1.35, 0.18),
        (thick, 0.5 * stem),
        (thick, stem + 0.1),
        (0, stem + 0.1),
    ]
    parts = {BODY: [lathe(profile, segments=28)], "stem": [lathe(shaft, segments=20)]}
    features: tuple[str, ...] = ()
    if chance(rng, 0.6):
        spots = (
            [(0.0, 90.0)] + [(k * 72.0, 50.0) for k in range(5)] + [(k * 51.4 + 30, 18.0) for k in range(7)]
        )
        size, parts["spots"] = uniform(rng, 0.13, 0.17), []
        for around, up in spots:
            a, e = math.radians(around), math.radians(up)
            at = (cap * math.cos(e) * math.cos(a), cap * math.cos(e) * math.sin(a), stem + rise * math.sin(e))
            parts["spots"].append(ball((size, size, size * 0.8), at, segments=8, stacks=6))
        features = ("spots",)
    adjectives = graded(stem, 0.75, 1.05, ("short", "tall")) + graded(cap, 0.0, 0.92, ("", "wide"))
    return Draft(
        parts,
        ("spots", "stem") if features else ("stem",),
        {"stem": "cream", "spots": "cream"},
        adjectives,
        features,
    )


def robot(rng: np.random.Generator) -> Draft:
    """A box of a body with a square or round head, arms, legs and one or two antennas."""
    width, height, depth = uniform(rng, 0.75, 1.05), uniform(rng, 0.75, 1.1), uniform(rng, 0.5, 0.62)
    leg, head, round_head = uniform(rng, 0.38, 0.7), uniform(rng, 0.46, 0.6), chance(rng, 0.4)
    waist, neck = leg + height, leg + height + 0.08
    middle = neck + head * 0.5
    if round_head:
        skull = ball((head * 0.62, head * 0.55, head * 0.55), (0, 0, middle))
    else:
        skull = box((head * 1.25, head, head), (0, 0, middle), bevel=0.06)
    face, shoulder = -head * 0.52, width / 2 + 0.12
    parts = {
        BODY: [
            box((width, depth, height), (0, 0, leg + height / 2), bevel=0.07),
            skull,
            rod((0, 0, waist - 0.05), (0, 0, middle), 0.14, segments=12),
        ],
        "arms": [
            piece for s in (-1, 1) for piece in (
                rod((s * shoulder, 0, waist - 0.14), (s * (shoulder + 0.08), -0.05, leg + 0.12), 0.12, 0.1, segments=12),
                ball((0.16, 0.16, 0.16), (s * (shoulder + 0.08), -0.05, leg + 0.05), segments=12, stacks=8),
                rod((s * (width / 2 - 0.06), 0, waist - 0.14), (s * (shoulder + 0.02), 0, waist - 0.14), 0.11, segments=12),
            )
        ],
        "legs": [
            piece for s in (-1, 1) for piece in (
                box((0.24, 0.26, leg + 0.04), (s * width * 0.25, 0, leg / 2 + 0.02)),
                box((0.3, 0.46, 0.16), (s * width * 0.25, -0.08, 0.08)),
            )
        ],
        "eyes": [ball((0.1, 0.08, 0.1), (s * head * 0.27, face, middle + 0.04), segments=12, stacks=8) for s in (-1, 1)],
    }  # fmt: skip
    places = [0.0] if chance(rng) else [-0.2, 0.2]
    roof = middle + head * 0.45
    noun = "antenna" if len(places) == 1 else "antennas"
    parts[noun] = [
        piece for x in places for piece in (
            rod((x, 0, roof - 0.1), (x, 0, roof + 0.26), 0.05, segments=10),
            ball((0.1, 0.1, 0.1), (x, 0, roof + 0.3), segments=10, stacks=6),
        )
    ]  # fmt: skip
    features = ("an antenna" if len(places) == 1 else "two antennas",) + (
        ("a round head",) if round_head else ()
    )
    light = {"eyes": "cream"}
    adjectives = graded(width, 0.83, 0.96, ("slim", "wide")) + graded(
        leg + height, 1.3, 1.6, ("short", "tall")
    )
    return Draft(parts, ("arms", "legs", noun), light, adjectives[:1], features)


def snowman(rng: np.random.Generator) -> Draft:
    """Two or three balls with a carrot nose and buttons, a hat and a scarf."""
    base = uniform(rng, 0.55, 0.7)
    radii = [base, base * 0.72, base * 0.52] if chance(rng, 0.7) else [base, base * 0.68]
    body, z = [], 0.0
    for k, r in enumerate(radii):
        z += 0.92 * r if k == 0 else 0.75 * r
        body.append(ball((r, r, r * 0.95), (0, 0, z)))
        z += 0.75 * r if k < len(radii) - 1 else 0.0
    head = radii[-1]
    below = z - 0.85 * head
    coal = [
        ball((0.075, 0.075, 0.075), (s * head * 0.38, -head * 0.88, z + head * 0.22), segments=8, stacks=6)
        for s in (-1, 1)
    ]
    chest, at = radii[-2], z - 0.75 * (head + radii[-2])
    coal += [
        ball((0.075, 0.075, 0.075), (0, -chest * math.cos(e), at + chest * math.sin(e)), segments=8, stacks=6)
        for e in (-0.1, 0.35)
    ]
    parts: dict[str, list[Solid]] = {
        BODY: body,
        "nose": [rod((0, -head * 0.85, z), (0, -head * 0.95 - 0.34, z - 0.02), 0.1, 0.02, segments=12)],
        "buttons": coal,
    }
    features: tuple[str, ...] = ()
    neutral = {"nose": "carrot", "buttons": "tyre", "hat": "tyre", "scarf": "tyre"}
    if chance(rng, 0.75):
        brim, tall = z + head * 0.72, uniform(rng, 0.3, 0.55)
        hat = [(0, brim), (head * 1.02, brim), (head * 1.02, brim + 0.09), (head * 0.68, brim + 0.1),
               (head * 0.68, brim + tall), (0, brim + tall)]  # fmt: skip
        parts["hat"] = [lathe(hat)]
        features += ("a hat",)
    if chance(rng, 0.5):
        ring = np.column_stack([circle(24) * (head * 0.82), np.full(24, below)])
        parts["scarf"] = [tube(ring, 0.12, normal=(0, 0, 1), closed=True)]
        parts["scarf"].append(box((0.18, 0.14, 0.42), (0.16, -head * 0.95, below - 0.16), bevel=0.03))
        features += ("a scarf",)
    if len(radii) == 2:
        features += ("two balls",)
    accents = tuple(name for name in ("hat", "scarf") if name in parts) or ("buttons",)
    return Draft(parts, accents, neutral, graded(base, 0.0, 0.64, ("", "fat")), features)
