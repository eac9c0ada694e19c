"""Chamfer distances between clouds against closed forms, and compiled code against trees."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from eval import chamfer
from eval.chamfer import chamfer_matrix, symmetric_chamfer_matrix
from shapeloom.native import NotBuilt
from shapeloom.seed import numpy_rng


def no_compiler() -> None:
    raise NotBuilt("no C++ compiler was found")


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a compiler."""
    monkeypatch.setattr(chamfer, "library", no_compiler)
    chamfer._way.cache_clear()
    yield
    chamfer._way.cache_clear()


def clouds(*sizes: int) -> list[np.ndarray]:
    return [numpy_rng("clouds", size).normal(size=(size, 3)).astype(np.float32) for size in sizes]


def test_chamfer_distance_of_parallel_grids_is_twice_the_squared_gap() -> None:
    grid = np.stack(np.meshgrid(*2 * [np.arange(5.0)], [0.0]), axis=-1).reshape(-1, 3)
    found = chamfer_matrix([grid], [grid, grid + np.array([0, 0, 0.3])])
    np.testing.assert_allclose(found, [[0, 2 * 0.3**2]], rtol=3e-7)  # 0.3 as float32


def test_chamfer_matrix_of_a_set_is_that_of_all_its_pairs() -> None:
    own = clouds(20, 21, 22, 23)
    found = symmetric_chamfer_matrix(own)
    np.testing.assert_array_equal(found, chamfer_matrix(own, own))
    assert not found.diagonal().any() and found[np.triu_indices(4, 1)].all()


def test_compiled_distances_are_those_of_trees(request: pytest.FixtureRequest) -> None:
    """Of clouds that fill no lane, some, and all; of few points and of many."""
    first, second = clouds(1, 15, 16, 2048), clouds(2, 5, 33, 48, 700)
    chamfer.library()  # compiled, or the test would compare trees with themselves
    compiled = chamfer_matrix(first, second)
    request.getfixturevalue("trees")
    # Rounding to float32, of which means have less.
    np.testing.assert_allclose(compiled, chamfer_matrix(first, second), rtol=5e-7)


def test_points_far_from_a_cloud_are_measured_to_its_points_and_not_to_what_fills_it_up() -> None:
    far = np.float32([[1e3, 0, 0]])
    np.testing.assert_allclose(chamfer_matrix([far], [np.zeros((3, 3), np.float32)]), [[2e6]])


def test_without_a_compiler_it_is_said_what_that_costs(
    trees: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("shapeloom"), "propagate", True)  # which commands turn off
    with caplog.at_level(logging.INFO, logger="shapeloom"):
        symmetric_chamfer_matrix(clouds(3, 4))
    assert "ten times as long: no C++ compiler" in caplog.text


@pytest.mark.parametrize("cloud", [np.zeros((0, 3), np.float32), np.float32([[0, 0, np.nan]])])
def test_clouds_without_finite_points_are_refused(cloud: np.ndarray) -> None:
    for distances in (symmetric_chamfer_matrix, lambda each: chamfer_matrix(clouds(3), each)):
        with pytest.raises(ValueError, match="expected a point or more, all finite"):
            distances([cloud, *clouds(2)])
