"""Views against silhouettes, depths and colours in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.mesh import BLEND
from data_prep.render import raycast, views, zbuffer
from data_prep.render.lighting import STUDIO, UNLIT, random_lighting
from data_prep.render.raycast import Caster, sub_pixels
from data_prep.render.views import render_views
from shapeloom import viewpoints
from shapeloom.color import linear_to_srgb, srgb_to_linear
from shapeloom.rendering.rays import camera_rays

FOV = math.radians(40)
SIZE = 32
LOOK_ALONG_Y = viewpoints.look_at(np.array([[0.0, -4.0, 0.0]]), np.zeros((1, 3)))


@pytest.fixture(params=["zbuffer", "embree"], autouse=True)
def backend(request, monkeypatch):
    """Every claim holds for both; for the compiled one where there is a compiler."""
    if request.param == "zbuffer" and zbuffer.reason_against():
        pytest.skip(zbuffer.reason_against())
    monkeypatch.setattr(views, "resolve", lambda wanted: request.param)
    return request.param


def setup(num=3, size=SIZE):
    poses = viewpoints.sphere(num, seed=3, distance=viewpoints.fitting_distance(FOV))
    return poses, viewpoints.intrinsics(FOV, size, size)


def shot(mesh, supersample=2, num=3, size=SIZE):
    poses, matrix = setup(num, size)
    return render_views(mesh, poses, matrix, size=size, supersample=supersample)


def test_opengl_draws_where_it_is_asked_for_and_is_not_started_otherwise(ball, monkeypatch):
    def start(*_, **__):
        raise RuntimeError("OpenGL was started")

    monkeypatch.setattr(views, "Rasterizer", start)
    shot(ball)
    monkeypatch.setattr(views, "resolve", lambda wanted: "gl")
    with pytest.raises(RuntimeError, match="OpenGL was started"):
        shot(ball)


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_depth_is_that_of_the_sphere(ball, supersample):
    poses, matrix = setup()
    views = shot(ball, supersample)
    rgba, depth = views.rgba, views.depth
    origins, directions, cosine = camera_rays(
        torch.from_numpy(poses), torch.from_numpy(matrix).expand(3, 3, 3), SIZE, SIZE
    )
    along = -(origins * directions).sum(-1)
    clearance = (origins.pow(2).sum(-1) - along**2).sqrt().numpy()
    t = along - (0.8**2 - torch.from_numpy(clearance) ** 2).clamp(min=0).sqrt()
    inside = clearance < 0.75  # nearer the rim, facets move the hit along the ray
    np.testing.assert_allclose(depth[inside], (t * cosine).numpy()[inside], atol=0.008)
    assert (depth[clearance > 0.8] == 0).all()
    assert (rgba[..., 3][clearance > 0.88] == 0).all()  # half a pixel's diagonal from the rim
    assert (rgba[..., 3][depth > 0] > 0).all()


def test_normals_are_stored_on_the_viewers_side_and_none_of_the_background(make_soup):
    half = make_soup([[-9, 0, -9], [0, 0, -9], [0, 0, 9], [-9, 0, 9]], [[0, 2, 1], [0, 2, 3]])
    normal = render_views(
        half, LOOK_ALONG_Y, viewpoints.intrinsics(FOV, 8, 8), size=8, supersample=1, lighting=UNLIT
    ).normal[0]
    assert (normal[:, :4] == [128, 128 - 127, 128]).all() and not normal[:, 4:].any()


def test_a_files_normals_may_point_to_either_side(ball):
    turned = replace(ball, shading=-ball.shading)
    for name, value in vars(shot(ball)).items():
        np.testing.assert_array_equal(getattr(shot(turned), name), value)


def test_a_principal_point_off_the_middle_shifts_the_picture(ball):
    poses, matrix = setup()
    smaller = replace(ball, vertices=0.5 * ball.vertices)
    shifted = matrix + np.array([[0.0, 0, 3], [0, 0, -2], [0, 0, 0]])
    plain, moved = (
        render_views(smaller, poses, each, size=SIZE, supersample=2) for each in (matrix, shifted)
    )
    for name in ("rgba", "depth", "normal"):
        there = np.roll(getattr(plain, name), (-2, 3), axis=(1, 2)).astype(np.float32)
        differs = np.abs(getattr(moved, name) - there) > (1e-4 if name == "depth" else 1)
        assert differs.mean() < 1e-3  # a ray that grazes a facet


def test_alpha_is_the_covered_share_of_a_pixel(make_soup):
    # A half plane x < 0 seen along +y: its vertical edge cuts column 4 of 9 in half.
    plane = make_soup([[-9, 0, -9], [0, 0, -9], [0, 0, 9], [-9, 0, 9]], [[0, 1, 2], [0, 2, 3]])
    pose = viewpoints.look_at(np.array([[0.0, -4.0, 0.0]]), np.zeros((1, 3)))
    rgba = render_views(plane, pose, viewpoints.intrinsics(FOV, 9, 9), size=9, supersample=4).rgba
    np.testing.assert_array_equal(rgba[0, :, :4, 3], 255)
    np.testing.assert_array_equal(rgba[0, :, 4, 3], 128)
    np.testing.assert_array_equal(rgba[0, :, 5:, 3], 0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sub_pixels_have_rows_and_columns_of_their_own(n):
    places = sub_pixels(n)
    for axis in (0, 1):
        steps = np.sort(places[:, axis])
        np.testing.assert_allclose(steps, (np.arange(n * n) + 0.5) / n**2, atol=1e-12)


@pytest.mark.parametrize("column", [0, 3, 6])
def test_rod_between_two_columns_is_seen(make_soup, column):
    # A good quarter of a pixel wide, on the border of two columns of 8. Rays pass at 0.125.
    half = 0.13 * math.tan(FOV / 2)  # at distance 4, a pixel is tan(fov / 2) wide
    middle = (column - 3) * math.tan(FOV / 2)
    rod = make_soup([[middle + x, 0, z] for z in (-9, 9) for x in (-half, half)], [[0, 1, 3], [0, 3, 2]])
    rgba = render_views(rod, LOOK_ALONG_Y, viewpoints.intrinsics(FOV, 8, 8), size=8, supersample=2).rgba
    seen = (rgba[0, ..., 3] > 0).all(axis=0)
    assert np.flatnonzero(seen).tolist() == [column, column + 1]


def test_edge_pixels_keep_the_objects_colour(ball):
    rgba = shot(replace(ball, tint=np.full_like(ball.tint, 0.6)), supersample=3, num=6).rgba
    edge = rgba[(rgba[..., 3] > 0) & (rgba[..., 3] < 255)].astype(int)
    darkest = 255 * linear_to_srgb(np.array(0.6 * STUDIO.ambient))
    assert len(edge) > 50
    assert edge[:, :3].min() >= math.floor(darkest)  # blending with a black background would fall below
    assert (rgba[rgba[..., 3] == 0] == 0).all()


def test_brightness_is_albedo_times_irradiance_on_a_plane(make_soup):
    normal = np.array([0.0, -1.0, 0.0])
    plane = make_soup(
        [[-9, 0, -9], [9, 0, -9], [9, 0, 9], [-9, 0, 9]], [[0, 1, 2], [0, 2, 3]], (0.7, 0.2, 0.05)
    )
    expected = STUDIO.irradiance(normal[None].astype(np.float32))[0]
    pose = viewpoints.look_at(np.array([[0.0, -4.0, 0.0]]), np.zeros((1, 3)))
    for flipped in (False, True):
        mesh = plane.flip(np.array([flipped] * 2))
        mesh = replace(mesh, shading=mesh.shading * (-1 if flipped else 1))
        rgba = render_views(mesh, pose, viewpoints.intrinsics(FOV, 8, 8), size=8, supersample=2).rgba
        linear = srgb_to_linear(rgba[0, ..., :3] / 255)
        truth = np.broadcast_to(np.array([0.7, 0.2, 0.05]) * expected, linear.shape)
        np.testing.assert_allclose(linear, truth, atol=4e-3)  # 8-bit steps


RANDOM = [random_lighting(np.random.default_rng(n)) for n in range(9)]


@pytest.mark.parametrize("lighting", [STUDIO, UNLIT, *RANDOM])
def test_light_never_exceeds_one(lighting):
    normals = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = lighting.irradiance(normals)
    assert light.min() >= np.float32(lighting.ambient)
    assert light.max() <= 1 + 1e-6
    np.testing.assert_allclose(np.linalg.norm(lighting.directions, axis=1), 1, atol=1e-6)


def test_the_whole_cube_is_in_every_picture():
    poses, matrix = setup(64)
    corners = 0.95 * np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
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
    eye = np.float32([0, -4, 0])
    directions = np.float32([[-1 / 3, 1, 0], [1 / 3, 1, 0]])
    seen = Caster(mesh, STUDIO).trace(eye, directions)
    np.testing.assert_allclose(seen.depth, [3, 5], atol=1e-5)
    np.testing.assert_array_equal(seen.color[:, 3], 1)
    gone = replace(mesh.select(np.array([0, 1])), textures=[np.zeros((2, 2, 4), np.uint8)])
    assert not Caster(gone, STUDIO).trace(eye, directions).color.any()


def panes(make_soup, opacities, rgbs):
    """Planes at y = 0, 1, 2, ... facing -y."""
    parts, faces = [], []
    for number in range(len(rgbs)):
        parts += [[x, number, z] for x, z in ((-99, -99), (99, -99), (99, 99), (-99, 99))]
        faces += [[4 * number, 4 * number + 1, 4 * number + 2], [4 * number, 4 * number + 2, 4 * number + 3]]
    mesh = make_soup(parts, faces)
    twice = np.repeat(np.float32(rgbs), 2, axis=0)
    opacity = np.repeat(np.float32(opacities), 2)
    return replace(
        mesh,
        tint=np.repeat(twice[:, None], 3, axis=1),
        opacity=np.repeat(opacity[:, None], 3, axis=1),
        cutoff=np.where(opacity < 1, np.float32(BLEND), np.float32(0)),
    )


def test_panes_are_laid_over_one_another_front_to_back(make_soup):
    red, green, blue = np.eye(3)
    mesh = panes(make_soup, [0.25, 0.5, 1], [red, green, blue])
    seen = Caster(mesh, UNLIT).trace(np.float32([0, -4, 0]), np.float32([[0, 1, 0]]))
    np.testing.assert_allclose(seen.color[0, :4], [0.25, 0.375, 0.375, 1], atol=1e-6)
    assert seen.depth[0] == pytest.approx(5)  # of the first of those that contribute most
    glass = panes(make_soup, [0.25], [red])
    rgba = render_views(
        glass, LOOK_ALONG_Y, viewpoints.intrinsics(FOV, 8, 8), size=8, supersample=2, lighting=UNLIT
    ).rgba
    np.testing.assert_array_equal(rgba, np.broadcast_to([255, 0, 0, 64], rgba.shape))


def test_crossing_planes_meet_in_a_line_and_hide_one_another(make_soup):
    # x = y and x = -y, seen along +y: the nearer half of each hides the other's farther half.
    vertices = [
        [-1, -1, -1],
        [1, 1, -1],
        [1, 1, 1],
        [-1, -1, 1],
        [-1, 1, -1],
        [1, -1, -1],
        [1, -1, 1],
        [-1, 1, 1],
    ]
    faces = [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]
    mesh = replace(
        make_soup(vertices, faces),
        tint=np.repeat(np.float32([[1, 0, 0]] * 2 + [[0, 1, 0]] * 2)[:, None], 3, axis=1),
    )
    size = 33
    matrix = viewpoints.intrinsics(FOV, size, size)
    views = render_views(mesh, LOOK_ALONG_Y, matrix, size=size, supersample=4, lighting=UNLIT)
    x = (np.arange(size) + 0.5 - size / 2) / float(matrix[0, 0])  # of rays at depth 1
    row = views.rgba[0, size // 2]
    left, right = slice(6, size // 2), slice(size // 2 + 1, size - 6)
    np.testing.assert_array_equal(row[left], [[255, 0, 0, 255]] * (size // 2 - 6))
    np.testing.assert_array_equal(row[right], [[0, 255, 0, 255]] * (size // 2 - 6))
    # depth z = 4 + y with y = -|x| z
    expected = 4 / (1 + np.abs(x))
    np.testing.assert_allclose(views.depth[0, size // 2, 6:-6], expected[6:-6], atol=1e-5)
    middle = srgb_to_linear(row[size // 2, :2] / 255.0)
    np.testing.assert_allclose(middle, 0.5, atol=0.01)  # half of either
    facing = np.array([[-1, -1, 0], [1, -1, 0]]) / math.sqrt(2)
    normal = (views.normal[0, size // 2].astype(float) - 128) / 127
    np.testing.assert_allclose(normal[left], np.broadcast_to(facing[1], normal[left].shape), atol=0.01)
    np.testing.assert_allclose(normal[right], np.broadcast_to(facing[0], normal[right].shape), atol=0.01)


def textured_quad(make_soup, texture):
    """Fills the picture of a camera at distance 4."""
    half = 4 * math.tan(FOV / 2)
    faces = [[0, 1, 2], [0, 2, 3]]
    quad = make_soup([[-half, 0, -half], [half, 0, -half], [half, 0, half], [-half, 0, half]], faces)
    uv = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])[faces]
    white = np.ones((2, 3, 3), np.float32)
    return replace(quad, tint=white, uv=uv, texture=np.array([0, 0]), textures=[texture])


def test_textured_quad_shows_its_texels_upright(make_soup):
    # One texel a pixel: a quad of 8 x 8 texels that fills 8 x 8 pixels.
    texture = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    texture[..., 3] = 255
    mesh = textured_quad(make_soup, texture)
    views = render_views(
        mesh, LOOK_ALONG_Y, viewpoints.intrinsics(FOV, 8, 8), size=8, supersample=1, lighting=UNLIT
    )
    np.testing.assert_allclose(views.rgba[0].astype(int), texture.astype(int), atol=1)
    np.testing.assert_array_equal(views.albedo, views.rgba[..., :3])


def test_fine_textures_show_their_mean(make_soup):
    # Black and white texels, 32 x 32 a pixel: any few of them would be noise.
    texture = np.full((256, 256, 4), 255, np.uint8)
    texture[..., :3] *= np.random.default_rng(0).integers(0, 2, (256, 256, 1), dtype=np.uint8)
    mesh = textured_quad(make_soup, texture)
    rgba = render_views(
        mesh, LOOK_ALONG_Y, viewpoints.intrinsics(FOV, 8, 8), size=8, supersample=2, lighting=UNLIT
    ).rgba
    # Means of 1,024 texels have a standard error of 0.016.
    np.testing.assert_allclose(srgb_to_linear(rgba[0, ..., :3] / 255.0), 0.5, atol=0.07)


def test_refining_edges_alone_is_as_good_as_refining_everything(ball, monkeypatch):
    monkeypatch.setattr(views, "resolve", lambda wanted: "embree")  # the other's step is compiled
    box = replace(ball, tint=np.abs(ball.shading))
    seen = shot(box, supersample=4, num=2, size=64)
    step = raycast.COLOR_STEP
    monkeypatch.setattr(raycast, "COLOR_STEP", -1.0)  # every pixel differs from its neighbours
    full = shot(box, supersample=4, num=2, size=64)
    np.testing.assert_array_equal(seen.rgba[..., 3], full.rgba[..., 3])
    assert np.abs(seen.rgba.astype(int) - full.rgba).max() <= 255 * step  # sRGB in 8 bits
    np.testing.assert_array_equal(seen.depth, full.depth)


def test_a_camera_within_the_cube_sees_what_is_before_it_alone(make_soup):
    mesh = panes(make_soup, [1, 1], [[1, 0, 0], [0, 1, 0]])
    pose = viewpoints.look_at(np.array([[0.0, 0.5, 0.0]]), np.array([[0.0, 9.0, 0.0]]))
    views = render_views(mesh, pose, viewpoints.intrinsics(FOV, 8, 8), size=8, supersample=2, lighting=UNLIT)
    np.testing.assert_array_equal(views.rgba[0], np.broadcast_to([0, 255, 0, 255], (8, 8, 4)))
    np.testing.assert_allclose(views.depth, 0.5, atol=1e-6)
