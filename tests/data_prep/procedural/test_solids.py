"""Solids against closed forms of their volumes, and where their points lie."""

import math

import numpy as np
import pytest
import trimesh

from data_prep.procedural.solids import (
    SEGMENTS,
    Solid,
    arc,
    ball,
    box,
    circle,
    extrude,
    join,
    lathe,
    loft,
    moved,
    rod,
    tube,
    turned,
)


def volume(solid: Solid) -> float:
    """That of a closed surface wound outward, else an error."""
    mesh = trimesh.Trimesh(*solid, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    return float(mesh.volume)


def polygon(segments: int) -> float:
    """Area of a regular polygon in the unit circle."""
    return segments / 2 * math.sin(2 * math.pi / segments)


SQUARE = np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])


def at_height(outline: np.ndarray, height: float) -> np.ndarray:
    return np.column_stack([outline, np.full(len(outline), height)])


@pytest.mark.parametrize("order", [1, -1])
def test_a_loft_through_two_squares_is_their_prism_whichever_comes_first(order):
    rings = [at_height(SQUARE, 0), at_height(SQUARE, 3)][::order]
    vertices, faces = loft(rings)
    assert volume((vertices, faces)) == pytest.approx(12)
    assert (len(vertices), len(faces)) == (8 + 2, 8 + 8)
    np.testing.assert_allclose(vertices[-2:], [rings[0].mean(0), rings[1].mean(0)])  # apexes of the caps


def test_an_apex_makes_its_cap_a_pyramid():
    rings = [at_height(SQUARE, 0), at_height(SQUARE, 3)]
    assert volume(loft(rings, end=(0, 0, 6))) == pytest.approx(12 + 4)
    assert volume(loft(rings, start=(0, 0, -1.5), end=(0, 0, 6))) == pytest.approx(12 + 4 + 2)


def test_a_closed_loft_joins_its_last_ring_to_its_first_without_caps():
    outline = np.array([[2.0, -1], [3, -1], [3, 1], [2, 1]])  # radius and height
    turns = 2 * math.pi * np.arange(12) / 12
    rings = [[(r * math.cos(t), r * math.sin(t), h) for r, h in outline] for t in turns]
    vertices, faces = loft(rings, closed=True)
    assert (len(vertices), len(faces)) == (48, 96)
    assert volume((vertices, faces)) == pytest.approx(2 * polygon(12) * (3**2 - 2**2))


def test_joined_solids_keep_their_faces():
    parts = [box((1, 1, 1), (0, 0, 0)), ball((1, 1, 1), (3, 0, 0)), rod((6, 0, 0), (6, 0, 1), 0.5)]
    joined = join(parts)
    assert volume(joined) == pytest.approx(sum(map(volume, parts)))
    pieces = trimesh.Trimesh(*joined, process=False).split(only_watertight=True)
    assert sorted(piece.volume for piece in pieces) == pytest.approx(sorted(map(volume, parts)))


@pytest.mark.parametrize(("axis", "taken", "to"), [("x", 1, 2), ("y", 2, 0), ("z", 0, 1)])
def test_a_quarter_turn_takes_each_axis_to_the_next_by_the_right_hand_rule(axis, taken, to):
    solid = box((1, 2, 4), (0.5, 1, 3))
    there, faces = turned(solid, 90.0, axis=axis)
    np.testing.assert_allclose(there[:, to], solid[0][:, taken], atol=1e-12)
    np.testing.assert_allclose(there[:, taken], -solid[0][:, to], atol=1e-12)
    assert volume((there, faces)) == pytest.approx(volume(solid))
    a_third = turned(solid, 30.0, axis=axis)[0]
    np.testing.assert_allclose(np.linalg.norm(a_third, axis=1), np.linalg.norm(solid[0], axis=1))


def test_the_circle_is_a_regular_polygon_and_four_segments_are_an_upright_square():
    np.testing.assert_allclose(np.linalg.norm(circle(), axis=1), np.ones(SEGMENTS))
    sides = np.linalg.norm(np.roll(circle(9), -1, axis=0) - circle(9), axis=1)
    np.testing.assert_allclose(sides, np.full(9, 2 * math.sin(math.pi / 9)))
    np.testing.assert_allclose(circle(4) * math.sqrt(2), [[1, 1], [-1, 1], [-1, -1], [1, -1]])


def test_a_box_has_its_size_and_loses_a_chamfer_at_every_edge():
    cut, outline = 0.2, 4 - 2 * 0.2**2  # of the cube of half side 1, seen from above
    chamfered = box((2, 2, 2), (5, 6, 7), bevel=cut)
    np.testing.assert_allclose(chamfered[0].min(0), [4, 5, 6])
    np.testing.assert_allclose(chamfered[0].max(0), [6, 7, 8])
    assert volume(chamfered) == pytest.approx(outline * (2 - 2 * cut + 2 * cut * (1 + 0.8 + 0.8**2) / 3))


def test_bevels_leave_more_than_half_of_the_thinnest_side():
    thin = box((2, 2, 0.2), (0, 0, 0), bevel=1.0)[0]
    np.testing.assert_allclose(np.unique(thin[:, 2].round(9)), [-0.1, -0.055, 0.055, 0.1])
    assert np.abs(thin[np.isclose(thin[:, 2], 0.1)][:, 0]).max() == pytest.approx(1 - 0.045)


def test_taper_scales_the_top_alone():
    vertices = box((2, 4, 2), (0, 0, 0), bevel=0.0, taper=(0.5, 0.25))[0]
    for height, half in ((-1, (1, 2)), (1, (0.5, 0.5))):
        np.testing.assert_allclose(vertices[vertices[:, 2] == height][:, :2].max(0), half)


def test_a_lathe_turns_its_profile_about_z():
    pipe = lathe([(1, -1), (1, 2)], segments=7)
    assert volume(pipe) == pytest.approx(3 * polygon(7))
    spindle = lathe([(0, -1), (1, 0), (1, 2), (0, 5)], segments=7)
    assert volume(spindle) == pytest.approx((1 / 3 + 2 + 1) * polygon(7))
    assert len(spindle[0]) == 2 * 7 + 2
    np.testing.assert_allclose(spindle[0][-2:], [[0, 0, -1], [0, 0, 5]])
    assert volume(lathe([(0, -1), (1, 0), (1, 2)], segments=7)) == pytest.approx((1 / 3 + 2) * polygon(7))


def test_ribs_pull_every_second_point_in():
    fluted = lathe([(1, 0), (1, 1)], segments=8, rib=0.25)
    assert volume(fluted) == pytest.approx(0.75 * polygon(8))
    radii = np.linalg.norm(fluted[0][:16, :2], axis=1)
    np.testing.assert_allclose(radii, np.tile([1, 0.75], 8))


def test_a_balls_points_lie_on_its_ellipsoid_in_even_rings():
    vertices, faces = ball((1, 2, 3), (4, 5, 6), segments=40, stacks=20)
    unit = (vertices - [4, 5, 6]) / [1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), np.ones(40 * 19 + 2))
    rings = np.unique(np.degrees(np.arcsin(unit[:, 2].clip(-1, 1))).round(6))
    np.testing.assert_allclose(rings, np.linspace(-90, 90, 21), atol=1e-6)
    assert volume((vertices, faces)) == pytest.approx(8 * math.pi, rel=0.02)  # inscribed
    default = ball((1, 1, 1), (0, 0, 0))[0]
    assert len(default) == 20 * 9 + 2


@pytest.mark.parametrize("end", [(0, 0, 2), (1, -2, 2), (-3, 0, 0)])
def test_a_rod_is_a_truncated_cone_between_its_ends(end):
    start, end = np.array([1.0, 1, 1]), np.array([1.0, 1, 1]) + end
    length = float(np.linalg.norm(end - start))
    assert volume(rod(start, end, 0.5)) == pytest.approx(0.25 * length * polygon(16))
    cone = rod(start, end, 1.0, 0.5, segments=9)
    assert volume(cone) == pytest.approx(length * polygon(9) * (1 + 0.5 + 0.25) / 3)
    axis = (end - start) / length
    for ring, centre, radius in ((cone[0][:9], start, 1.0), (cone[0][9:18], end, 0.5)):
        np.testing.assert_allclose((ring - centre) @ axis, np.zeros(9), atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(ring - centre, axis=1), np.full(9, radius))


def test_a_tubes_rings_are_round_and_square_to_its_path():
    path = np.column_stack([arc((0, 0), 4.0, (0, 180), 37), np.zeros(37)])
    vertices, faces = tube(path, 0.5, normal=(0, 0, 1))
    rings = vertices[: 37 * 10].reshape(37, 10, 3) - path[:, None]
    np.testing.assert_allclose(np.linalg.norm(rings, axis=2), np.full((37, 10), 0.5))
    along = np.cross([0, 0, 1], path / 4)[1:-1]  # the path's direction; at its ends that of its first piece
    np.testing.assert_allclose(np.einsum("ikj,ij->ik", rings[1:-1], along), np.zeros((35, 10)), atol=1e-9)
    assert volume((vertices, faces)) == pytest.approx(polygon(10) * 0.25 * 4 * math.pi, rel=0.01)


def test_a_closed_tube_is_a_torus():
    path = np.column_stack([np.zeros(40), 3 * circle(40)])
    vertices, faces = tube(path, 1.0, normal=(1, 0, 0), closed=True, segments=12)
    rings = vertices.reshape(40, 12, 3) - path[:, None]
    np.testing.assert_allclose(np.linalg.norm(rings, axis=2), np.ones((40, 12)))
    # Pappus: the area of the section times the way of its centre.
    assert volume((vertices, faces)) == pytest.approx(polygon(12) * 6 * math.pi, rel=0.01)


@pytest.mark.parametrize(("axis", "size"), [("y", (4, 0.5, 2)), ("x", (0.5, 4, 2)), ("z", (4, 2, 0.5))])
def test_a_plate_is_its_outline_drawn_out_evenly_to_both_sides(axis, size):
    plate = extrude(SQUARE * [2, 1], 0.5, axis=axis)
    assert volume(plate) == pytest.approx(4 * 2 * 0.5)
    np.testing.assert_allclose(plate[0].max(0), np.array(size) / 2)
    np.testing.assert_allclose(plate[0].min(0), -np.array(size) / 2)


def test_an_arc_goes_evenly_from_one_angle_to_the_other():
    points = arc((1, 2), 3.0, (0, 90), 4)
    angles = np.radians([0, 30, 60, 90])
    np.testing.assert_allclose(points, np.column_stack([1 + 3 * np.cos(angles), 2 + 3 * np.sin(angles)]))


def test_a_moved_solid_is_shifted():
    solid = box((1, 1, 1), (0, 0, 0))
    np.testing.assert_allclose(moved(solid, (1, 2, 3))[0], solid[0] + [1, 2, 3])
