"""Learned variances against closed forms: DDPM's bounds, Gaussian data, sampling in a few steps."""

import math

import pytest
import torch

from shapeloom.diffusion.discrete import exponential_process
from shapeloom.diffusion.samplers import initial_noise, sample
from shapeloom.diffusion.schedules import make_schedule
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.diffusion.variance import learned_log_variance, variance_loss


def posterior_variance(std, start, end):
    """Of x_end given x_start, for data N(0, std^2)."""
    return (std**2 + end**2) * (start**2 - end**2) / (std**2 + start**2)


def share_of(std, start, end):
    """The share that says `posterior_variance`."""
    low, high = (posterior_variance(bound, start, end).log() for bound in (0.0, 1.0))
    return 2 * (posterior_variance(std, start, end).log() - low) / (high - low) - 1


def test_the_bounds_of_whole_steps_are_ddpm_s_beta_and_beta_tilde():
    process = exponential_process()
    start, end = process.sigmas[1:], process.sigmas[:-1]
    # DDPM's frame is alpha times the samplers'; neighbouring levels differ by a hundredth and more, so that
    # their float64 difference keeps 13 digits.
    kept = process.alphas_cumprod
    least = process.betas[1:] * (1 - kept[:-1]) / (1 - kept[1:])  # Ho et al. 2020, eq. 7
    for share, expected in ((1.0, process.betas[1:]), (-1.0, least)):
        found = learned_log_variance(torch.full_like(start, share), start, end).exp()
        torch.testing.assert_close(found * kept[:-1], expected, rtol=1e-10, atol=0)


def test_the_loss_is_the_divergence_of_the_two_steps():
    generator = torch.Generator().manual_seed(0)
    x0, predicted, share, x = torch.randn(4, 6, 3, dtype=torch.float64, generator=generator)
    start = torch.linspace(0.2, 40, 6, dtype=torch.float64)
    end = start * torch.linspace(0.5, 0.99, 6, dtype=torch.float64)
    kept = (end / start)[:, None] ** 2
    low = posterior_variance(0.0, start, end).sqrt()[:, None].expand_as(x)
    q = torch.distributions.Normal(kept * x + (1 - kept) * x0, low)
    p = torch.distributions.Normal(
        kept * x + (1 - kept) * predicted, learned_log_variance(share, start, end).exp().sqrt()
    )
    expected = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(variance_loss(x0, predicted, share, start, end), expected)


def test_the_mean_gets_no_gradient_and_the_share_does():
    x0, predicted, share = torch.ones(3, 2, 4)
    predicted, share = (0.5 * predicted).requires_grad_(), share.clone().requires_grad_()
    loss = variance_loss(x0, predicted, share, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.9])).sum()
    mean_gradient, share_gradient = torch.autograd.grad(loss, [predicted, share], allow_unused=True)
    assert mean_gradient is None
    assert bool((share_gradient != 0).all())


def test_the_posterior_variance_of_gaussian_data_is_learnt():
    """Eight steps of the cosine schedule, three spreads of data, one free share each."""
    stds = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    schedule, generator = make_schedule("vp_cosine"), torch.Generator().manual_seed(0)
    times = torch.arange(1, 9, dtype=torch.float64) / 9
    levels = schedule.sigma(times) / schedule.alpha(times)
    end, start = levels[:-1], levels[1:]
    share = torch.zeros(7, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([share], lr=0.05)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    draws = (500, 7, 3)
    for _ in range(300):
        x0 = stds * torch.randn(draws, dtype=torch.float64, generator=generator)
        x = x0 + start[:, None] * torch.randn(draws, dtype=torch.float64, generator=generator)
        predicted = x * stds**2 / (stds**2 + start[:, None] ** 2)
        each = [part.transpose(0, 1) for part in (x0, predicted, share.expand(draws))]
        optimizer.zero_grad()
        variance_loss(*each, start, end).mean().backward()
        optimizer.step()
        rates.step()
    found = learned_log_variance(share.detach(), start, end).exp()
    expected = posterior_variance(stds, start[:, None], end[:, None])
    low, high = (posterior_variance(std, start, end)[:, None] for std in (0.0, 1.0))
    # The last hundred steps average 50,000 draws: 1% of noise.
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    assert float((low / expected).min()) < 0.5  # neither bound is near everywhere
    assert float((high / expected).max()) > 1.5


@pytest.mark.parametrize("learned", [True, False])
def test_few_ancestral_steps_keep_gaussian_data_s_variance_if_theirs_is_learned(learned: bool):
    std, count = 0.5, 40_000
    sigmas = karras_sigmas(5, sigma_min=0.1, sigma_max=20.0)[:-1]
    generator = torch.Generator().manual_seed(0)

    def noise(step: int) -> torch.Tensor:
        return torch.randn(count, 1, dtype=torch.float64, generator=generator)

    def log_variance(x, start, end, condition):
        return learned_log_variance(share_of(std, start, end)[:, None].expand_as(x), start, end)

    end = sample(
        lambda x, sigma, condition: x * std**2 / (std**2 + sigma[:, None] ** 2),
        initial_noise(noise(-1), sigmas) * math.sqrt(1 + (std / 20) ** 2), sigmas, None,
        method="ddpm", noise=noise, log_variance=log_variance if learned else None,
    )  # fmt: skip
    ratio = float(end.var()) / (std**2 + 0.1**2)
    # The variance of 40,000 draws is known to 0.7%; beta-tilde's leaves out what x_0 is not known to.
    assert abs(ratio - 1) < 0.03 if learned else ratio < 0.85


def test_a_variance_is_of_ancestral_steps_alone():
    with pytest.raises(ValueError, match="log_variance is of the steps of ddpm, got it for heun"):
        sample(
            lambda x, sigma, condition: x, torch.ones(1, 1), torch.tensor([1.0, 0.0]), None,
            log_variance=lambda x, start, end, condition: x,
        )  # fmt: skip
