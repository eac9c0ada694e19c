"""The farthest-point order, compiled and by a plain loop."""

import numpy as np
import pytest

from data_prep.geometry import farthest
from data_prep.geometry.farthest import farthest_first, plain_loop
from data_prep.render.zbuffer import reason_against
from shapeloom.native import NotBuilt

compiled = pytest.mark.skipif(bool(reason_against()), reason=reason_against())


@compiled
@pytest.mark.parametrize("num", [1, 2, 16, 17, 1500])
def test_it_is_that_of_a_plain_loop_number_by_number(num, monkeypatch):
    monkeypatch.setattr(farthest, "plain_loop", None)
    points = np.random.default_rng(num).standard_normal((num, 3)).astype(np.float32)
    for chosen in {1, (num + 1) // 2, num}:
        np.testing.assert_array_equal(farthest_first(points, chosen), plain_loop(points, chosen))


@pytest.fixture(params=[pytest.param(True, marks=compiled), False], ids=["compiled", "plain"])
def either(request, monkeypatch):
    """Every claim holds with a compiler and without."""

    def refuse():
        raise NotBuilt("no C++ compiler was found")

    if not request.param:
        monkeypatch.setattr(farthest, "library", refuse)


@pytest.mark.usefixtures("either")
def test_of_equally_far_points_the_lower_number_comes_first_and_none_comes_twice():
    points = np.random.default_rng(0).integers(0, 5, (700, 3)).astype(np.float32)  # 125 places
    order = farthest_first(points, 700)
    np.testing.assert_array_equal(order, plain_loop(points, 700))
    assert sorted(order) == list(range(700))
    assert len(np.unique(points[order[:125]], axis=0)) == 125  # every place before any twice


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("num", [1, 2, 3, 31, 600])
def test_each_point_is_the_farthest_from_those_before_it_however_few_there_are(num):
    points = np.random.default_rng(num).random((num, 3)).astype(np.float32)
    order = farthest_first(points.astype(np.float64), 512)
    assert order[0] == 0 and len(set(order.tolist())) == len(order) == min(num, 512)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    for i in range(1, min(num, 20)):
        nearest = apart[:, order[:i]].min(axis=1)
        assert nearest[order[i]] == pytest.approx(nearest.max(), rel=1e-5)  # its sums are float32


@pytest.mark.usefixtures("either")
def test_of_no_points_none_is_taken():
    assert farthest_first(np.zeros((0, 3)), 5).shape == (0,)
