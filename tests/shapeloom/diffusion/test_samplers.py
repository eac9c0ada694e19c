"""Samplers on distributions whose denoiser is exact: order of convergence, DDIM, independence."""

import math
from typing import get_args

import pytest
import torch

from shapeloom.diffusion.objectives import DiffusionConfig, convert, predict_x0
from shapeloom.diffusion.samplers import SamplerName, initial_noise, sample
from shapeloom.diffusion.schedules import ScheduleName, make_schedule
from shapeloom.diffusion.steps import (
    StepChoice,
    align_your_steps_sigmas,
    exponential_sigmas,
    flow_shift_sigmas,
    karras_sigmas,
    make_sigmas,
)

MEANS = torch.tensor([-1.5, 0.2, 1.4], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


def mixture_denoiser(x, sigma, condition):
    """E[x_0 | x] of a one-dimensional Gaussian mixture, in closed form. `condition` shifts its means."""
    means = MEANS + (0 if condition is None else condition)
    variance = STDS**2 + sigma[:, None, None] ** 2
    log_weight = WEIGHTS.log() - 0.5 * variance.log() - (x[..., None] - means) ** 2 / (2 * variance)
    posterior = torch.softmax(log_weight, dim=-1)
    return (posterior * (means + STDS**2 / variance * (x[..., None] - means))).sum(-1)


def start(count: int, sigma_max: float, seed: int = 0):
    noise = torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise * math.sqrt(sigma_max**2 + 1)


def levels(steps: int):
    """Karras levels that end above 0, so that the last Euler step doesn't hide the order."""
    return karras_sigmas(steps + 1, sigma_min=0.05, sigma_max=20.0)[:-1]


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("heun", 2), ("ddim", 1), ("dpmpp_2m", 2), ("unipc", 3)]
)
def test_error_falls_with_the_declared_order(method, order):
    x = start(64, 20.0)
    reference = sample(mixture_denoiser, x, levels(4096), None, method="unipc")
    steps = torch.tensor([32, 64, 128, 256])
    errors = [
        float((sample(mixture_denoiser, x, levels(n), None, method=method) - reference).abs().mean())
        for n in steps.tolist()
    ]
    slope = (math.log(errors[-1]) - math.log(errors[0])) / math.log(steps[-1] / steps[0])
    # 0.25: the asymptotic rate is only approached at these numbers of steps.
    assert -slope == pytest.approx(order, abs=0.25)


def test_samples_of_a_mixture_have_its_mean_and_variance():
    x = start(4000, 80.0)
    result = sample(mixture_denoiser, x, karras_sigmas(32), None)
    mean = float((WEIGHTS * MEANS).sum())
    variance = float((WEIGHTS * (STDS**2 + MEANS**2)).sum()) - mean**2
    # Four standard errors at 4000 samples of a standard deviation near 1.
    assert float(result.mean()) == pytest.approx(mean, abs=0.07)
    assert float(result.var()) == pytest.approx(variance, abs=0.1)


@pytest.mark.parametrize("name", ["rectified_flow", "vp_cosine"])
def test_an_euler_step_is_a_ddim_step_in_the_schedule_s_own_frame(name):
    schedule = make_schedule(name)
    t, s = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    x_t = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratios = torch.cat([schedule.sigma(u) / schedule.alpha(u) for u in (t, s)])
    x0 = mixture_denoiser(x_t / schedule.alpha(t), ratios[:1].expand(5), None)
    eps = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)
    ddim = schedule.alpha(s) * x0 + schedule.sigma(s) * eps
    euler = sample(mixture_denoiser, x_t / schedule.alpha(t), ratios, None, method="euler")
    torch.testing.assert_close(euler * schedule.alpha(s), ddim)


def test_a_sample_does_not_depend_on_its_batch_mates_and_conditions_reach_the_denoiser():
    x, condition = start(6, 80.0), torch.arange(6, dtype=torch.float64).view(6, 1, 1)
    together = sample(mixture_denoiser, x, karras_sigmas(8), condition)
    alone = sample(mixture_denoiser, x[4:5], karras_sigmas(8), condition[4:5])
    torch.testing.assert_close(together[4:5], alone)
    assert float((together - sample(mixture_denoiser, x, karras_sigmas(8), None)).abs()[1:].min()) > 0.1


def test_karras_levels_follow_equation_5_and_end_at_zero():
    sigmas = karras_sigmas(5, sigma_min=0.01, sigma_max=10.0, rho=7.0)
    expected = (10 ** (1 / 7) + 2 / 4 * (0.01 ** (1 / 7) - 10 ** (1 / 7))) ** 7
    assert sigmas.tolist()[0] == pytest.approx(10)
    assert sigmas.tolist()[2] == pytest.approx(expected)
    assert sigmas.tolist()[4:] == [pytest.approx(0.01), 0.0]
    assert float(initial_noise(torch.ones(1, 1), sigmas)) == pytest.approx(10)


def test_every_step_is_reported_once():
    seen = []
    sample(mixture_denoiser, start(2, 80.0), karras_sigmas(5), None, on_step=seen.append)
    assert seen == [0, 1, 2, 3, 4]


def test_wrong_levels_and_steps_without_their_noise_are_refused():
    x = start(2, 80.0)
    for levels in ([1.0, 2.0], [2.0, 1.0, 1.0], [1.0], [1.0, -0.5]):
        with pytest.raises(ValueError, match="falling levels"):
            sample(mixture_denoiser, x, torch.tensor(levels), None)
    with pytest.raises(ValueError, match="needs `noise`"):
        sample(mixture_denoiser, x, karras_sigmas(4), None, method="ddpm")
    with pytest.raises(ValueError, match="shift > 0"):
        flow_shift_sigmas(4, shift=0.0)
    with pytest.raises(ValueError, match="sigma_min"):
        karras_sigmas(4, sigma_min=2.0, sigma_max=1.0)


def gaussian_variance(method: str, steps: int) -> float:
    """Variance that a sampler gives a Gaussian of standard deviation 0.6, without drawing a number.

    Its denoiser is linear, so the sampler is linear in the start and each step's noise: row 0 carries the
    start, row i + 1 step i's noise, and their squares add up.
    """
    sigmas = levels(steps)
    gain = 0.36

    def denoise(x, sigma, condition):
        return gain / (gain + sigma[:, None] ** 2) * x

    def noise(i):
        rows = torch.zeros(steps + 1, 1, dtype=torch.float64)
        rows[i + 1] = 1
        return rows

    x = torch.zeros(steps + 1, 1, dtype=torch.float64)
    x[0] = math.sqrt(gain + float(sigmas[0]) ** 2)
    return float(sample(denoise, x, sigmas, None, method=method, noise=noise).square().sum())


@pytest.mark.parametrize(("method", "order"), [("ddpm", 1), ("dpmpp_2m_sde", 2)])
def test_variance_of_a_stochastic_sampler_converges_with_its_weak_order(method, order):
    truth = 0.36 + float(levels(4)[-1]) ** 2
    errors = [abs(gaussian_variance(method, n) - truth) for n in (64, 256)]
    # 0.25: the asymptotic rate is only approached at these numbers of steps.
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("schedule", get_args(ScheduleName))
@pytest.mark.parametrize("method", get_args(SamplerName))
def test_every_sampler_runs_with_every_schedule_and_step_choice(method, schedule):
    """From a network that says v at the schedule's own time, samples have the mixture's moments."""
    frame, says_v = make_schedule(schedule), DiffusionConfig(schedule=schedule, target="v")

    def network(x, sigma, condition):
        t = frame.time(sigma)
        x0 = mixture_denoiser(x, sigma, condition)
        return convert(x0, "x0", "v", frame, frame.alpha(t)[:, None] * x, t)

    def denoise(x, sigma, condition):
        return predict_x0(network, says_v, x, sigma, condition)

    # Ancestral noise makes the variance too small by about 8 / steps: 0.19 at 40 steps, 0.06 at 160.
    steps = 160 if method == "ddpm" else 40
    noises = torch.randn(steps + 1, 1500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = float((WEIGHTS * MEANS).sum())
    variance = float((WEIGHTS * (STDS**2 + MEANS**2)).sum()) - mean**2
    for choice in get_args(StepChoice):
        sigmas = make_sigmas(choice, steps)
        result = sample(
            denoise,
            initial_noise(noises[steps], sigmas),
            sigmas,
            None,
            method=method,
            noise=noises.__getitem__,
        )
        # Four standard errors of 1500 draws, and a first-order method's bias.
        assert float(result.mean()) == pytest.approx(mean, abs=0.13)
        assert float(result.var()) == pytest.approx(variance, abs=0.2)


def test_ddim_is_euler():
    x, sigmas = start(16, 80.0), karras_sigmas(8)
    ends = [sample(mixture_denoiser, x, sigmas, None, method=method) for method in ("ddim", "euler")]
    torch.testing.assert_close(*ends)


def test_step_choices_fall_between_their_ends_and_are_even_where_they_say():
    for choice in get_args(StepChoice):
        sigmas = make_sigmas(choice, 10)
        assert (sigmas.diff() < 0).all()
        assert [float(sigmas[i]) for i in (0, 9, 10)] == pytest.approx([80, 0.02, 0])
        assert len(make_sigmas(choice, 1)) == 2
    log = exponential_sigmas(10)[:-1].log().diff()
    torch.testing.assert_close(log, log[:1].expand(9))
    shifted = flow_shift_sigmas(10, shift=4.0)[:-1] / 4
    flow_time = (shifted / (1 + shifted)).diff()
    torch.testing.assert_close(flow_time, flow_time[:1].expand(9))
    published = align_your_steps_sigmas(11, sigma_min=0.029, sigma_max=14.615)
    assert [float(published[i]) for i in (1, 5, 9)] == pytest.approx([6.475, 1.396, 0.152])
