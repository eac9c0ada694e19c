"""Builders of vessels and tools; see `data_prep.procedural.draft` for the conventions."""

import math

import numpy as np
from scipy.interpolate import PchipInterpolator

from data_prep.procedural.draft import BODY, Draft, chance, graded, uniform
from data_prep.procedural.solids import Solid, arc, box, circle, extrude, lathe, loft, moved, rod, tube


def _ring(radius: float, height: float, thickness: float) -> Solid:
    """A horizontal torus about z."""
    path = np.column_stack([circle(32) * radius, np.full(32, height)])
    return tube(path, thickness, normal=(0, 0, 1), closed=True, segments=8)


def _band(low: tuple[float, float], high: tuple[float, float], *, grow: float = 0.03) -> Solid:
    """A sleeve about z that stands out by `grow` from the cone between two (radius, height)."""
    profile = [
        (low[0] - 0.03, low[1]),
        (low[0] + grow, low[1]),
        (high[0] + grow, high[1]),
        (high[0] - 0.03, high[1]),
    ]
    return loft([np.column_stack([circle(32) * r, np.full(32, z)]) for r, z in profile], closed=True)


def _handle(x: float, z: float, reach: float, half_height: float, *, side: int = 1) -> Solid:
    """An ear in the xz-plane that starts and ends at (side * x, z -+ half_height)."""
    path = (arc((0, 0), 1.0, (-95, 95), 12) * (reach, half_height) + (x, z)) * (side, 1)
    return tube(np.insert(path, 1, 0.0, axis=1), 0.075, normal=(0, 1, 0))


def mug(rng: np.random.Generator) -> Draft:
    """A hollow cup with one handle at its right side."""
    radius, height, taper = uniform(rng, 0.45, 0.6), uniform(rng, 0.8, 1.35), uniform(rng, 0.8, 1.05)
    wall, foot = 0.08, radius * taper
    profile = [(0, 0), (foot, 0), (radius, height), (radius - wall, height), (foot - wall, 0.1), (0, 0.1)]
    parts = {
        BODY: [lathe(profile, segments=32)],
        "handle": [_handle((foot + radius) / 2 - 0.05, height / 2, uniform(rng, 0.26, 0.36), 0.3 * height)],
    }
    if chance(rng, 0.4):
        parts["rim"] = [_ring(radius - wall / 2, height, 0.065)]
    if chance(rng, 0.35):
        low, high = (foot + k * (radius - foot) for k in (0.3, 0.65))
        parts["stripe"] = [_band((low, 0.3 * height), (high, 0.65 * height))]
    adjectives = graded(height / radius, 1.7, 2.3, ("wide", "tall"))
    return Draft(parts, ("handle", "rim", "stripe"), adjectives=adjectives)


def bottle(rng: np.random.Generator) -> Draft:
    """A slim body with a shoulder, a neck and a cap, with or without a label."""
    radius, body, neck = uniform(rng, 0.36, 0.52), uniform(rng, 0.9, 1.35), uniform(rng, 0.3, 0.6)
    throat, shoulder = uniform(rng, 0.13, 0.18), uniform(rng, 0.2, 0.45)
    top, cap = body + shoulder + neck, throat + 0.06
    curve = [
        (throat + (radius - throat) * (0.5 + 0.5 * math.cos(t)), body + shoulder * t / math.pi)
        for t in np.linspace(0.5, math.pi, 6)
    ]
    profile = [(0, 0), (radius - 0.06, 0), (radius, 0.06), (radius, body), *curve, (throat, top), (0, top)]
    parts = {
        BODY: [lathe(profile, segments=28)],
        "cap": [lathe([(0, top - 0.1), (cap, top - 0.1), (cap, top + 0.12), (0, top + 0.12)])],
    }
    if chance(rng):
        parts["label"] = [_band((radius, 0.25 * body), (radius, 0.6 * body))]
    features: tuple[str, ...] = ("a label",) if "label" in parts else ()
    if neck > 0.48:
        features += ("a long neck",)
    adjectives = graded(top / radius, 4.1, 5.0, ("stout", "slim"))
    return Draft(parts, ("cap", "label"), {"label": "cream"}, adjectives, features)


def vase(rng: np.random.Generator) -> Draft:
    """A belly that narrows to a throat and opens into a flared mouth, hollow, with or without handles."""
    belly, throat = uniform(rng, 0.5, 0.72), uniform(rng, 0.2, 0.3)
    mouth, height, peak = uniform(rng, 0.4, 0.55), uniform(rng, 1.4, 2.0), uniform(rng, 0.3, 0.5)
    outer = PchipInterpolator(
        np.array([0.0, 0.5 * peak, peak, (peak + 0.78) / 2, 0.78, 0.9, 1.0]) * height,
        [
            0.3,
            0.85 * belly + 0.04,
            belly,
            0.6 * belly + 0.4 * throat,
            throat,
            0.6 * throat + 0.4 * mouth,
            mouth,
        ],
    )
    fine = np.linspace(0, height, 15)
    inner = [(mouth - 0.09, height), (throat - 0.09, 0.78 * height), (0, 0.6 * height)]
    parts = {
        BODY: [lathe([(0, 0), *zip(outer(fine), fine, strict=True), *inner], segments=28)],
        "rim": [_ring(mouth - 0.05, height, 0.075)],
    }
    if chance(rng, 0.35):
        ear = (throat - 0.02, 0.72 * height, 0.33, 0.19 * height)
        parts["handles"] = [_handle(*ear, side=side) for side in (-1, 1)]
    if chance(rng, 0.4):
        low, high = ((float(outer(k * height)), k * height) for k in (peak - 0.08, peak + 0.08))
        parts["band"] = [_band(low, high, grow=0.05)]
    features = ("handles",) if "handles" in parts else ()
    adjectives = graded(height / belly, 2.5, 3.2, ("round", "tall"))
    return Draft(parts, ("rim", "handles", "band"), adjectives=adjectives, features=features)


def bowl(rng: np.random.Generator) -> Draft:
    """A wide hollow bowl on a foot, with or without a rim and a stripe."""
    radius, depth, foot = uniform(rng, 0.85, 1.05), uniform(rng, 0.42, 0.85), uniform(rng, 0.28, 0.42)
    angles = np.linspace(0.3, 0.5 * math.pi, 8)
    shape = np.stack([np.sin(angles), 1 - np.cos(angles)], axis=1)
    outer, inner = shape * (radius, depth) + (0, 0.12), shape[::-1] * (radius - 0.1, depth - 0.08) + (0, 0.2)
    parts = {
        BODY: [lathe([(0, 0.1), *outer, *inner, (0, 0.22)], segments=36)],
        "foot": [lathe([(0, 0), (foot + 0.05, 0), (foot, 0.24), (0, 0.24)])],
    }
    if chance(rng, 0.6):
        parts["rim"] = [_ring(radius - 0.05, 0.12 + depth, 0.08)]
    if chance(rng, 0.4):
        low, high = ((radius * math.sin(math.acos(1 - k)), 0.12 + k * depth) for k in (0.4, 0.75))
        parts["stripe"] = [_band(low, high, grow=0.035)]
    adjectives = graded(depth, 0.55, 0.72, ("shallow", "deep"))
    return Draft(parts, ("foot", "rim", "stripe"), adjectives=adjectives)


def hammer(rng: np.random.Generator) -> Draft:
    """A handle standing upright with a heavy head on top: mallet, sledge or claw."""
    length, grip, head = uniform(rng, 1.1, 1.6), uniform(rng, 0.1, 0.13), uniform(rng, 0.95, 1.25)
    thick, style = uniform(rng, 0.42, 0.54), str(rng.choice(["mallet", "sledge", "claw"]))
    if style == "mallet":
        pieces = [rod((-head / 2, 0, length), (head / 2, 0, length), thick / 2 + 0.05, segments=24)]
    elif style == "sledge":
        pieces = [box((head, thick, thick), (0, 0, length), bevel=0.08)]
    else:
        claw = [(0, 0.22), (0.32, 0.18), (0.66, -0.24), (0.54, -0.32), (0.3, -0.1), (0, -0.22)]
        pieces = [
            rod((-head / 2, 0, length), (0.1, 0, length), thick / 2, segments=20),
            moved(extrude(claw, 0.38), (0.05, 0, length)),
        ]
    parts = {
        BODY: pieces,
        "handle": [rod((0, 0, 0), (0, 0, length + 0.1), 1.15 * grip, grip, segments=14)],
    }
    if chance(rng):
        sleeve = [(0, -0.02), (grip + 0.08, -0.02), (grip + 0.06, 0.45), (0, 0.45)]
        parts["grip"] = [lathe(sleeve, segments=16)]
    features = {"mallet": ("a round head",), "sledge": (), "claw": ("a claw",)}[style]
    adjectives = graded(length, 1.27, 1.44, ("short", "long"))
    return Draft(parts, ("handle", "grip"), adjectives=adjectives, features=features)


def guitar(rng: np.random.Generator) -> Draft:
    """A figure-eight body standing upright with its neck and head above."""
    lower, upper = uniform(rng, 0.54, 0.66), uniform(rng, 0.4, 0.5)
    waist, neck, depth = uniform(rng, 0.3, 0.38), uniform(rng, 0.6, 0.95), uniform(rng, 0.28, 0.38)
    half_width = PchipInterpolator(
        [-0.62, -0.5, -0.2, 0.13, 0.34, 0.46, 0.5], [0, 0.34, lower, waist, upper, 0.28, 0]
    )
    angle = np.radians(np.arange(40) * 9.0)
    height = np.clip(-0.06 - 0.56 * np.cos(angle), -0.62, 0.5)
    outline = np.stack([np.sign(np.sin(angle)) * half_width(height), height], axis=1)
    front = -depth / 2
    parts = {
        BODY: [extrude(outline, depth)],
        "neck": [box((0.17, 0.15, neck + 0.35), (0, front, 0.27 + neck / 2))],
        "head": [box((0.3, 0.15, 0.34), (0, front, 0.57 + neck), bevel=0.04)],
        "sound hole": [rod((0, front - 0.03, -0.02), (0, 0, -0.02), 0.17, segments=20)],
        "bridge": [box((0.36, 0.1, 0.1), (0, front - 0.02, -0.36))],
    }
    neutral = {"sound hole": "black", "bridge": "black"}
    return Draft(parts, ("neck", "head"), neutral, graded(neck, 0.7, 0.84, ("short", "long")))


def umbrella(rng: np.random.Generator) -> Draft:
    """An open canopy with a scalloped edge on a shaft that ends in a hook."""
    radius, rise, length = uniform(rng, 0.85, 1.1), uniform(rng, 0.4, 0.65), uniform(rng, 1.1, 1.6)
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
        "handle": [tube(np.insert(hook, 1, 0.0, axis=1), 0.08, normal=(0, 1, 0))],
        "shaft": [rod((0, 0, 0.3), (0, 0, peak - 0.05), 0.06, segments=12)],
        "tip": [rod((0, 0, peak - 0.05), (0, 0, peak + 0.2), 0.08, 0.05, segments=12)],
    }
    adjectives = graded(radius, 0.92, 1.03, ("narrow", "wide"))
    return Draft(parts, ("handle", "shaft", "tip"), adjectives=adjectives)
