"""Every measure against a case whose value is known."""

import numpy as np
import pytest

from shapeloom.metrics import (
    MAX_PSNR,
    bootstrap_interval,
    chamfer_l1,
    chamfer_l2,
    mask_iou,
    psnr,
    ranks,
    retrieval_at_k,
    share_interval,
    ssim,
)


def test_a_constant_error_of_a_tenth_is_20_decibels() -> None:
    truth = np.random.default_rng(0).uniform(0, 0.9, (2, 3, 8, 8, 3))
    scores = psnr(truth + 0.1, truth)
    assert scores.shape == (2, 3)
    assert np.allclose(scores, 20)  # float64 throughout


def test_equal_pictures_score_the_finite_maximum() -> None:
    truth = np.ones((16, 16, 3), np.float32)
    assert float(psnr(truth, truth)) == pytest.approx(MAX_PSNR)
    assert ssim(truth, truth) == pytest.approx(1)


def test_ssim_of_two_constant_pictures_is_its_luminance_term() -> None:
    a, b, c = 0.8, 0.2, 0.01**2
    first, second = np.full((16, 16, 3), a), np.full((16, 16, 3), b)
    assert ssim(first, second) == pytest.approx((2 * a * b + c) / (a * a + b * b + c))


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(np.ones((8, 8, 3)), np.ones((8, 8, 3)))


def test_iou_of_halves_that_share_a_quarter_is_a_third() -> None:
    first, second = np.zeros((8, 8)), np.zeros((8, 8))
    first[:4], second[:, :4] = 1, 1
    assert float(mask_iou(first, second)) == pytest.approx(16 / 48)


def test_iou_of_a_blank_prediction_is_zero_and_of_two_blanks_one() -> None:
    truth = np.zeros((2, 4, 4))
    truth[0, 1, 1] = 1
    assert mask_iou(np.zeros((2, 4, 4)), truth).tolist() == [0, 1]


def test_retrieval_counts_the_places_of_the_own_prompt() -> None:
    similarity = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.3], [0.2, 0.1, 0.0]])
    target = np.array([0, 1, 2])
    assert ranks(similarity, target).tolist() == [0, 1, 2]
    assert [retrieval_at_k(similarity, target, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_judge_that_says_the_same_to_everything_retrieves_nothing() -> None:
    assert retrieval_at_k(np.ones((50, 100)), np.arange(50), 5) == 0


def test_wilson_matches_the_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    published = [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611))]
    for successes, trials, expected in published:
        right = np.arange(trials) < successes
        assert share_interval(right) == pytest.approx(expected, abs=5e-5)
    assert share_interval(np.zeros(0, bool)) == (0, 1)


def test_chamfer_distances_of_parallel_planes_are_the_gap_and_twice_its_square() -> None:
    forward, backward = np.full((3, 5), 0.3), np.full((3, 7), 0.3)
    assert chamfer_l1(forward, backward) == pytest.approx(np.full(3, 0.3))
    assert chamfer_l2(forward, backward) == pytest.approx(np.full(3, 0.18))
    # Either direction counts as much, however many points it has.
    assert chamfer_l1(np.array([0.0, 0.0]), np.array([1.0])) == pytest.approx(0.5)
    assert chamfer_l2(np.array([0.0, 2.0]), np.array([1.0])) == pytest.approx(3.0)


def test_bootstrap_of_normal_values_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400)
    low, high = bootstrap_interval(values)
    # 1.96 standard errors of 0.05; the percentile of 2,000 draws is good to a few percent.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
    assert bootstrap_interval(np.full(7, 3.0)) == (3, 3)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(np.zeros(0))
