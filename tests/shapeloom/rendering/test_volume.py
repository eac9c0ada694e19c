"""Emission-absorption against integrals known in closed form."""

import math

import torch

from shapeloom.rendering.rays import edges_from_samples
from shapeloom.rendering.volume import composite, importance_samples, ray_weights


def test_a_constant_density_absorbs_exponentially() -> None:
    density = torch.full((1, 64), 1.7)
    alpha = ray_weights(density, torch.full((1, 64), 2.0 / 64)).sum()
    torch.testing.assert_close(alpha, torch.tensor(1 - math.exp(-1.7 * 2.0)))


def test_alpha_does_not_depend_on_how_a_constant_density_is_cut() -> None:
    edges = torch.tensor([[0.0, 0.1, 0.7, 0.75, 2.0]])
    alpha = ray_weights(torch.full((1, 4), 0.9), edges.diff(dim=-1)).sum()
    torch.testing.assert_close(alpha, torch.tensor(1 - math.exp(-0.9 * 2.0)))


def test_an_opaque_wall_hides_what_is_behind_it() -> None:
    density = torch.tensor([[0.0, 1e6, 1e6]])
    rgb = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]])
    t = torch.tensor([[0.5, 1.5, 2.5]])
    seen = composite(density, rgb, t, torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    torch.testing.assert_close(seen.rgb, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(seen.distance, torch.tensor([1.5]))


def test_gradients_are_finite_in_empty_and_in_opaque_space() -> None:
    for value in (0.0, 1e6):
        density = torch.full((1, 8), value, requires_grad=True)
        ray_weights(density, torch.full((1, 8), 0.1)).sum().backward()
        assert density.grad is not None
        assert density.grad.isfinite().all()


def test_importance_samples_of_even_weights_are_even() -> None:
    edges = torch.linspace(0, 2, 11)[None]
    samples = importance_samples(edges, torch.ones(1, 10), 4)
    torch.testing.assert_close(samples, torch.tensor([[0.25, 0.75, 1.25, 1.75]]))


def test_importance_samples_go_where_the_weight_is() -> None:
    edges = torch.linspace(0, 1, 11)[None]
    weights = torch.zeros(1, 10)
    weights[0, 3] = 1.0
    samples = importance_samples(edges, weights, 100)
    assert ((samples >= 0.3) & (samples <= 0.4)).float().mean() > 0.98
    assert (samples.diff(dim=-1) >= 0).all()


def test_edges_lie_between_samples_and_end_at_the_ends() -> None:
    edges = edges_from_samples(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([0.5]), torch.tensor([5.0]))
    torch.testing.assert_close(edges, torch.tensor([[0.5, 1.5, 3.0, 5.0]]))
