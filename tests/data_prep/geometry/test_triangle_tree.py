"""Compiled distances and winding numbers against libigl's, which are slower or less exact."""

import igl
import numpy as np
import pytest
import trimesh

from data_prep.geometry import queries
from data_prep.geometry.queries import CompiledQueries, LibraryQueries
from data_prep.geometry.sdf import signed_distance
from data_prep.geometry.topology import boundary, close_up, topology, weld
from data_prep.geometry.triangle_tree import TriangleTree
from data_prep.render.zbuffer import reason_against

pytestmark = pytest.mark.skipif(bool(reason_against()), reason=reason_against())


@pytest.fixture
def points():
    return np.random.default_rng(1).uniform(-1, 1, (2000, 3))


def heap(num=6):
    """Balls and boxes through one another, every third inside out."""
    rng = np.random.default_rng(0)
    parts = []
    for number in range(num):
        part = trimesh.creation.icosphere(2, 0.4) if number % 2 else trimesh.creation.box((0.6, 0.4, 0.5))
        part.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
        part.apply_translation(rng.uniform(-0.4, 0.4, 3))
        if number % 3 == 2:
            part.invert()
        parts.append(part)
    return trimesh.util.concatenate(parts)


def with_holes(mesh, share):
    """The mesh without a share of its faces."""
    return mesh.faces[np.random.default_rng(2).random(len(mesh.faces)) >= share]


def exact(mesh, faces, points):
    """libigl's sum of solid angles over all faces."""
    return igl.winding_number(np.asarray(mesh.vertices), np.asarray(faces, np.int64), points)


def compiled(mesh, faces):
    """Queries of a mesh as it is wound, and without sheets."""
    positions, welded = weld(np.asarray(mesh.vertices), np.asarray(faces, np.int64))
    closing = close_up(positions, welded, topology(positions, welded).component)
    return CompiledQueries(positions[welded], np.zeros(len(faces), bool), closing)


def test_what_closes_up_winds_a_whole_number_of_times(points):
    mesh = heap()
    sums = np.zeros(len(points))
    TriangleTree(mesh.triangles).add_crossings(points, sums)
    np.testing.assert_allclose(sums, exact(mesh, mesh.faces, points), atol=1e-9)
    assert set(sums) >= {-1, 0, 1, 2}


def test_rays_through_corners_and_along_edges_and_faces_count_once():
    # Boxes and points on one grid: each ray lies in faces, or passes edges and corners.
    boxes = [trimesh.creation.box((0.5, 0.5, 0.5)) for _ in range(3)]
    for number, box in enumerate(boxes):
        box.apply_translation(np.full(3, 0.25 * number - 0.25))
    mesh = trimesh.util.concatenate(boxes)
    axis = np.arange(-5, 6) / 8
    points = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    squared, _, _ = igl.point_mesh_squared_distance(points, np.asarray(mesh.vertices), mesh.faces)
    apart = squared > 1e-12  # on a surface it is neither in nor out
    sums = np.zeros(apart.sum())
    TriangleTree(mesh.triangles).add_crossings(points[apart], sums)
    np.testing.assert_allclose(sums, exact(mesh, mesh.faces, points[apart]), atol=1e-9)
    assert apart.sum() > 400


def test_a_ball_of_one_ring_of_triangles_is_wound_about_at_its_very_poles():
    ball = trimesh.creation.icosphere(1, 0.5)  # corners on all axes, so that rays pass through them
    inner = np.array([[0, 0, 0], [-0.2, 0, 0], [0.3, 0, 0], [0, 0.2, 0], [0, 0, -0.3]], float)
    sums = np.zeros(len(inner))
    TriangleTree(ball.triangles).add_crossings(inner, sums)
    assert sums.tolist() == [1] * len(inner)


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.9])
def test_open_surfaces_wind_as_the_sum_of_their_solid_angles(points, share):
    mesh = heap()
    faces = with_holes(mesh, share)
    truth = exact(mesh, faces, points)
    found = compiled(mesh, faces).winding(points)
    # Dipoles 3 radii away; nothing is approximate without holes.
    np.testing.assert_allclose(found, truth, atol=0.03 if share else 1e-9)
    decided = np.abs(truth - 0.5) > 0.03
    np.testing.assert_array_equal((found > 0.5)[decided], (truth > 0.5)[decided])


def test_near_a_hole_the_winding_number_is_exact():
    bowl = trimesh.creation.icosphere(3, 0.5)
    faces = bowl.faces[bowl.triangles_center[:, 2] < 0.3]
    beside = np.array([[0, 0, z] for z in (0.25, 0.29, 0.31, 0.35)] + [[0.35, 0, 0.32], [0.4, 0.01, 0.28]])
    found = compiled(bowl, faces).winding(beside)
    np.testing.assert_allclose(found, exact(bowl, faces, beside), atol=1e-3)


@pytest.mark.parametrize("share", [0, 0.3])
def test_distances_are_the_librarys(points, share):
    mesh = heap()
    faces = np.concatenate([with_holes(mesh, share), [[0, 0, 1], [2, 2, 2], [0, 1, 0]]])  # lines, points
    sheet = np.arange(len(faces)) < 100
    library = LibraryQueries(np.asarray(mesh.vertices), faces, sheet)
    positions, welded = weld(np.asarray(mesh.vertices), faces)
    closing = close_up(positions, welded, topology(positions, welded).component)
    own = CompiledQueries(np.asarray(mesh.vertices)[faces], sheet, closing)
    for ours, theirs in zip(own.distances(points), library.distances(points), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_a_closing_has_no_boundary_and_takes_off_what_it_added(points):
    mesh = heap()
    faces = with_holes(mesh, 0.1)
    positions, welded = weld(np.asarray(mesh.vertices), faces)
    closing = close_up(positions, welded, topology(positions, welded).component)
    assert 0 < len(closing.caps) < len(faces)
    corners, closed = weld(closing.closed.reshape(-1, 3), np.arange(3 * len(closing.closed)).reshape(-1, 3))
    assert not len(boundary(closed, len(corners))[0])
    whole, cap, loose = (
        igl.winding_number(t.reshape(-1, 3), np.arange(3 * len(t)).reshape(-1, 3), points) if len(t) else 0
        for t in (closing.closed, closing.caps, closing.loose)
    )
    np.testing.assert_allclose(whole - cap + loose, exact(mesh, faces, points), atol=1e-9)


def test_signed_distances_are_those_of_the_reference(ball, box, make_soup, points):
    lid = box.select(np.arange(len(box.faces)) >= 2)
    leaves = make_soup(np.random.default_rng(0).uniform(-1, 1, (30, 3)), np.arange(30).reshape(10, 3))
    for mesh in (ball, box, lid, leaves):
        one, other = (signed_distance(mesh, thickness=0.02, compiled=c) for c in (False, True))
        np.testing.assert_allclose(other(points), one(points), atol=1e-6)
        np.testing.assert_array_equal(other.turned, one.turned)


def test_each_answer_is_a_points_own_whatever_is_asked_with_it(points):
    mesh = heap()
    own = compiled(mesh, with_holes(mesh, 0.2))
    together, alone = own.winding(points[:50]), [own.winding(point[None])[0] for point in points[:50]]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(own.distances(points[:50])[0], own.distances(points)[0][:50])
    assert own.winding(points[:0]).shape == (0,)


@pytest.mark.parametrize("wrong", [np.zeros((0, 3, 3)), np.full((1, 3, 3), np.nan)])
def test_no_triangles_and_places_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        TriangleTree(wrong)


def test_far_from_a_thousand_triangles_in_one_place_the_tree_still_ends(points):
    # Equal middles can't be told apart: halving by number keeps the tree low.
    same = np.broadcast_to(np.eye(3) * 0.1, (5000, 3, 3))
    squared = np.full(len(points), np.inf)
    TriangleTree(same).lower_distances(points, squared)
    one = np.full(len(points), np.inf)
    TriangleTree(same[:1]).lower_distances(points, one)
    np.testing.assert_array_equal(squared, one)


def test_without_a_compiler_distances_come_from_the_library(monkeypatch, box, points):
    monkeypatch.setattr(queries, "TriangleTree", None)
    assert (signed_distance(box, thickness=0.02)(points) < 0).any()
