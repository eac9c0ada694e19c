"""Colour transfer, texture look-up and barycentric colours against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.mesh import base_color, linear_to_srgb, sample_texture, srgb_to_linear


def test_srgb_encoding_inverts_decoding():
    values = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(
        linear_to_srgb(srgb_to_linear(values)), values, atol=1e-7
    )  # standard's own joint


@pytest.mark.parametrize(("srgb", "linear"), [(0.0, 0.0), (0.5, 0.21404114), (1.0, 1.0), (0.04, 0.00309598)])
def test_srgb_decoding_at_known_values(srgb, linear):
    assert srgb_to_linear(np.array(srgb)) == pytest.approx(linear, abs=1e-7)


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
    color, solid = base_color(mesh, np.array([0]), weights)
    np.testing.assert_allclose(color[0], weights[0] * srgb_to_linear(np.array(188 / 255)), rtol=1e-5)
    assert solid.all()


def test_texels_below_the_cutoff_are_holes(make_soup):
    mesh = make_soup([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    for alpha, expected in ((100, False), (160, True)):
        texture = np.full((2, 2, 4), alpha, np.uint8)
        holed = replace(mesh, texture=np.array([0]), textures=[texture], cutoff=np.float32([0.5]))
        _, solid = base_color(holed, np.array([0]), np.array([[1.0, 0, 0]]))
        assert solid[0] == expected


def test_flip_turns_normals_and_keeps_colours_at_their_corners(make_soup):
    mesh = make_soup([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    mesh = replace(mesh, tint=np.float32([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]))
    flipped = mesh.flip(np.array([True]))
    assert flipped.faces.tolist() == [[0, 2, 1]]
    np.testing.assert_array_equal(flipped.tint[0], mesh.tint[0][[0, 2, 1]])
