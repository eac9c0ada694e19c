"""Score distillation against closed forms of Gaussian models, on Stable Diffusion's schedule.

The model is N(mu, diag lambda), whose denoiser is exact: x_hat = mu + lambda / (lambda + sigma^2) (z - mu).
Then E[SDS gradient] = K (x - mu) with K = E_t[w alpha_t sigma_t / (alpha_bar lambda + 1 - alpha_bar)].
"""

import pytest
import torch

from shapeloom.config import UserError, load_config
from shapeloom.diffusion.discrete import DiscreteSchedule
from shapeloom.diffusion.distillation import (
    TimesConfig,
    ism,
    level_weight,
    own_loss,
    sds,
    time_range,
    vsd,
)
from shapeloom.diffusion.guidance import classifier_free, perp_neg
from shapeloom.diffusion.objectives import add_noise

ALPHAS_CUMPROD = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SIGMAS = (1 / ALPHAS_CUMPROD - 1).sqrt()[20:980]  # of times 0.02 to 0.98
LAMBDA = torch.tensor([0.01, 0.1, 1.0, 4.0], dtype=torch.float64)
MU = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
ZERO = torch.zeros(4, dtype=torch.float64)


def gaussian(variance=LAMBDA):
    """The exact denoiser of N(condition, diag variance)."""

    def denoise(x, sigma, condition):
        return condition + variance / (variance + sigma[:, None] ** 2) * (x - condition)

    return denoise


def noise(num, *, seed):
    """Noise levels of all times evenly, and standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(SIGMAS), (num,), generator=generator)
    return SIGMAS[chosen], torch.randn(num, 4, generator=generator, dtype=torch.float64)


def contraction(variance, weighting="sds"):
    """K of an axis of that variance."""
    return (level_weight(weighting, SIGMAS) * SIGMAS / (variance + SIGMAS**2)).mean()


def distilled(gradient, *, num=256, steps=1500, rate=0.3):
    """Particles after gradient descent from N(0, 9), at a rate that falls to zero."""
    x = 3 * noise(num, seed=999)[1]
    for step in range(steps):
        x = x - rate * (1 - step / steps) * gradient(x, *noise(num, seed=step))
    return x


def test_weights_of_noise_levels_are_their_papers_functions_of_alpha_bar():
    a = 1 / (1 + SIGMAS**2)
    torch.testing.assert_close(level_weight("sds", SIGMAS), 1 - a)
    torch.testing.assert_close(level_weight("uniform", SIGMAS), torch.ones_like(a))
    torch.testing.assert_close(level_weight("fantasia3d", SIGMAS), a.sqrt() * (1 - a))


@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
def test_the_expected_gradient_of_sds_pulls_to_the_mean_at_the_rate_k(weighting):
    sigma, eps = noise(200_000, seed=0)
    x = torch.zeros(len(sigma), 4, dtype=torch.float64)
    found = sds(gaussian(), x, sigma, eps, MU, weighting=weighting).mean(0)
    expected = torch.stack([contraction(value, weighting) for value in LAMBDA]) * (0 - MU)
    # 5 standard errors of the mean, each gradient's own deviation being below 1.
    torch.testing.assert_close(found, expected, atol=5 / 200_000**0.5, rtol=0)


def test_the_variance_of_sds_at_a_time_is_that_of_the_models_doubt():
    sigma = torch.full((200_000,), float(SIGMAS[280]), dtype=torch.float64)
    _, eps = noise(200_000, seed=1)
    x = torch.zeros(200_000, 4, dtype=torch.float64)
    found = sds(gaussian(), x, sigma, eps, MU, weighting="uniform").var(0)
    expected = (LAMBDA / (LAMBDA + sigma[0] ** 2)) ** 2  # zero for a model that knows one sample alone
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_all_particles_of_sds_collapse_to_the_mean():
    particles = distilled(lambda x, sigma, eps: sds(gaussian(), x, sigma, eps, MU), steps=2000)
    torch.testing.assert_close(particles.mean(0), MU, atol=0.03, rtol=0)
    assert float(particles.var(0).max()) < 0.02  # from 9, with priors' variances up to 4


def moments(x):
    """The exact denoiser of the Gaussian that particles have the moments of, with its mean as condition."""
    return gaussian(x.var(0, correction=0)), x.mean(0)


def test_particles_of_vsd_have_the_models_own_variance():
    def gradient(x, sigma, eps):
        own, mean = moments(x)
        return vsd(gaussian(), own, x, sigma, eps, MU, mean)

    particles = distilled(gradient, rate=2.0, steps=2500)
    torch.testing.assert_close(particles.mean(0), MU, atol=0.05, rtol=0)
    torch.testing.assert_close(particles.var(0), LAMBDA, rtol=0.1, atol=0)


@pytest.mark.parametrize("scale", [1.0, 7.5, 100.0])
def test_guidance_moves_the_fixed_point_of_sds_in_proportion(scale):
    """From mu_null to mu_null + scale (mu - mu_null): at 100 the mean is 100 times off: saturation."""
    guided = classifier_free(gaussian(), ZERO, scale=scale)
    at = sds(guided, (scale * MU).expand(960, -1), SIGMAS, torch.zeros(960, 4, dtype=torch.float64), MU)
    assert float(at.mean(0).abs().max()) < 1e-12 * scale
    beside = sds(guided, MU.expand(960, -1), SIGMAS, torch.zeros(960, 4, dtype=torch.float64), MU).mean(0)
    expected = torch.stack([contraction(value) for value in LAMBDA]) * (MU - scale * MU)
    torch.testing.assert_close(beside, expected)


def test_guidance_moves_vsd_as_far_and_leaves_its_variance():
    guided = classifier_free(gaussian(), ZERO, scale=7.5)

    def gradient(x, sigma, eps):
        own, mean = moments(x)
        return vsd(guided, own, x, sigma, eps, MU, mean)

    particles = distilled(gradient, rate=2.0, steps=2500)
    torch.testing.assert_close(particles.mean(0), 7.5 * MU, rtol=0.02, atol=0)
    torch.testing.assert_close(particles.var(0), LAMBDA, rtol=0.1, atol=0)


def test_vsd_of_one_particle_whose_score_is_known_is_sds_pointwise():
    sigma, eps = noise(50, seed=3)
    x = torch.linspace(-2, 2, 200, dtype=torch.float64).view(50, 4)
    found = vsd(gaussian(), lambda z, sigma, own: own, x, sigma, eps, MU, x)
    assert torch.equal(found, sds(gaussian(), x, sigma, eps, MU))


def test_sds_diverges_where_a_high_scale_meets_a_narrower_model_without_the_prompt():
    """scale K(lambda) - (scale - 1) K(lambda_null) turns negative: particles run away from the mean."""
    narrow, wide = gaussian(torch.full((4,), 0.25)), gaussian(torch.ones(4))

    def denoise(x, sigma, is_prompt):
        return wide(x, sigma, ZERO) if is_prompt else narrow(x, sigma, ZERO)

    x = torch.ones(960, 4, dtype=torch.float64)
    pulls = {}
    for scale in (2.0, 4.0, 7.5):
        guided = classifier_free(denoise, False, scale=scale)
        pulls[scale] = float(sds(guided, x, SIGMAS, torch.zeros_like(x), True).mean())
        k_wide, k_narrow = (float(contraction(torch.tensor(value))) for value in (1.0, 0.25))
        assert pulls[scale] == pytest.approx(scale * k_wide - (scale - 1) * k_narrow)
    assert pulls[2.0] > 0 > pulls[4.0] > pulls[7.5]


def test_sds_through_a_linear_renderer_solves_least_squares():
    generator = torch.Generator().manual_seed(0)
    renderer = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    certain = gaussian(torch.zeros(6, dtype=torch.float64))  # one picture, so SDS has no noise
    for _ in range(800):
        x = (renderer @ theta)[None]
        gradient = sds(certain, x, SIGMAS[500:501], torch.zeros_like(x), target, weighting="uniform")
        (slope,) = torch.autograd.grad(x, theta, gradient)
        theta = (theta - 0.1 * slope).detach().requires_grad_()
    expected = torch.linalg.lstsq(renderer, target[:, None]).solution[:, 0]
    torch.testing.assert_close(theta.detach(), expected, atol=1e-8, rtol=0)


def test_ism_follows_the_models_own_path_to_its_closed_form():
    """On the path from x to t the distance from mu grows by sqrt((lambda + t^2) / lambda), without noise."""
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4)
    start, s, t = 1e-3, 0.8, 1.2
    levels = torch.logspace(torch.tensor(start).log10(), torch.tensor(s).log10(), 4000, dtype=torch.float64)
    levels = torch.cat([levels, torch.tensor([t], dtype=torch.float64)])[:, None].expand(-1, 3)
    found = ism(gaussian(), gaussian(), x, levels, torch.zeros_like(x), MU, MU, weighting="uniform")
    along = (x - MU) * ((LAMBDA + s**2) / LAMBDA).sqrt()
    slope = along * s / (LAMBDA + s**2)
    expected = (along + (t - s) * slope) * t / (LAMBDA + t**2) - slope
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)  # 4,000 steps of first order


def test_ism_has_no_noise_where_sds_has():
    x = torch.zeros(64, 4, dtype=torch.float64)
    _, eps = noise(64, seed=5)
    levels = torch.tensor([0.02, 0.3, 0.8, 1.2], dtype=torch.float64)[:, None].expand(-1, 64)
    spread = ism(gaussian(), gaussian(), x, levels, eps, MU, MU).std(0)
    noisy = sds(gaussian(), x, levels[-1], eps, MU).std(0)
    assert bool((spread[1:] < 0.25 * noisy[1:]).all())
    with pytest.raises(ValueError, match="two levels or more, not 1"):
        ism(gaussian(), gaussian(), x, levels[:1], eps, MU, MU)


def test_what_vsd_learns_of_its_particles_is_least_for_their_exact_denoiser():
    sigma, eps = noise(4000, seed=6)
    x = MU + LAMBDA.sqrt() * noise(4000, seed=7)[1]
    exact = float(own_loss(gaussian(), x, sigma, eps, MU))
    assert exact < float(own_loss(gaussian(), x, sigma, eps, MU + 0.3))
    assert exact < float(own_loss(gaussian(2 * LAMBDA), x, sigma, eps, MU))
    assert exact < float(own_loss(gaussian(0.5 * LAMBDA), x, sigma, eps, MU))


def test_perp_neg_without_negatives_is_classifier_free_guidance_at_the_same_scale():
    sigma, eps = noise(16, seed=8)
    plain = classifier_free(gaussian(), ZERO, scale=7.5, rescale=0.5)(eps, sigma, MU)
    for negatives in ([], [(-MU.flip(0), torch.zeros(16))]):
        found = perp_neg(gaussian(), ZERO, negatives, scale=7.5, rescale=0.5)(eps, sigma, MU)
        torch.testing.assert_close(found, plain)


def test_perp_neg_never_moves_along_the_prompts_own_direction():
    sigma, eps = noise(16, seed=9)
    same = gaussian(torch.ones(4))
    direction = same(eps, sigma, MU) - same(eps, sigma, ZERO)
    other = MU.flip(0)
    with_it, without = (
        perp_neg(same, ZERO, [(other, weight)], scale=7.5)(eps, sigma, MU)
        for weight in (torch.full((16,), -2.0), torch.zeros(16))
    )
    change = with_it - without
    torch.testing.assert_close((change * direction).sum(1), torch.zeros(16).double(), atol=1e-10, rtol=0)
    away = same(eps, sigma, other) - same(eps, sigma, ZERO)
    assert bool(((change * away).sum(1) < 0).all())  # and always away from the negative


def test_noise_is_added_bit_for_bit_as_diffusers_adds_it():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    ours = DiscreteSchedule(theirs.alphas_cumprod)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1000, 3, 2, 2, generator=generator)
    steps = torch.arange(1000)
    found = add_noise(ours, x0, eps, steps / 1000)
    assert torch.equal(found, theirs.add_noise(x0, eps, steps))
    torch.testing.assert_close(ALPHAS_CUMPROD.float(), theirs.alphas_cumprod, rtol=1e-4, atol=0)


def test_times_of_whole_steps_are_found_from_their_noise_levels():
    schedule = DiscreteSchedule(ALPHAS_CUMPROD)
    t = torch.arange(1000, dtype=torch.float64) / 1000
    ratio = schedule.sigma(t) / schedule.alpha(t)
    assert torch.equal(schedule.time(ratio), t)
    assert torch.equal(schedule.time(ratio * 1.0005), t)  # and from levels close by
    assert torch.equal(schedule.step(t), torch.arange(1000))
    torch.testing.assert_close(schedule.log_snr(t), -2 * ratio.log())


def test_the_range_of_times_narrows_as_its_annealing_says():
    ranges = {
        name: [time_range(TimesConfig(anneal=name), progress) for progress in (0.0, 0.25, 1.0)]
        for name in ("none", "step", "linear", "sqrt")
    }
    assert ranges["none"] == [(0.02, 0.98)] * 3
    assert ranges["step"] == [(0.02, 0.98), (0.02, 0.5), (0.02, 0.5)]
    assert [high for _, high in ranges["linear"]] == pytest.approx([0.98, 0.86, 0.5])
    assert all(low == high for low, high in ranges["sqrt"])  # HiFA asks one time a step
    assert [high for _, high in ranges["sqrt"]] == pytest.approx([0.98, 0.5, 0.02])
    with pytest.raises(UserError, match="must be below"):
        load_config(TimesConfig, None, ["low=0.6"])
