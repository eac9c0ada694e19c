"""Sharp edges and view-derived clouds in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import trimesh

from data_prep.failures import AssetError
from data_prep.geometry.edges import edge_points, sharp_edges
from data_prep.geometry.points import view_points
from data_prep.geometry.sdf import signed_distance
from data_prep.render.views import Views, render_views
from shapeloom import viewpoints


def nothing(points, normals):
    return np.zeros(len(points), bool)


def test_a_box_has_twelve_sharp_edges_and_its_diagonals_are_none(box):
    ends, sides = sharp_edges(box)
    assert len(ends) == 12
    lengths = np.sort(np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1))
    np.testing.assert_allclose(lengths, np.repeat([0.6, 1.2, 1.8], 4))
    np.testing.assert_allclose(np.einsum("ec,ec->e", sides[:, 0], sides[:, 1]), 0, atol=1e-12)


@pytest.mark.parametrize("change", ["split", "half turned"])
def test_seams_and_winding_change_nothing(box, change):
    if change == "split":
        other = replace(box, vertices=box.triangles.reshape(-1, 3), faces=np.arange(36).reshape(12, 3))
    else:
        other = box.flip(np.arange(12) % 3 == 0)
    assert len(sharp_edges(other)[0]) == 12


def test_a_sphere_has_none_and_a_sheet_its_border(ball, make_soup):
    assert not len(sharp_edges(ball)[0])
    points, normals = edge_points(ball, 100, np.random.default_rng(0), hidden=nothing)
    assert points.shape == (0, 3)
    assert normals.shape == (0, 2, 3)
    sheet = make_soup([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    ends, sides = sharp_edges(sheet)
    assert len(ends) == 4
    np.testing.assert_array_equal(sides[:, 0], sides[:, 1])


def test_points_lie_on_edges_uniformly_and_carry_both_normals(box):
    points, normals = edge_points(box, 600, np.random.default_rng(0), hidden=nothing)
    half = np.array([0.9, 0.6, 0.3])
    at_limit = np.isclose(np.abs(points), half, atol=1e-6)
    assert (at_limit.sum(axis=1) >= 2).all()
    on_long = ~at_limit[:, 0]
    assert on_long.mean() == pytest.approx(1.8 / 3.6, abs=0.03)  # farthest-point thinning evens it out
    across = np.abs(normals).max(axis=1) == 127
    corner = at_limit.all(axis=1)
    np.testing.assert_array_equal(across[~corner], at_limit[~corner])


def test_edges_of_a_tiny_part_get_points(box):
    points, _ = edge_points(
        replace(box, vertices=box.vertices / 1000), 64, np.random.default_rng(0), hidden=nothing
    )
    assert len(points) == 64
    assert (np.isclose(np.abs(points), [0.0009, 0.0006, 0.0003], atol=1e-9).sum(axis=1) >= 2).all()


def test_edges_within_another_part_get_no_points(make_soup):
    big = trimesh.creation.box((1, 1, 1))
    peg = trimesh.creation.box((0.2, 0.2, 1.2))
    both = trimesh.util.concatenate([big, peg])
    mesh = make_soup(both.vertices, both.faces)
    hidden = signed_distance(mesh, thickness=0.02).hidden
    points, _ = edge_points(mesh, 500, np.random.default_rng(0), hidden=hidden)
    assert (np.abs(points).max(axis=1) >= 0.5 - 1e-6).all()


def test_view_points_are_on_what_is_seen_with_its_colour(ball):
    within = trimesh.creation.icosphere(subdivisions=2, radius=0.4)
    mesh = replace(
        ball.select(np.arange(len(ball.faces))), tint=np.broadcast_to(np.float32([1, 0, 0]), ball.tint.shape)
    )
    vertices = np.concatenate([mesh.vertices, within.vertices])
    num = len(within.faces)
    mesh = replace(
        mesh, vertices=vertices, faces=np.concatenate([mesh.faces, within.faces + len(ball.vertices)]),
        tint=np.concatenate([mesh.tint, np.zeros((num, 3, 3), np.float32)]),
        shading=np.concatenate([mesh.shading, np.ones((num, 3, 3), np.float32)]),
        uv=np.zeros((len(mesh.faces) + num, 3, 2), np.float32),
        texture=np.full(len(mesh.faces) + num, -1), cutoff=np.zeros(len(mesh.faces) + num, np.float32),
    )  # fmt: skip
    fov, size = math.radians(40), 48
    poses = viewpoints.sphere(6, seed=0, distance=viewpoints.fitting_distance(fov))
    matrix = viewpoints.intrinsics(fov, size, size)
    views = render_views(mesh, poses, matrix, size=size, supersample=2)
    matrices = matrix[None].repeat(6, axis=0)
    points, rgb = view_points(views, poses, matrices, 300)
    radius = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(radius, 0.8, atol=0.003)  # facets; the black ball within is never seen
    np.testing.assert_array_equal(rgb, np.broadcast_to(np.uint8([255, 0, 0]), rgb.shape))
    gaps = np.linalg.norm(points[:, None] - points[None, :75], axis=2).min(axis=1)
    assert gaps.max() <= 2 * 0.8 * 2 / math.sqrt(75)  # as for surface points


@pytest.mark.parametrize("seen", [1, 2, 5, 400])
def test_a_thin_thing_that_few_pixels_see_gets_its_view_points(seen):
    size = 24
    depth = np.zeros((1, size, size), np.float32)
    depth.reshape(-1)[:seen] = 2.0
    views = Views(
        rgba=np.zeros((1, size, size, 4), np.uint8), depth=depth,
        normal=np.zeros((1, size, size, 3), np.uint8), albedo=np.zeros((1, size, size, 3), np.uint8),
    )  # fmt: skip
    matrix = viewpoints.intrinsics(0.7, size, size)[None]
    points, _ = view_points(views, np.eye(4)[None], matrix, 40)
    assert len(points) == 40 and len(np.unique(points, axis=0)) == min(seen, 40)
    with pytest.raises(AssetError, match="none of its views"):
        view_points(replace(views, depth=np.zeros_like(depth)), np.eye(4)[None], matrix, 40)


def test_both_normals_of_an_edge_are_unit_however_its_faces_are_wound(box):
    _, sides = sharp_edges(box.flip(np.arange(12) % 3 == 0))
    np.testing.assert_allclose(np.linalg.norm(sides, axis=-1), 1, atol=1e-12)
