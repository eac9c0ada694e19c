"""Normalisation, surface points and signed distances against spheres, boxes and sheets in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from data_prep.failures import AssetError
from data_prep.geometry.edges import edge_points
from data_prep.geometry.normalize import normalize
from data_prep.geometry.points import sample_surface, surface_points, view_points
from data_prep.geometry.sdf import sdf_samples, signed_distance
from data_prep.geometry.topology import topology
from data_prep.pipeline import DataConfig
from data_prep.render.views import Views
from shapeloom.rendering.rays import camera_rays
from shapeloom.viewpoints import sphere

RNG_SEED = 7


def nothing(points, normals):
    return np.zeros(len(points), bool)


def box_sdf(points, half):
    outside = np.abs(points) - half
    return np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(axis=1), 0)


# ---------------------------------------------------------------- normalize


def test_largest_extent_fills_the_cube_and_the_middle_is_the_origin(make_soup):
    box = trimesh.creation.box(
        extents=(2, 8, 4), transform=trimesh.transformations.translation_matrix([5, 6, 7])
    )
    mesh, placement = normalize(make_soup(box.vertices, box.faces))
    np.testing.assert_allclose(mesh.triangles.reshape(-1, 3).max(axis=0), [0.2375, 0.95, 0.475], atol=1e-12)
    np.testing.assert_allclose(
        mesh.triangles.reshape(-1, 3).min(axis=0), [-0.2375, -0.95, -0.475], atol=1e-12
    )
    np.testing.assert_allclose((box.vertices - placement.centre) * placement.scale, mesh.vertices)


def test_unused_vertices_count_for_nothing(make_soup):
    vertices = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1000, 1000, 1000]]
    mesh, _ = normalize(make_soup(vertices, [[0, 1, 2]]))
    assert np.ptp(mesh.triangles[..., 0]) == pytest.approx(1.9)


def test_extent_lost_in_rounding_is_a_failure(make_soup):
    vertices = np.array([[1e9, 0, 0], [1e9 + 1, 0, 0], [1e9, 1, 0]])
    with pytest.raises(AssetError, match="extent"):
        normalize(make_soup(vertices, [[0, 1, 2]]))


# ---------------------------------------------------------------- points


def test_samples_are_uniform_by_area(make_soup):
    big_and_small = make_soup(
        [[0, 0, 0], [3, 0, 0], [0, 3, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0]], [[0, 1, 2], [3, 4, 5]]
    )
    face, weights = sample_surface(big_and_small, 10_000, np.random.default_rng(RNG_SEED))
    assert (face == 0).mean() == pytest.approx(0.9, abs=2e-4)  # stratified: off by one sample at most
    # Uniform barycentrics have mean 1/3; standard error of 10,000 samples is 0.0024.
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_points_lie_on_the_sphere_with_its_normals_and_colour(ball):
    color = np.float32([0.2158605, 0, 1])
    mesh = replace(ball, tint=np.broadcast_to(color, ball.tint.shape))
    points, rgb, normal = surface_points(mesh, 500, np.random.default_rng(RNG_SEED), hidden=nothing)
    radius = np.linalg.norm(points, axis=1)
    assert radius.min() > 0.797  # facets sag below the sphere by 0.002
    assert radius.max() < 0.8001
    assert ((normal / 127 * points / radius[:, None]).sum(axis=1) > 0.99).all()
    assert (rgb == [128, 0, 255]).all()


@pytest.mark.parametrize("prefix", [16, 64, 256])
def test_every_prefix_of_points_covers_the_asset(ball, prefix):
    points, _, _ = surface_points(ball, 1024, np.random.default_rng(RNG_SEED), hidden=nothing)
    gaps = np.linalg.norm(points[:, None] - points[None, :prefix], axis=2).min(axis=1)
    # n discs of radius r cover a sphere of radius R only if n r^2 >= 4 R^2; farthest points need up to 2 r.
    assert gaps.max() <= 2 * 0.8 * 2 / np.sqrt(prefix)


@pytest.mark.parametrize("num", [1, 2, 32])
def test_as_few_points_as_a_config_accepts_can_be_had(box, num):
    rng = np.random.default_rng(RNG_SEED)
    assert DataConfig(num_points=num, num_edge_points=num, num_view_points=num)
    assert len(surface_points(box, num, rng, hidden=nothing)[0]) == num
    assert len(edge_points(box, num, rng, hidden=nothing)[0]) == num


def test_a_surface_that_is_nearly_all_cut_out_still_gets_its_points(make_soup):
    sheet = make_soup([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    alpha = np.zeros((64, 64, 4), np.uint8)
    alpha[:8, :8] = 255  # 1.6%
    uv = (sheet.vertices[sheet.faces][..., :2].astype(np.float32) + 1) / 2
    cutoff = np.full(2, 0.5, np.float32)
    holed = replace(sheet, uv=uv, textures=[alpha], texture=np.zeros(2, int), cutoff=cutoff)
    points, _, _ = surface_points(holed, 256, np.random.default_rng(RNG_SEED), hidden=nothing)
    assert points.shape == (256, 3) and len(np.unique(points, axis=0)) < 32


def test_cut_out_surface_gets_no_points(make_soup):
    mesh = make_soup([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    uv = np.float32([[[0, 0], [1, 0], [0, 1]]])
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[:, 4:, 3] = 0  # the right half is a hole
    holed = replace(mesh, uv=uv, texture=np.array([0]), textures=[texture], cutoff=np.float32([0.5]))
    points, _, _ = surface_points(holed, 200, np.random.default_rng(RNG_SEED), hidden=nothing)
    assert points.shape == (200, 3)
    # Half a texel of blending at the cut and, through the texture's repeat, none at the left border.
    assert points[:, 0].max() < 0.5 + 1 / 16
    gone = replace(holed, textures=[np.zeros((2, 2, 4), np.uint8)])
    with pytest.raises(AssetError, match="whole surface"):
        surface_points(gone, 10, np.random.default_rng(RNG_SEED), hidden=nothing)


def test_surface_within_another_part_gets_no_points(make_soup):
    big = trimesh.creation.box((1, 1, 1))
    peg = trimesh.creation.box((0.2, 0.2, 1.2))  # sticks out by 0.1 at either end
    both = trimesh.util.concatenate([big, peg])
    mesh = make_soup(both.vertices, both.faces)
    hidden = signed_distance(mesh, thickness=0.02).hidden
    points, _, _ = surface_points(mesh, 500, np.random.default_rng(RNG_SEED), hidden=hidden)
    assert (np.abs(points).max(axis=1) >= 0.5 - 1e-6).all()


# ---------------------------------------------------------------- sdf


@pytest.fixture
def queries():
    return np.random.default_rng(RNG_SEED).uniform(-1, 1, (3000, 3))


def test_sphere_distance(ball, queries):
    distance = signed_distance(ball, thickness=0.02)
    assert distance.watertight
    np.testing.assert_allclose(distance(queries), np.linalg.norm(queries, axis=1) - 0.8, atol=0.003)  # facets


def test_box_distance_is_exact(box, queries):
    distance = signed_distance(box, thickness=0.02)
    np.testing.assert_allclose(distance(queries), box_sdf(queries, (0.9, 0.6, 0.3)), atol=1e-6)  # float32


def test_inverted_and_half_inverted_pieces_change_nothing(ball, box, make_soup, queries):
    inverted = signed_distance(ball.flip(np.ones(len(ball.faces), bool)), thickness=0.02)
    np.testing.assert_array_equal(inverted(queries), signed_distance(ball, thickness=0.02)(queries))
    assert inverted.turned.all()
    faces = np.concatenate([ball.faces, box.faces[:, ::-1] + len(ball.vertices)])
    both = signed_distance(make_soup(np.concatenate([ball.vertices, box.vertices]), faces), thickness=0.02)
    inside = np.minimum(np.linalg.norm(queries, axis=1) - 0.8, box_sdf(queries, (0.9, 0.6, 0.3))) < -0.003
    assert (both(queries)[inside] < 0).all()


def test_seams_between_vertices_leave_a_solid_solid(box, queries):
    split = replace(box, vertices=box.triangles.reshape(-1, 3), faces=np.arange(36).reshape(12, 3))
    distance = signed_distance(split, thickness=0.02)
    assert distance.watertight
    np.testing.assert_allclose(distance(queries), box_sdf(queries, (0.9, 0.6, 0.3)), atol=1e-6)


def sheet(make_soup, both_sides: bool):
    faces = [[0, 1, 2], [0, 2, 3]] + ([[0, 2, 1], [0, 3, 2]] if both_sides else [])
    return make_soup([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], faces)


@pytest.mark.parametrize("both_sides", [False, True])
def test_sheet_keeps_its_thickness(make_soup, both_sides):
    distance = signed_distance(sheet(make_soup, both_sides), thickness=0.04)
    z = np.array([-0.3, -0.021, -0.019, 0, 0.019, 0.021, 0.3])
    points = np.stack([np.full_like(z, 0.1), np.full_like(z, -0.2), z], axis=1)
    np.testing.assert_allclose(distance(points), np.abs(z) - 0.02, atol=1e-6)
    assert distance.watertight == both_sides


def test_sheet_beside_a_solid_leaves_the_solid_exact(make_soup, queries):
    cube = trimesh.creation.box(extents=(0.5, 0.5, 0.5))
    vertices = np.concatenate([cube.vertices, [[0.9, 0.9, 0.9], [0.9, 0.8, 0.9], [0.8, 0.9, 0.9]]])
    distance = signed_distance(make_soup(vertices, [*cube.faces, [8, 9, 10]]), thickness=0.02)
    near = queries[(np.abs(queries) < 0.4).all(axis=1)]
    np.testing.assert_allclose(distance(near), box_sdf(near, (0.25, 0.25, 0.25)), atol=1e-6)
    assert not distance.watertight


def test_box_without_a_lid_is_still_filled(box):
    open_box = box.select(np.arange(len(box.faces)) >= 2)
    inside = np.array([[0.0, 0.0, 0.0], [0.3, 0.1, -0.1]])
    assert (signed_distance(open_box, thickness=0.02)(inside) < 0).all()


def test_topology_counts_components(ball, box, make_soup):
    faces = np.concatenate([ball.faces, box.faces + len(ball.vertices)])
    parts = topology(np.concatenate([ball.vertices, box.vertices + 5]), faces)
    assert parts.closed.tolist() == [True, True]
    np.testing.assert_allclose(parts.volume, [4 / 3 * np.pi * 0.8**3, 1.8 * 1.2 * 0.6], rtol=0.01)  # facets
    np.testing.assert_allclose(
        parts.area, [4 * np.pi * 0.8**2, 2 * (1.8 * 1.2 + 1.8 * 0.6 + 1.2 * 0.6)], rtol=0.01
    )


@pytest.mark.parametrize("radius", [0.8, 1.0])
def test_sdf_samples_are_mostly_near_the_surface_and_in_the_box(ball, radius):
    ball = replace(ball, vertices=ball.vertices * (radius / 0.8))
    distance = signed_distance(ball, thickness=0.02)
    points, sdf = sdf_samples(ball, distance, 4000, np.random.default_rng(RNG_SEED))
    assert points.shape == (4000, 3)
    assert np.abs(points).max() <= 1
    np.testing.assert_allclose(sdf, np.linalg.norm(points, axis=1) - radius, atol=0.004)
    assert (np.abs(sdf) < 0.1).mean() > 0.7
    assert 0.3 < (sdf < 0).mean() < 0.7


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_faces_wound_against_their_neighbours_change_nothing(ball, queries, share):
    flipped = np.random.default_rng(0).random(len(ball.faces)) < share
    distance = signed_distance(ball.flip(flipped), thickness=0.02)
    np.testing.assert_array_equal(distance(queries), signed_distance(ball, thickness=0.02)(queries))
    np.testing.assert_array_equal(distance.turned, flipped)
    assert distance.watertight


def test_a_strip_without_sides_and_collapsed_faces_have_a_distance(make_soup, queries):
    angle = np.linspace(0, 2 * np.pi, 33)  # Moebius: no winding is consistent
    across = np.stack(
        [np.cos(angle / 2) * np.cos(angle), np.cos(angle / 2) * np.sin(angle), np.sin(angle / 2)], 1
    )
    middle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    rim = 0.6 * np.concatenate([middle - 0.3 * across, middle + 0.3 * across])
    quads = np.arange(32)[:, None] + [0, 1, 34, 33]
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]], [[0, 1, 0]]])
    distance = signed_distance(make_soup(rim, faces), thickness=0.02)
    assert np.isfinite(distance(queries)).all()
    assert not distance.watertight


def test_points_that_views_see_lie_on_the_rays_of_their_pixels_at_their_depths():
    rng = np.random.default_rng(3)
    poses = sphere(2, seed=1, distance=3.0)
    matrix = np.broadcast_to(
        np.float32([[9.0, 0, 3], [0, 7, 4.5], [0, 0, 1]]), (2, 3, 3)
    )  # off centre, other focals
    depth = rng.uniform(1, 4, (2, 8, 8)).astype(np.float32)
    depth[0, 2:5] = 0  # background
    albedo = rng.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    views = Views(rgba=np.zeros((2, 8, 8, 4), np.uint8), depth=depth, normal=albedo, albedo=albedo)
    positions, colors = view_points(views, poses, matrix, 150)
    origins, directions, cosine = camera_rays(torch.tensor(poses), torch.tensor(matrix), 8, 8)
    there = (origins + torch.from_numpy(depth)[..., None] / cosine[..., None] * directions).numpy()
    seen = there[depth > 0]
    which = np.linalg.norm(seen - positions[:, None], axis=2).argmin(axis=1)
    np.testing.assert_allclose(positions, seen[which], atol=1e-5)
    np.testing.assert_array_equal(colors, albedo[depth > 0][which])
    assert sorted(which[: len(seen)]) == list(range(2 * 64 - 24))  # each pixel once, then they are repeated
    np.testing.assert_array_equal(which[len(seen) :], which[: 150 - len(seen)])


def test_views_without_depth_are_a_failure():
    nothing = np.zeros((1, 4, 4, 3), np.uint8)
    views = Views(np.zeros((1, 4, 4, 4), np.uint8), np.zeros((1, 4, 4), np.float32), nothing, nothing)
    with pytest.raises(AssetError, match="depth"):
        view_points(views, np.eye(4)[None], np.eye(3)[None], 8)
