"""A small network trained with the objectives learns the score of distributions that are known."""

import pytest
import torch
from torch import nn

from shapeloom.diffusion.objectives import Target, add_noise, make_target, sample_times, to_x0
from shapeloom.diffusion.samplers import initial_noise, sample
from shapeloom.diffusion.schedules import ScheduleName, make_schedule
from shapeloom.diffusion.steps import karras_sigmas

CENTRES = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-0.5, -1.4]])
SPREAD = 0.3


def draw(num: int, generator: torch.Generator) -> torch.Tensor:
    """Three round clusters in the plane."""
    which = torch.randint(3, (num,), generator=generator)
    return CENTRES[which] + SPREAD * torch.randn(num, 2, generator=generator)


def exact_denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    variance = SPREAD**2 + sigma[:, None] ** 2
    shares = torch.softmax(-((x[:, None] - CENTRES) ** 2).sum(dim=-1) / (2 * variance), dim=1)
    means = CENTRES + (SPREAD**2 / variance)[..., None] * (x[:, None] - CENTRES)
    return (shares[..., None] * means).sum(dim=1)


class Network(nn.Module):
    """Sees x_t and the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: None = None) -> torch.Tensor:
        angles = t[:, None] * torch.tensor([1.5, 3.0, 6.0])
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))


@pytest.mark.parametrize(("name", "target"), [("rectified_flow", "flow"), ("vp_cosine", "v")])
def test_a_mixture_s_score_is_learnt(name: ScheduleName, target: Target):
    torch.manual_seed(0)
    network, schedule, generator = Network(), make_schedule(name), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        x0 = draw(256, generator)
        eps = torch.randn(256, 2, generator=generator)
        t = sample_times(torch.randn(256, generator=generator), "uniform")
        error = network(add_noise(schedule, x0, eps, t), t) - make_target(target, schedule, x0, eps, t)
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        rates.step()

    def denoise(x, sigma, condition):
        t = schedule.time(sigma)
        x_t = schedule.alpha(t)[:, None] * x
        return to_x0(target, schedule, network(x_t, t), x_t, t)

    for sigma in (0.2, 0.5, 1.0, 3.0):
        levels = torch.full((2000,), sigma)
        x = draw(2000, generator) + sigma * torch.randn(2000, 2, generator=generator)
        with torch.no_grad():
            error = (denoise(x, levels, None) - exact_denoiser(x, levels)).square().mean()
        assert error < 0.02 * CENTRES.square().mean(), (sigma, error)
    sigmas = karras_sigmas(24, sigma_max=30.0)
    made = sample(denoise, initial_noise(torch.randn(3000, 2, generator=generator), sigmas), sigmas, None)
    distance = torch.cdist(made, CENTRES).min(dim=1)
    shares = torch.bincount(distance.indices, minlength=3) / 3000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.05, rtol=0)
    assert float(distance.values.square().mean()) == pytest.approx(
        2 * SPREAD**2, rel=0.5
    )  # small errors widen clusters
