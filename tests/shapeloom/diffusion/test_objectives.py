"""Targets and their conversions as identities; training one recovers a known denoiser."""

from typing import get_args

import pytest
import torch

from shapeloom.diffusion.objectives import (
    DiffusionConfig,
    add_noise,
    convert,
    loss_weight,
    make_target,
    sample_times,
    to_x0,
)
from shapeloom.diffusion.schedules import ScheduleName, make_schedule

TARGETS = ["x0", "eps", "v", "flow"]
SCHEDULES = get_args(ScheduleName)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_to_x0_inverts_make_target_at_every_time(target, name):
    schedule, generator = make_schedule(name), torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 101, 3, 2, dtype=torch.float64, generator=generator)
    t = torch.linspace(0, 0.999, 101, dtype=torch.float64)  # at t = 1, eps says nothing of x_0
    x_t = add_noise(schedule, x0, eps, t)
    truth = make_target(target, schedule, x0, eps, t)
    torch.testing.assert_close(to_x0(target, schedule, truth, x_t, t), x0)


def test_targets_are_the_textbook_ones():
    flow, cosine = make_schedule("rectified_flow"), make_schedule("vp_cosine")
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    torch.testing.assert_close(make_target("flow", flow, x0, eps, t), eps - x0)
    a, s = cosine.alpha(t)[:, None], cosine.sigma(t)[:, None]
    torch.testing.assert_close(make_target("v", cosine, x0, eps, t), a * eps - s * x0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_v_has_unit_variance_at_every_time_for_data_of_unit_variance(name):
    x0, eps = torch.randn(2, 5, 20000, generator=torch.Generator().manual_seed(0))
    target = make_target("v", make_schedule(name), x0, eps, torch.linspace(0.05, 0.95, 5))
    # 0.05: five standard errors of a variance estimated from 20000 numbers.
    torch.testing.assert_close(target.var(1), torch.ones(5), atol=0.05, rtol=0)


def test_times_follow_the_named_distributions_and_stay_inside():
    z = torch.randn(50000, generator=torch.Generator().manual_seed(0))
    uniform = sample_times(z, "uniform")
    # 0.01: over four standard errors of an empirical quantile of 50000 draws.
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(uniform.quantile(quantiles), quantiles, atol=0.01, rtol=0)
    logit = torch.logit(sample_times(z, "logit_normal", mean=0.5, std=0.8))
    assert float(logit.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(logit.std()) == pytest.approx(0.8, abs=0.02)
    extreme = sample_times(torch.tensor([-100.0, 100.0]), "logit_normal")
    assert 0 < extreme[0] < extreme[1] < 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_training_on_a_gaussian_recovers_its_denoiser(target, name):
    """Least squares of a target on x_t at a fixed t is E[x_0 | x_t] = m + k (x_t / a - m), known exactly."""
    schedule, generator = make_schedule(name), torch.Generator().manual_seed(1)
    mean, std, t = 0.7, 0.5, torch.full((200000,), 0.4, dtype=torch.float64)
    x0 = mean + std * torch.randn(200000, 1, dtype=torch.float64, generator=generator)
    eps = torch.randn(200000, 1, dtype=torch.float64, generator=generator)
    x_t = add_noise(schedule, x0, eps, t)
    design = torch.cat([x_t, torch.ones_like(x_t)], dim=1)
    weights = torch.linalg.lstsq(design, make_target(target, schedule, x0, eps, t)).solution
    learned = to_x0(target, schedule, design @ weights, x_t, t)
    alpha, sigma = schedule.alpha(t[:1]), schedule.sigma(t[:1])
    gain = std**2 / (std**2 + (sigma / alpha) ** 2)
    expected = mean + gain * (x_t / alpha - mean)
    # 0.02: the regression's own error at 200000 draws, amplified by sigma / alpha for "eps".
    torch.testing.assert_close(learned, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("source", TARGETS)
def test_every_conversion_is_the_other_target_of_the_same_sample(source, name):
    schedule, generator = make_schedule(name), torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 50, 3, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    x_t = add_noise(schedule, x0, eps, t)
    said = make_target(source, schedule, x0, eps, t)
    for target in TARGETS:
        expected = make_target(target, schedule, x0, eps, t)
        torch.testing.assert_close(convert(said, source, target, schedule, x_t, t), expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_make_every_target_s_loss_that_of_x0_and_are_the_papers(name):
    schedule, t = make_schedule(name), torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    snr = schedule.log_snr(t).exp()
    torch.testing.assert_close(loss_weight("min_snr", "x0", schedule, t), snr.clamp(max=5))
    torch.testing.assert_close(loss_weight("min_snr", "eps", schedule, t), snr.clamp(max=5) / snr)
    torch.testing.assert_close(loss_weight("edm", "v", schedule, t), torch.ones_like(t))
    truth, wrong = torch.randn(2, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = add_noise(schedule, truth, wrong, t)
    for weighting in ("min_snr", "edm"):
        losses = []
        for target in TARGETS:
            said, meant = (convert(x0, "x0", target, schedule, x_t, t) for x0 in (wrong, truth))
            losses.append(loss_weight(weighting, target, schedule, t) * (said - meant).square().sum(1))
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0])
    assert torch.equal(loss_weight("uniform", "eps", schedule, t), torch.ones_like(t))


def test_a_learned_variance_is_of_even_times_of_schedules_that_keep_the_variance():
    for schedule in SCHEDULES:
        given = {"schedule": schedule, "times": "uniform"}
        assert not DiffusionConfig(**given).learned_variance
        if make_schedule(schedule).keeps_variance:
            assert DiffusionConfig(**given, learned_variance=True).learned_variance
            with pytest.raises(ValueError, match="times=uniform"):
                DiffusionConfig(schedule=schedule, times="logit_normal", learned_variance=True)
        else:
            with pytest.raises(ValueError, match="use vp_cosine"):
                DiffusionConfig(**given, learned_variance=True)
