"""Whole-step diffusion against recorded numbers of Shap-E's reference."""

import torch
from torch import Tensor

from shapeloom.diffusion.discrete import DiscreteSchedule, exponential_process
from shapeloom.diffusion.samplers import sample
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.diffusion.variance import learned_log_variance
from tests.golden_data import assert_same, golden


def test_golden_schedule_and_times() -> None:
    data, process = golden("diffusion"), exponential_process()
    for name in ("betas", "alphas_cumprod"):
        assert_same(getattr(process, name), data[f"schedule.{name}"], tolerance=1e-12)
    step = process.step_of(data["time.sigma"])
    assert_same(step, data["time.t_float"], tolerance=1e-6)
    assert torch.equal(step.floor().int(), data["time.t_model"])
    sigmas = karras_sigmas(64, sigma_min=1e-3, sigma_max=160.0)
    torch.testing.assert_close(sigmas.float(), data["karras.sigmas_64"], rtol=1e-4, atol=0)


def test_a_noise_level_is_that_of_the_nearest_step() -> None:
    kept, steps = torch.linspace(0.99, 0.01, 50, dtype=torch.float64), torch.arange(50)
    schedule = DiscreteSchedule(kept)
    for apart in (-0.4, 0.0, 0.4):  # of the distance between two steps
        times = schedule.time((1 / (kept + apart * 0.02) - 1).sqrt())
        assert torch.equal(schedule.step(times), steps)
        torch.testing.assert_close(schedule.alpha(times) ** 2, kept)
        torch.testing.assert_close(schedule.sigma(times) ** 2, 1 - kept)


def test_golden_variance_of_a_step() -> None:
    data, process = golden("diffusion"), exponential_process()
    step = data["ddpm.t"].long()
    late = step > 0  # the first step, whose variance is 0, takes the second's there
    share, step = data["ddpm.model_var"][late].double(), step[late]
    found = learned_log_variance(share, process.sigmas[step], process.sigmas[step - 1])
    kept = process.alphas_cumprod[step - 1].log().view(-1, *[1] * (found.ndim - 1))
    assert len(step) and bool((found + kept - data["ddpm.log_variance"][late]).abs().max() < 1e-5)


def test_golden_heun() -> None:
    data = golden("diffusion")
    visited: list[Tensor] = []

    def toy(x: Tensor, sigma: Tensor, condition: None) -> Tensor:
        visited.append(x)
        return x / (1 + sigma[:, None] ** 2)

    end = sample(toy, data["heun.x_init"], data["heun.sigmas"].double(), None, method="heun")
    assert_same(torch.stack([*visited[::2], end]), data["heun.x"], tolerance=1e-6)
