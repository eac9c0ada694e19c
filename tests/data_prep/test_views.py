"""Views against silhouettes, depths and colours in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.mesh import linear_to_srgb, srgb_to_linear
from data_prep.views import AMBIENT, LIGHTS, Caster, irradiance, render_views, sub_pixels
from shapeloom.rendering import cameras
from shapeloom.rendering.rays import camera_rays

FOV = math.radians(40)
SIZE = 32


def setup(num=3, size=SIZE):
    poses = cameras.sphere(num, seed=3, distance=cameras.fitting_distance(FOV))
    return poses, cameras.intrinsics(FOV, size, size)


def shot(mesh, supersample=2, num=3, size=SIZE):
    poses, matrix = setup(num, size)
    return render_views(mesh, poses, matrix, size=size, supersample=supersample)


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_depth_is_that_of_the_sphere(ball, supersample):
    poses, matrix = setup()
    rgba, depth = shot(ball, supersample)
    origins, directions, cosine = camera_rays(poses, matrix.expand(3, 3, 3), SIZE, SIZE)
    along = -(origins * directions).sum(-1)
    clearance = (origins.pow(2).sum(-1) - along**2).sqrt().numpy()
    t = along - (0.8**2 - torch.from_numpy(clearance) ** 2).clamp(min=0).sqrt()
    inside = clearance < 0.75  # nearer the rim, facets move the hit along the ray
    np.testing.assert_allclose(depth[inside], (t * cosine).numpy()[inside], atol=0.008)
    assert (depth[clearance > 0.8] == 0).all()
    assert (rgba[..., 3][clearance > 0.88] == 0).all()  # half a pixel's diagonal from the rim
    assert (rgba[..., 3][depth > 0] > 0).all()


def test_alpha_is_the_covered_share_of_a_pixel(make_soup):
    # A half plane x < 0 seen along +y: its vertical edge cuts column 4 of 9 in half.
    plane = make_soup([[-9, 0, -9], [0, 0, -9], [0, 0, 9], [-9, 0, 9]], [[0, 1, 2], [0, 2, 3]])
    pose = cameras.look_at(torch.tensor([[0.0, -4.0, 0.0]]), torch.zeros(1, 3))
    rgba, _ = render_views(plane, pose, cameras.intrinsics(FOV, 9, 9), size=9, supersample=4)
    np.testing.assert_array_equal(rgba[0, :, :4, 3], 255)
    np.testing.assert_array_equal(rgba[0, :, 4, 3], 128)
    np.testing.assert_array_equal(rgba[0, :, 5:, 3], 0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sub_pixels_have_rows_and_columns_of_their_own(n):
    places = sub_pixels(n)
    for axis in (0, 1):
        steps = np.sort(places[:, axis])
        np.testing.assert_allclose(steps, (np.arange(n * n) + 0.5) / n**2, atol=1e-12)


def test_rod_between_two_columns_is_seen(make_soup):
    # A quarter of a pixel wide, on the border of the columns 3 and 4 of 8.
    half = 0.125 * math.tan(FOV / 2)  # at distance 4, a pixel is tan(fov / 2) wide
    rod = make_soup([[-half, 0, -9], [half, 0, -9], [half, 0, 9], [-half, 0, 9]], [[0, 1, 2], [0, 2, 3]])
    pose = cameras.look_at(torch.tensor([[0.0, -4.0, 0.0]]), torch.zeros(1, 3))
    rgba, _ = render_views(rod, pose, cameras.intrinsics(FOV, 8, 8), size=8, supersample=2)
    assert (rgba[0, :, 3:5, 3] > 0).all()


def test_edge_pixels_keep_the_objects_colour(ball):
    rgba, _ = shot(replace(ball, tint=np.full_like(ball.tint, 0.6)), supersample=3, num=6)
    edge = rgba[(rgba[..., 3] > 0) & (rgba[..., 3] < 255)].astype(int)
    darkest = 255 * linear_to_srgb(np.array(0.6 * AMBIENT))
    assert len(edge) > 50
    assert edge[:, :3].min() >= math.floor(darkest)  # blending with a black background would fall below
    assert (rgba[rgba[..., 3] == 0] == 0).all()


def test_brightness_is_albedo_times_irradiance_on_a_plane(make_soup):
    normal = np.array([0.0, -1.0, 0.0])
    plane = make_soup(
        [[-9, 0, -9], [9, 0, -9], [9, 0, 9], [-9, 0, 9]], [[0, 1, 2], [0, 2, 3]], (0.7, 0.2, 0.05)
    )
    expected = AMBIENT + sum(i * max(0.0, float(normal @ d)) for d, i in LIGHTS)
    pose = cameras.look_at(torch.tensor([[0.0, -4.0, 0.0]]), torch.zeros(1, 3))
    for flipped in (False, True):
        mesh = plane.flip(np.array([flipped] * 2))
        mesh = replace(mesh, shading=mesh.shading * (-1 if flipped else 1))
        rgba, _ = render_views(mesh, pose, cameras.intrinsics(FOV, 8, 8), size=8, supersample=2)
        linear = srgb_to_linear(rgba[0, ..., :3] / 255)
        truth = np.broadcast_to(np.array([0.7, 0.2, 0.05]) * expected, linear.shape)
        np.testing.assert_allclose(linear, truth, atol=4e-3)  # 8-bit steps


def test_light_never_exceeds_one():
    normals = np.random.default_rng(0).normal(size=(1000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = irradiance(normals)
    assert light.min() >= AMBIENT
    assert light.max() <= 1
    np.testing.assert_allclose([np.linalg.norm(direction) for direction, _ in LIGHTS], 1)


def test_the_whole_cube_is_in_every_picture():
    poses, matrix = setup(64)
    corners = 0.95 * torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    local = (corners - poses[:, None, :3, 3]) @ poses[:, :3, :3]
    pixels = (local @ matrix.T)[..., :2] / local[..., 2:]
    assert pixels.min() >= 0
    assert pixels.max() <= SIZE


def test_rays_pass_holes_and_hit_what_is_behind(make_soup):
    # Two planes facing -y: the front one is cut out where its texture's right half is.
    front = [[-9, -1, -9], [9, -1, -9], [9, -1, 9], [-9, -1, 9]]
    back = [[x, 1, z] for x, _, z in front]
    mesh = make_soup(np.array(front + back), [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    corner = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
    uv = np.zeros((4, 3, 2), np.float32)
    uv[:2] = corner[[[0, 1, 2], [0, 2, 3]]]
    texture = np.full((64, 64, 4), 255, np.uint8)
    texture[:, 32:, 3] = 0
    mesh = replace(
        mesh, uv=uv, texture=np.array([0, 0, -1, -1]), textures=[texture], cutoff=np.float32([0.5, 0.5, 0, 0])
    )
    origins = np.array([[-1.0, -4, 0], [1.0, -4, 0]])
    hits = Caster(mesh).cast(origins, np.array([[0.0, 1, 0]] * 2))
    np.testing.assert_allclose(hits.t, [3, 5], atol=1e-9)
    assert hits.face[0] < 2 <= hits.face[1]
    gone = replace(mesh.select(np.array([0, 1])), textures=[np.zeros((2, 2, 4), np.uint8)])
    assert (Caster(gone).cast(origins, np.array([[0.0, 1, 0]] * 2)).face == -1).all()


def test_barycentrics_name_the_point_that_is_hit(box):
    poses, matrix = setup(1)
    rays = camera_rays(poses[0].double(), matrix.double(), SIZE, SIZE)
    origins, directions = rays[0].reshape(-1, 3).numpy(), rays[1].reshape(-1, 3).numpy()
    hits = Caster(box).cast(origins, directions)
    hit = np.flatnonzero(hits.face >= 0)
    by_weights = np.einsum("hc,hcd->hd", hits.weights[hit], box.triangles[hits.face[hit]])
    by_distance = origins[hit] + hits.t[hit, None] * directions[hit]
    assert len(hit) > 100
    np.testing.assert_allclose(by_weights, by_distance, atol=1e-5)  # Embree chose the face in float32
