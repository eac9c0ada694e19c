"""Texture look-up and barycentric colours against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.mesh import BLEND, Sampler, base_color, sample_texture
from shapeloom.color import srgb_to_linear


def test_texel_centres_return_their_texels_from_the_bottom_left():
    texture = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    for row in range(3):
        for column in range(5):
            uv = np.float32([[(column + 0.5) / 5, 1 - (row + 0.5) / 3]])
            expected = srgb_to_linear(texture[row, column, :3] / 255)
            got = sample_texture(texture, uv)[0]
            np.testing.assert_allclose(got[:3], expected, atol=1e-5)  # float32 of uv times size
            assert got[3] == pytest.approx(texture[row, column, 3] / 255, abs=1e-5)


def test_texture_is_linear_between_centres_and_repeats():
    texture = np.zeros((1, 2, 4), np.uint8)
    texture[0, 1] = 255
    uv = np.float32([[0.5, 0.5], [0.25, 0.5], [1.25, -7.5], [0.0, 0.5]])
    np.testing.assert_allclose(sample_texture(texture, uv)[:, 0], [0.5, 0, 0, 0.5], atol=1e-6)


def test_base_color_interpolates_corners_and_multiplies_texture(make_soup):
    mesh = make_soup([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    tint = np.float32([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    half_grey = np.full((1, 1, 4), 188, np.uint8)
    mesh = replace(mesh, tint=tint, texture=np.array([0]), textures=[half_grey])
    weights = np.array([[0.2, 0.3, 0.5]])
    color, alpha = base_color(mesh, np.array([0]), weights)
    np.testing.assert_allclose(color[0], weights[0] * srgb_to_linear(np.array(188 / 255)), rtol=1e-5)
    assert alpha.tolist() == [1]


def test_texels_below_the_cutoff_are_holes(make_soup):
    mesh = make_soup([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    for alpha, expected in ((100, False), (160, True)):
        texture = np.full((2, 2, 4), alpha, np.uint8)
        holed = replace(mesh, texture=np.array([0]), textures=[texture], cutoff=np.float32([0.5]))
        _, got = base_color(holed, np.array([0]), np.array([[1.0, 0, 0]]))
        assert got[0] == expected


def test_flip_turns_normals_and_keeps_colours_at_their_corners(make_soup):
    mesh = make_soup([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    mesh = replace(mesh, tint=np.float32([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]))
    flipped = mesh.flip(np.array([True]))
    assert flipped.faces.tolist() == [[0, 2, 1]]
    np.testing.assert_array_equal(flipped.tint[0], mesh.tint[0][[0, 2, 1]])


@pytest.mark.parametrize(
    ("wrap", "expected"), [("repeat", [2, 0, 1]), ("mirror", [0, 2, 1]), ("clamp", [0, 2, 2])]
)
@pytest.mark.parametrize("nearest", [False, True])
def test_texels_outside_the_texture_repeat_turn_back_or_go_on(wrap, expected, nearest):
    levels = np.uint8([10, 100, 200])
    texture = np.repeat(levels[None, :, None], 4, axis=2)
    uv = np.float32([[-0.5 / 3, 0.5], [3.5 / 3, 0.5], [4.5 / 3, 0.5]])  # centres of the texels -1, 3 and 4
    for turned in (False, True):
        picture = texture.transpose(1, 0, 2)[::-1] if turned else texture
        got = sample_texture(picture, uv[:, ::-1] if turned else uv, Sampler(wrap, wrap, nearest=nearest))
        np.testing.assert_allclose(got[:, 3] * 255, levels[expected], atol=1e-3)


def test_nearest_sampler_shows_no_mean():
    texture = np.zeros((1, 2, 4), np.uint8)
    texture[0, 1] = 255
    u = np.linspace(0.01, 0.99, 50, dtype=np.float32)
    got = sample_texture(texture, np.stack([u, 0 * u], axis=1), Sampler(nearest=True))
    np.testing.assert_array_equal(got[:, 0], u > 0.5)


def test_a_surfaces_alpha_is_one_opaque_zero_or_one_masked_and_its_coverage_blended(make_soup):
    corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    mesh = make_soup(corners * 4, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    opacity = np.float32([[0.3] * 3, [0.3] * 3, [0.6] * 3, [0.2, 0.4, 0.9]])
    mesh = replace(mesh, opacity=opacity, cutoff=np.float32([0, 0.5, 0.5, BLEND]))
    weights = np.array([[0.5, 0.25, 0.25]]).repeat(4, axis=0)
    alpha = base_color(mesh, np.arange(4), weights)[1]
    np.testing.assert_allclose(alpha, [1, 0, 1, 0.1 + 0.1 + 0.225], rtol=1e-6)


def test_selected_faces_keep_all_that_they_have(make_soup):
    rng = np.random.default_rng(0)
    mesh = make_soup(rng.random((9, 3)), np.arange(9).reshape(3, 3))
    mesh = replace(
        mesh, tint=np.float32(rng.random((3, 3, 3))), uv=np.float32(rng.random((3, 3, 2))),
        texture=np.array([0, -1, 0]), textures=[np.zeros((1, 1, 4), np.uint8)],
        cutoff=np.float32([0.1, 0.2, 0.3]), opacity=np.float32(rng.random((3, 3))),
        unlit=np.array([True, False, True]),
    )  # fmt: skip
    few = mesh.select(np.array([2, 0]))
    for name in ("triangles", "tint", "shading", "uv", "texture", "cutoff", "opacity", "unlit"):
        np.testing.assert_array_equal(getattr(few, name), getattr(mesh, name)[[2, 0]])
    plain = replace(mesh, opacity=None, unlit=None).select(np.array([1]))
    assert plain.opacity is None and plain.unlit is None
