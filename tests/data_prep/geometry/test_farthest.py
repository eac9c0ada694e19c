"""The compiled farthest-point order against a plain loop."""

import numpy as np
import pytest

from data_prep.geometry.farthest import farthest_first
from data_prep.render.zbuffer import reason_against

pytestmark = pytest.mark.skipif(bool(reason_against()), reason=reason_against())


def plain_loop(points, num):
    squared, order = np.full(len(points), np.inf, np.float32), [0]
    for _ in range(num - 1):
        away = points - points[order[-1]]
        squared = np.minimum(squared, away[:, 0] ** 2 + away[:, 1] ** 2 + away[:, 2] ** 2)
        squared[order] = -1
        order.append(int(squared.argmax()))
    return order


@pytest.mark.parametrize("num", [1, 2, 16, 17, 1500])
def test_it_is_that_of_a_plain_loop_number_by_number(num):
    points = np.random.default_rng(num).standard_normal((num, 3)).astype(np.float32)
    for chosen in {1, (num + 1) // 2, num}:
        assert farthest_first(points, chosen, compiled=True).tolist() == plain_loop(points, chosen)


def test_of_equally_far_points_the_lower_number_comes_first_and_none_comes_twice():
    points = np.random.default_rng(0).integers(0, 5, (700, 3)).astype(np.float32)  # 125 places
    order = farthest_first(points, 700, compiled=True)
    assert order.tolist() == plain_loop(points, 700)
    assert sorted(order) == list(range(700))
    assert len(np.unique(points[order[:125]], axis=0)) == 125  # every place before any twice


def test_of_no_points_none_is_taken():
    assert farthest_first(np.zeros((0, 3)), 5, compiled=True).shape == (0,)
