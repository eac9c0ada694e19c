"""Schedules against their closed forms and against one another."""

import math
from typing import get_args

import pytest
import torch

from shapeloom.diffusion.schedules import ScheduleName, make_schedule

TIMES = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
NAMES = ["rectified_flow", "vp_cosine"]


@pytest.mark.parametrize("name", NAMES)
def test_time_goes_from_clean_to_noise_and_signal_only_falls(name):
    schedule = make_schedule(name)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(ends), torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(schedule.sigma(ends), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (schedule.log_snr(TIMES).diff() < 0).all()


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_log_snr_is_that_of_alpha_and_sigma(name):
    schedule = make_schedule(name)
    expected = 2 * torch.log(schedule.alpha(TIMES) / schedule.sigma(TIMES))
    torch.testing.assert_close(schedule.log_snr(TIMES), expected)


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_time_inverts_the_noise_ratio(name):
    schedule = make_schedule(name)
    torch.testing.assert_close(schedule.time(schedule.sigma(TIMES) / schedule.alpha(TIMES)), TIMES)
    beyond = torch.tensor([0.0, 1e-4, 1e3], dtype=torch.float64)
    t = schedule.time(beyond)
    torch.testing.assert_close(schedule.sigma(t) / schedule.alpha(t), beyond)


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


def test_the_other_schedules_follow_their_closed_forms():
    shap_e, linear, edm = (make_schedule(name) for name in ("shap_e", "vp_linear", "edm"))
    torch.testing.assert_close(shap_e.alpha(TIMES) ** 2, torch.exp(-12 * TIMES))
    for schedule in (shap_e, linear):
        torch.testing.assert_close(
            schedule.alpha(TIMES) ** 2 + schedule.sigma(TIMES) ** 2, torch.ones_like(TIMES)
        )
    # The continuous limit of DDPM's own 1000 betas from 1e-4 to 0.02.
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    # 0.006: what a product of 1000 factors (1 - beta) differs from its limit.
    torch.testing.assert_close(linear.alpha(steps) ** 2, (1 - betas).cumprod(0), atol=0.006, rtol=0)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(edm.sigma(ends), torch.tensor([0.002, 80.0], dtype=torch.float64))
    torch.testing.assert_close(
        (edm.sigma(TIMES) ** (1 / 7)).diff().diff(), torch.zeros(97, dtype=torch.float64)
    )
