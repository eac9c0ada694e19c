"""Guidance: its fixed points, its closed form on Gaussians, intervals, rescaling and ranges."""

import pytest
import torch

from shapeloom.diffusion.guidance import (
    autoguided,
    classifier_free,
    classifier_guided,
    score_guided,
    within,
)
from shapeloom.diffusion.samplers import sample
from shapeloom.diffusion.steps import karras_sigmas


class CountingDenoiser:
    """The exact denoiser of a unit Gaussian around `condition` [batch, 1]; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x, sigma, condition):
        self.calls += 1
        gain = 1 / (1 + sigma**2)
        return condition + gain[:, None] * (x - condition)


X = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3)
SIGMA = torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=torch.float64)
POSITIVE, NEGATIVE = torch.full((4, 1), 1.0, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)


def test_scale_one_is_the_conditional_denoiser_at_no_extra_cost():
    denoise = CountingDenoiser()
    guided = classifier_free(denoise, NEGATIVE, scale=1.0)(X, SIGMA, POSITIVE)
    assert denoise.calls == 1
    assert torch.equal(guided, CountingDenoiser()(X, SIGMA, POSITIVE))


def test_scale_zero_is_the_negative_condition():
    guided = classifier_free(CountingDenoiser(), NEGATIVE, scale=0.0)(X, SIGMA, POSITIVE)
    torch.testing.assert_close(guided, CountingDenoiser()(X, SIGMA, NEGATIVE))


def test_guiding_between_two_gaussians_samples_the_extrapolated_one():
    """Unit Gaussians around 0 and m have linear scores: guidance by w is the unit Gaussian around w m."""
    guided = classifier_free(CountingDenoiser(), NEGATIVE, scale=3.0)
    direct = sample(CountingDenoiser(), X * 80, karras_sigmas(8), 3 * POSITIVE)
    torch.testing.assert_close(sample(guided, X * 80, karras_sigmas(8), POSITIVE), direct)


def test_outside_the_interval_nothing_is_guided():
    guided = classifier_free(CountingDenoiser(), NEGATIVE, scale=3.0, interval=(0.5, 9.0))
    result, plain = guided(X, SIGMA, POSITIVE), CountingDenoiser()(X, SIGMA, POSITIVE)
    inside = torch.tensor([False, True, True, False])  # low <= sigma < high
    assert torch.equal(result[~inside], plain[~inside])
    assert float((result - plain)[inside].abs().min()) > 0.1
    denoise = CountingDenoiser()
    classifier_free(denoise, NEGATIVE, scale=3.0, interval=(0.5, 9.0))(X, SIGMA * 100, POSITIVE)
    assert denoise.calls == 1


def test_full_rescaling_gives_the_conditional_spread_back():
    def denoise(x, sigma, condition):
        return x * condition

    guided = classifier_free(denoise, NEGATIVE, scale=5.0, rescale=1.0)(X, SIGMA, POSITIVE)
    torch.testing.assert_close(guided.std(dim=1), X.std(dim=1))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="scale >= 0"):
        classifier_free(CountingDenoiser(), NEGATIVE, scale=-1.0)
    for rescale in (2.0, -0.5):
        with pytest.raises(ValueError, match="rescale in"):
            classifier_free(CountingDenoiser(), NEGATIVE, scale=2.0, rescale=rescale)


def test_conditions_are_mixed_by_their_scales():
    """Unit Gaussians around 0, m and n: guided by w and v it is the one around w m + v n."""
    others = [(-2 * POSITIVE, 0.5)]
    mixed = classifier_free(CountingDenoiser(), NEGATIVE, scale=3.0, others=others)(X, SIGMA, POSITIVE)
    torch.testing.assert_close(mixed, CountingDenoiser()(X, SIGMA, 3 * POSITIVE - POSITIVE))


def test_autoguidance_goes_on_from_a_worse_answer_past_the_better():
    def worse(x, sigma, condition):
        return CountingDenoiser()(x, sigma, condition - 0.25)

    better = CountingDenoiser()(X, SIGMA, POSITIVE)
    guided = autoguided(CountingDenoiser(), worse, scale=3.0)(X, SIGMA, POSITIVE)
    torch.testing.assert_close(guided - better, 2 * (better - worse(X, SIGMA, POSITIVE)))


def fixed(answer):
    return lambda x, sigma, condition: answer


def test_a_static_range_cuts_off():
    low, high = torch.tensor([-1.0, -2.0, 0.0]), torch.tensor([1.0, 2.0, 4.0])
    answer = torch.tensor([[3.0, -3.0, -3.0], [0.5, 1.0, 3.0]])
    bounded = within(fixed(answer), low, high)(answer, SIGMA[:2], None)
    torch.testing.assert_close(bounded, torch.tensor([[1.0, -2.0, 0.0], [0.5, 1.0, 3.0]]))


def test_a_dynamic_range_keeps_proportions():
    one = torch.ones(())
    answer = torch.stack([torch.linspace(-4, 4, 9), torch.linspace(-0.5, 0.5, 9)])
    bounded = within(fixed(answer), -one, one, quantile=1.0)(answer, SIGMA[:2], None)
    torch.testing.assert_close(bounded, torch.stack([answer[0] / 4, answer[1]]))
    cut = within(fixed(answer), -one, one, quantile=0.5)(answer, SIGMA[:2], None)
    torch.testing.assert_close(cut[0], (answer[0] / 2).clamp(-1, 1))
    with pytest.raises(ValueError, match="quantile"):
        within(fixed(answer), -one, one, quantile=0.0)


def test_the_true_classifier_samples_the_conditional_distribution():
    """x_0 is standard normal and y = x_0 + noise of variance v: x_0 given y is known, and so its denoiser."""
    y, v = 1.5, 0.3

    def unconditional(x, sigma, condition):
        return x / (1 + sigma[:, None] ** 2)

    def log_probability(x, sigma, condition):
        gain = 1 / (1 + sigma[:, None] ** 2)
        variance = sigma[:, None] ** 2 * gain + v  # of y given x
        return (-((y - gain * x) ** 2) / (2 * variance)).sum(dim=1)

    guided = classifier_guided(unconditional, log_probability, scale=1.0)(X, SIGMA, None)
    mean, variance = y / (1 + v), v / (1 + v)
    exact = mean + variance / (variance + SIGMA[:, None] ** 2) * (X - mean)
    torch.testing.assert_close(guided, exact)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_score_s_gradient_goes_through_the_denoiser(scale):
    def denoise(x, sigma, condition):
        return torch.tanh(x)

    def score(x0, condition):
        return (x0**2).sum(dim=1)

    guided = score_guided(denoise, score, scale=scale, interval=(0.4, 100.0))(X, SIGMA, None)
    x0 = torch.tanh(X)
    slope = 2 * x0 * (1 - x0**2)
    expected = x0 + torch.where(SIGMA < 0.4, 0, scale * SIGMA**2)[:, None] * slope
    torch.testing.assert_close(guided, expected)
    assert not guided.requires_grad


def test_a_classifier_guides_from_the_interval_s_low_end_to_just_below_its_high_one():
    x, sigma = torch.zeros(4, 1), torch.tensor([0.5, 1.0, 1.9, 2.0])
    guided = classifier_guided(
        lambda x, sigma, condition: x,
        lambda x, sigma, condition: x.sum(dim=1),
        scale=1.0,
        interval=(1.0, 2.0),
    )
    torch.testing.assert_close(guided(x, sigma, None)[:, 0], torch.tensor([0, 1, 1.9**2, 0]))
