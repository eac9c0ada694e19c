"""Densities of distributions that are known, by their exact denoisers."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from shapeloom.diffusion.likelihood import bits_per_dim, log_likelihood, variational_bound

MEANS, SPREADS = torch.tensor([-1.0, 0.8]).double(), torch.tensor([0.3, 0.6]).double()
SHARES = torch.tensor([0.4, 0.6]).double()
LEAST, MOST = 0.05, 200.0


def noisy(sigma) -> MixtureSameFamily:
    """The mixture of two normal distributions with noise added."""
    sigma = torch.as_tensor(sigma)[..., None]
    return MixtureSameFamily(Categorical(SHARES), Normal(MEANS, torch.hypot(SPREADS, sigma)))


def denoise(x, sigma, condition):
    """The exact one, by Tweedie's formula, of each number by itself."""
    with torch.enable_grad():
        seen = x if x.requires_grad else x.detach().requires_grad_()
        sigmas = sigma[:, None].expand_as(x)
        density = noisy(sigmas).log_prob(seen).sum()
        score = torch.autograd.grad(density, seen, create_graph=x.requires_grad)[0]
    return x + sigma[:, None] ** 2 * score


def levels(num: int) -> torch.Tensor:
    return torch.logspace(math.log10(LEAST), math.log10(MOST), num, dtype=torch.float64)


X = torch.linspace(-2, 2, 12, dtype=torch.float64).view(6, 2)


def test_the_flow_s_density_is_the_mixture_s():
    exact = noisy(LEAST).log_prob(X).sum(dim=1)
    # Heun's error at 200 levels; it falls fourfold with twice as many.
    torch.testing.assert_close(log_likelihood(denoise, X, levels(200), None), exact, atol=0.015, rtol=0)


def test_hutchinson_s_estimate_is_right_on_average():
    many = X[:1].expand(2000, 2)
    signs = torch.randint(0, 2, (2000, 2), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    estimates = log_likelihood(denoise, many, levels(60), None, probe=signs)
    exact = log_likelihood(denoise, X[:1], levels(60), None)
    # The numbers don't mix here, so that signs give the trace itself.
    torch.testing.assert_close(estimates, exact.expand(2000))


def test_the_bound_is_above_and_close():
    many = X.repeat(200, 1)
    generator = torch.Generator().manual_seed(0)

    def bound(num: int) -> torch.Tensor:
        values = variational_bound(
            denoise, many, levels(num).flip(0), None,
            lambda i: torch.randn(many.shape, generator=generator, dtype=torch.float64),
        )  # fmt: skip
        return values.view(200, 6).mean(dim=0)

    exact = -noisy(0.0).log_prob(X).sum(dim=1)
    coarse, fine = bound(20), bound(200)
    assert (coarse > fine).all()
    # Monte Carlo error is 0.1 at most; the least noise is a sixth of the narrower spread, which costs some.
    assert (fine > exact - 0.1).all() and (fine < exact + 0.35).all()


def test_bits_a_dimension():
    torch.testing.assert_close(bits_per_dim(torch.tensor([2 * math.log(2)]), 2), torch.ones(1))


@pytest.mark.parametrize("rising", [[2.0, 1.0], [1.0, 1.0, 2.0], [0.0, 1.0], [1.0]])
def test_levels_that_are_too_few_zero_or_in_the_wrong_order_are_refused(rising):
    with pytest.raises(ValueError, match="rising"):
        log_likelihood(denoise, X, torch.tensor(rising), None)
    with pytest.raises(ValueError, match="falling"):
        variational_bound(denoise, X, torch.tensor(rising).flip(0), None, lambda i: X)
