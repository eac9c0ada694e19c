"""Classifier-free guidance: its fixed points, its closed form on Gaussians, interval and rescaling."""

import pytest
import torch

from shapeloom.diffusion.guidance import classifier_free
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
    with pytest.raises(ValueError, match="rescale in"):
        classifier_free(CountingDenoiser(), NEGATIVE, scale=2.0, rescale=2.0)
