"""Schedules against their closed forms and against one another."""

import math

import pytest
import torch

from shapeloom.diffusion.schedules import make_schedule

TIMES = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
NAMES = ["rectified_flow", "vp_cosine"]


@pytest.mark.parametrize("name", NAMES)
def test_time_goes_from_clean_to_noise_and_signal_only_falls(name):
    schedule = make_schedule(name)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(ends), torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(schedule.sigma(ends), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (schedule.log_snr(TIMES).diff() < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_is_that_of_alpha_and_sigma(name):
    schedule = make_schedule(name)
    expected = 2 * torch.log(schedule.alpha(TIMES) / schedule.sigma(TIMES))
    torch.testing.assert_close(schedule.log_snr(TIMES), expected)


@pytest.mark.parametrize("name", NAMES)
def test_time_inverts_the_noise_ratio(name):
    schedule = make_schedule(name)
    torch.testing.assert_close(schedule.time(schedule.sigma(TIMES) / schedule.alpha(TIMES)), TIMES)
    assert schedule.time(torch.zeros(1)) == 0


def test_vp_cosine_preserves_variance_and_has_equal_parts_in_the_middle():
    schedule = make_schedule("vp_cosine")
    torch.testing.assert_close(
        schedule.alpha(TIMES) ** 2 + schedule.sigma(TIMES) ** 2, torch.ones_like(TIMES)
    )
    assert float(schedule.log_snr(torch.tensor(0.5, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)


def test_rectified_flow_is_the_straight_line():
    schedule = make_schedule("rectified_flow")
    assert torch.equal(schedule.alpha(TIMES), 1 - TIMES)
    assert torch.equal(schedule.sigma(TIMES), TIMES)
    assert float(schedule.log_snr(torch.tensor(0.2, dtype=torch.float64))) == pytest.approx(2 * math.log(4))
