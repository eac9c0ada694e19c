"""Whole-step diffusion against recorded numbers of Shap-E's reference."""

import torch
from torch import Tensor

from shapeloom.diffusion.discrete import bottleneck_process, exponential_process
from shapeloom.diffusion.samplers import sample
from shapeloom.diffusion.steps import karras_sigmas
from tests.golden_data import assert_same, golden


def test_golden_schedule_and_times() -> None:
    data, process = golden("diffusion"), exponential_process()
    for name in ("betas", "alphas_cumprod", "posterior_mean_coef1", "posterior_mean_coef2",
                 "posterior_variance", "posterior_log_variance_clipped"):  # fmt: skip
        assert_same(getattr(process, name), data[f"schedule.{name}"], tolerance=1e-12)
    step = process.step_of(data["time.sigma"])
    assert_same(step, data["time.t_float"], tolerance=1e-6)
    assert torch.equal(step.floor().int(), data["time.t_model"])
    sigmas = karras_sigmas(64, sigma_min=1e-3, sigma_max=160.0)
    torch.testing.assert_close(sigmas.float(), data["karras.sigmas_64"], rtol=1e-4, atol=0)


def test_golden_ancestral_step() -> None:
    data, process = golden("diffusion"), exponential_process()
    x0, eps, t, x_t = (data[f"ddpm.{name}"] for name in ("x0", "eps", "t", "x_t"))
    assert_same(process.add_noise(x0, eps, t), x_t, tolerance=1e-6)
    log_variance = process.learned_log_variance(data["ddpm.model_var"], t)
    assert_same(log_variance, data["ddpm.log_variance"], tolerance=1e-6)
    assert_same(log_variance.exp(), data["ddpm.variance"], tolerance=1e-6)
    for name in ("noclip", "clip"):
        predicted = data["ddpm.model_x0"] if name == "noclip" else data["ddpm.model_x0"].clamp(-1, 1)
        assert_same(predicted, data[f"ddpm.{name}.pred_xstart"], tolerance=1e-6)
        assert_same(process.posterior_mean(predicted, x_t, t), data[f"ddpm.{name}.mean"], tolerance=1e-6)


def test_golden_heun() -> None:
    data = golden("diffusion")
    visited: list[Tensor] = []

    def toy(x: Tensor, sigma: Tensor, condition: None) -> Tensor:
        visited.append(x)
        return x / (1 + sigma[:, None] ** 2)

    end = sample(toy, data["heun.x_init"], data["heun.sigmas"].double(), None, method="heun")
    assert_same(torch.stack([*visited[::2], end]), data["heun.x"], tolerance=1e-6)


def test_golden_bottleneck() -> None:
    data = golden("encoder")
    process = bottleneck_process()
    assert_same(process.alphas_cumprod, data["bottleneck.alphas_cumprod"], tolerance=1e-12)
    noised = process.add_noise(
        data["bottleneck.pre_tanh"].tanh(), data["bottleneck.noise"], data["bottleneck.t"]
    )
    assert_same(noised, data["bottleneck.out"], tolerance=1e-6)
