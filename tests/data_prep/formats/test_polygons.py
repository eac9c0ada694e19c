"""Triangles of a polygon cover it once: their area is the polygon's, concave or with holes."""

import numpy as np
import pytest

from data_prep.formats.faces import to_triangles
from data_prep.formats.polygons import join_holes, triangulate

SHAPES = {
    "square": [(0, 0), (2, 0), (2, 2), (0, 2)],
    "dart": [(0, 0), (1, 0.2), (2, 0), (1, 3)],
    "corner": [(0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (0, 3)],
    "comb": [(0, 0), (7, 0), (7, 3), (6, 3), (6, 1), (5, 1), (5, 3), (4, 3), (4, 1), (3, 1), (3, 3), (2, 3),
             (2, 1), (1, 1), (1, 3), (0, 3)],
    "doubled corner": [(0, 0), (2, 0), (2, 0), (1, 0.5), (2, 2), (0, 2)],
    "points on a side": [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (1, 1), (1, 2), (0, 2), (0, 1)],
}  # fmt: skip


def in_space(shape: np.ndarray, seed: int = 0) -> np.ndarray:
    """A plane figure somewhere in space."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.asarray(shape, float) @ turn[:2] + [5, -3, 7]


def newell(points: np.ndarray) -> np.ndarray:
    """Vector area of a closed polygon."""
    return np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0) / 2


def areas(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = points[triangles].transpose(1, 0, 2)
    return np.cross(b - a, c - a) / 2


def star(tips: int) -> np.ndarray:
    radius = np.where(np.arange(2 * tips) % 2, 1, 4)
    angle = np.pi * np.arange(2 * tips) / tips
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def spiral(turns: float, num: int) -> np.ndarray:
    angle = np.linspace(1, 2 * np.pi * turns, num)
    walls = [np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1) for r in (angle, angle + 1)]
    return np.concatenate([walls[1], walls[0][::-1]])


def crescent(num: int) -> np.ndarray:
    """Half a ring, whose notches' chords are its shortest."""
    angle = np.linspace(0, np.pi, num)
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([arc, 0.5 * arc[::-1]])


@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), star(5), star(30), star(50), spiral(4, 75), crescent(45)]
)
def test_areas_add_up_to_the_polygon_from_every_first_corner(shape):
    for first in range(0, len(shape), max(len(shape) // 6, 1)):
        for way in (1, -1):
            points = in_space(np.roll(shape, -first, axis=0)[::way])
            triangles, owner = triangulate(points, np.array([len(points)]))
            assert triangles.shape == (len(points) - 2, 3)
            assert not owner.any()
            parts, whole = areas(points, triangles), newell(points)
            np.testing.assert_allclose(parts.sum(axis=0), whole, atol=1e-9)
            covered = np.linalg.norm(parts, axis=1).sum()
            assert covered == pytest.approx(np.linalg.norm(whole), rel=2e-4)  # what a fan may fold


def tilings(first: int, last: int) -> list[list[tuple[int, int, int]]]:
    """All triangulations of the corners from one to another."""
    if last - first < 2:
        return [[]]
    return [
        [(first, middle, last), *left, *right]
        for middle in range(first + 1, last)
        for left in tilings(first, middle)
        for right in tilings(middle, last)
    ]


@pytest.mark.parametrize("shape", ["dart", "corner", "points on a side"])
def test_of_all_triangulations_that_cover_it_the_one_with_the_shortest_chords_is_taken(shape):
    flat = np.array(SHAPES[shape], float)

    def of(points: np.ndarray, triangles: np.ndarray) -> tuple[float, float]:
        """Area, and squared length of all sides, those of the polygon once and chords twice."""
        sides = points[triangles] - points[np.roll(triangles, -1, axis=1)]
        return round(np.linalg.norm(areas(points, triangles), axis=1).sum(), 9), round((sides**2).sum(), 9)

    sought = 0
    for first in range(len(flat)):
        points = in_space(np.roll(flat, -first, axis=0))
        every = [of(points, np.array(tiling)) for tiling in tilings(0, len(points) - 1)]
        fan = np.array([(0, i, i + 1) for i in range(1, len(points) - 1)])
        if of(points, fan)[0] > min(every)[0]:
            assert of(points, triangulate(points, np.array([len(points)]))[0]) == min(every)
            sought += 1
    assert sought


def test_every_side_is_kept_so_that_neighbours_stay_joined():
    for shape in (*SHAPES.values(), star(50)):
        triangles, _ = triangulate(in_space(shape), np.array([len(shape)]))
        sides = {(a, b) for t in triangles.tolist() for a, b in zip(t, [*t[1:], t[0]], strict=True)}
        assert {(i, (i + 1) % len(shape)) for i in range(len(shape))} <= sides


def test_polygons_of_all_counts_are_numbered_in_their_order():
    shapes = [SHAPES["corner"], [(0, 0), (1, 1)], SHAPES["square"], [], SHAPES["dart"], SHAPES["square"][:3]]
    points = np.concatenate([in_space(np.reshape(s, (-1, 2))) for s in shapes])
    triangles, owner = triangulate(points, np.array([len(s) for s in shapes]))
    assert owner.tolist() == [0, 0, 0, 0, 2, 2, 4, 4, 5]
    assert triangles[4:].tolist() == [[8, 9, 10], [8, 10, 11], [12, 13, 15], [13, 14, 15], [16, 17, 18]]


def test_polygons_without_a_plane_are_taken_in_the_least_area():
    bow_tie = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0.0]])
    triangles, _ = triangulate(bow_tie, np.array([4]))
    assert np.linalg.norm(areas(bow_tie, triangles), axis=1).sum() == pytest.approx(1)
    for odd in (np.zeros((5, 3)), np.full((4, 3), np.nan), np.full((6, 3), 1e300)):
        assert len(triangulate(odd, np.array([len(odd)]))[0]) == len(odd) - 2


@pytest.mark.parametrize("way", [1, -1])
def test_holes_stay_open(way):
    hole = np.array([(1, 1), (2, 1), (2, 2), (1, 2)], float)[::way]
    rings = [in_space([(0, 0), (9, 0), (9, 3), (0, 3)])]
    rings += [in_space(hole + np.array([shift, 0])) for shift in (0, 3, 6)]
    order = join_holes(rings)
    points = np.concatenate(rings)[order]
    triangles, _ = triangulate(points, np.array([len(points)]))
    assert set(order) == set(range(16))
    assert np.linalg.norm(areas(points, triangles), axis=1).sum() == pytest.approx(27 - 3)


def test_the_index_after_the_last_vertex_names_none_and_loses_its_polygon():
    warnings: list[str] = []
    made = to_triangles(np.eye(3), np.array([0, 1, 2, 1, 2, 3]), np.array([3, 3]), warnings, max_faces=9)
    assert made.faces.tolist() == [[0, 1, 2]] and len(warnings) == 1
