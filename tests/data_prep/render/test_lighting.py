"""Light on surfaces in closed form, and where lights are."""

import numpy as np
import pytest

from data_prep.render.lighting import STUDIO, UNLIT, Lighting, random_lighting

RANDOM = [random_lighting(np.random.default_rng(n)) for n in range(200)]


def test_each_light_adds_the_cosine_of_its_angle_and_none_shines_from_behind():
    lights = np.float32([[0, 0, 1], [0.6, 0, -0.8]])
    lighting = Lighting(0.25, lights, np.float32([0.5, 0.25]))
    normals = np.float32([[0, 0, 1], [0, 0, -1], [1, 0, 0], [0.6, 0, 0.8], [0, 1, 0]])
    found = lighting.irradiance(normals)
    np.testing.assert_allclose(found, [0.75, 0.25 + 0.25 * 0.8, 0.25 + 0.25 * 0.6, 0.25 + 0.4, 0.25])


def test_unlit_is_one_all_around():
    assert UNLIT.irradiance(np.eye(3, dtype=np.float32)).tolist() == [1, 1, 1]
    assert UNLIT.facts() == {"ambient": 1.0, "lights": []}


@pytest.mark.parametrize("lighting", [STUDIO, *RANDOM[:20]])
def test_two_unit_lights_from_above_stand_on_opposite_sides_and_sum_to_one(lighting):
    key, fill = lighting.directions
    np.testing.assert_allclose(np.linalg.norm(lighting.directions, axis=1), 1, atol=1e-6)
    assert (lighting.directions[:, 2] > 0).all() and float(key[:2] @ fill[:2]) < 0
    assert lighting.intensities[0] > lighting.intensities[1] > 0
    assert lighting.ambient + lighting.intensities.sum() == pytest.approx(1)
    assert lighting.facts()["lights"][1] == {
        "direction": fill.tolist(),
        "intensity": float(lighting.intensities[1]),
    }


def test_random_lights_come_from_all_around_at_all_heights():
    keys = np.stack([lighting.directions[0] for lighting in RANDOM])
    azimuth = np.degrees(np.arctan2(keys[:, 1], keys[:, 0]))
    assert np.histogram(azimuth, 8, (-180, 180))[0].min() >= 10  # 25 on average
    assert np.histogram(keys[:, 2], 9, (0.05, 0.95))[0].min() >= 8 and keys[:, 2].min() >= 0.05
    assert keys[:, 2].max() <= 0.95
    ambient = np.array([lighting.ambient for lighting in RANDOM])
    shares = np.array([lighting.intensities[0] / lighting.intensities.sum() for lighting in RANDOM])
    for values, low, high in ((ambient, 0.25, 0.6), (shares, 0.55, 0.95)):
        assert low <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high
