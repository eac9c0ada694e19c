"""Distances between sets of features against closed forms, brute force and scipy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from eval.distributions import (
    Gaussian,
    Moments,
    frechet_distance,
    kernel_distance,
    kernel_matrix,
    neighbour_scores,
    percentile_interval,
    resampling_weights,
    spread_within,
    weighted_means,
)
from shapeloom.seed import numpy_rng


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return numpy_rng("features", seed).normal(size=shape)


def test_moments_of_shards_merge_to_those_of_all_and_give_numpy_s_covariance() -> None:
    x = normal(30, 4)
    merged = Moments.of(x[:11]) + Moments.of(x[11:])
    np.testing.assert_allclose(merged.mean, x.mean(axis=0))
    np.testing.assert_allclose(merged.covariance, np.cov(x.T))
    drawn = Moments.merged([Moments.of(x[:11]), Moments.of(x[11:]), merged], np.array([3, 0, 1]))
    np.testing.assert_allclose(drawn.covariance, np.cov(np.concatenate([*3 * [x[:11]], x]).T))
    with pytest.raises(ValueError, match="two samples or more"):
        _ = Moments.of(x[:1]).covariance


def test_frechet_distance_of_merged_shards_is_that_of_all_whatever_their_order() -> None:
    x, y = normal(40, 5), 2 * normal(50, 5, seed=1) + 1
    merged = Gaussian(Moments.of(y)).frechet(Moments.of(x[25:]) + Moments.of(x[:25]))
    assert merged == pytest.approx(frechet_distance(x, y))
    assert frechet_distance(y, x) == pytest.approx(merged)


def test_kernel_distance_is_the_mean_over_pairs_of_pictures_of_different_objects() -> None:
    x, y = normal(4, 3, 5), normal(6, 2, 5, seed=1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 5 + 1) ** 3)

    def mean(first: np.ndarray, second: np.ndarray, *, same: bool) -> float:
        pairs = [
            kernel(a, b)
            for i, own in enumerate(first)
            for j, other in enumerate(second)
            if not same or i != j
            for a in own
            for b in other
        ]
        return float(np.mean(pairs))

    expected = mean(x, x, same=True) + mean(y, y, same=True) - 2 * mean(x, y, same=False)
    matrices = kernel_matrix(x, x), kernel_matrix(y, y), kernel_matrix(x, y)
    # Kernels are summed in float32.
    assert kernel_distance(*matrices)[0] == pytest.approx(expected, abs=1e-4)


def test_kernel_distance_of_equal_distributions_is_0_in_the_mean_and_grows_with_a_shift() -> None:
    found = []
    for seed in range(40):
        x, y = normal(20, 1, 3, seed=2 * seed), normal(20, 1, 3, seed=2 * seed + 1)
        found.append(kernel_distance(kernel_matrix(x, x), kernel_matrix(y, y), kernel_matrix(x, y))[0])
        shifted = kernel_distance(kernel_matrix(x + 1, x + 1), kernel_matrix(y, y), kernel_matrix(x + 1, y))
        assert shifted[0] > found[-1]
    # Unbiased: four standard errors of 40 sets.
    assert abs(np.mean(found)) < 4 * np.std(found) / 40**0.5
    assert min(found) < 0


def test_copies_in_a_draw_are_no_pairs_of_the_kernel_distance() -> None:
    x, y = normal(5, 2, 3), normal(5, 2, 3, seed=1)
    matrices = kernel_matrix(x, x), kernel_matrix(y, y), kernel_matrix(x, y)
    once, twice = np.full((1, 5), 1), np.full((1, 5), 2)
    np.testing.assert_allclose(kernel_distance(*matrices, once), kernel_distance(*matrices, twice))
    assert np.isnan(kernel_distance(*matrices, np.array([[5, 0, 0, 0, 0]]))[0])


def test_neighbour_scores_are_those_of_a_search_through_all_balls() -> None:
    x, y, k = normal(15, 2), 1 + normal(15, 2, seed=1), 3
    found = neighbour_scores(x, y, k=k)
    own, other = ([sorted(row)[k] for row in cdist(z, z)] for z in (x, y))
    for i, place in enumerate(x):
        inside = [np.linalg.norm(place - y[j]) < other[j] for j in range(15)]
        assert found["precision"][i] == any(inside) and found["density"][i] == sum(inside) / k
    for j, place in enumerate(y):
        assert found["recall"][j] == any(np.linalg.norm(place - x[i]) < own[i] for i in range(15))
        assert found["coverage"][j] == any(np.linalg.norm(place - x[i]) < other[j] for i in range(15))
    with pytest.raises(ValueError, match="more than k = 3"):
        neighbour_scores(x[:3], y, k=k)


def test_one_object_again_and_again_is_precise_and_recalls_and_covers_little() -> None:
    y = normal(40, 2)
    found = neighbour_scores(np.repeat(y[:1], 40, axis=0) + 1e-6 * normal(40, 2, seed=2), y, k=5)
    assert found["precision"].mean() == 1 and found["recall"].mean() < 0.1 and found["coverage"].mean() < 0.5


def test_spread_is_the_mean_distance_to_the_others_of_a_prompt() -> None:
    places = np.array([[0.0], [1.0], [5.0], [9.0]])
    found = spread_within(cdist(places, places), ["a", "a", "a", "b"])
    np.testing.assert_allclose(found, [3, 2.5, 4.5, np.nan])


def test_draws_are_of_prompts_then_of_their_seeds() -> None:
    groups = ["a", "a", "b", "c", "c", "c"]
    weights = resampling_weights(groups, num=400, seed=0)
    sizes = {"a": 2, "b": 1, "c": 3}
    for name, size in sizes.items():  # a prompt comes whole times, with as many seeds as it has
        drawn = weights[:, [group == name for group in groups]].sum(axis=1)
        assert (drawn % size == 0).all() and drawn.mean() / size == pytest.approx(1, abs=0.2)
    assert np.array_equal(weights, resampling_weights(groups, num=400, seed=0))


def test_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = normal(200)
    draws = weighted_means(values, resampling_weights([str(i) for i in range(200)], num=2000, seed=0))
    low, high = percentile_interval(draws)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 200**0.5, rel=0.1)


def test_prompts_that_agree_make_an_interval_wider_than_as_many_single_outputs() -> None:
    of_prompt = normal(20)
    values = of_prompt.repeat(10)
    clustered = resampling_weights([str(i // 10) for i in range(200)], num=1000, seed=0)
    single = resampling_weights([str(i) for i in range(200)], num=1000, seed=0)
    spread = [np.ptp(percentile_interval(weighted_means(values, w))) for w in (clustered, single)]
    assert spread[0] == pytest.approx(10**0.5 * spread[1], rel=0.2)
