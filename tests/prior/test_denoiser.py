"""The denoiser's paths and the frozen prior: preconditioning, conditions, standardisation, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prior.denoiser import Denoiser, NetworkConfig
from prior.latents import check_finite, num_components, principal_components, standardisation
from prior.model import Prior
from prior.task import PriorConfig
from shapeloom.clip import TextEmbedding
from shapeloom.config import UserError, load_config
from shapeloom.denoising import Condition, Shapes
from shapeloom.diffusion.objectives import DiffusionConfig, predict_x0

SHAPES = Shapes(tokens=8, channels=4, clip_dim=6, text_width=5)


def make_prior(group: int = 2, **diffusion: str) -> Prior:
    torch.manual_seed(0)
    network = Denoiser(SHAPES, NetworkConfig(width=16, depth=2, heads=2, group=group)).double()
    for parameter in network.parameters():  # leave the zero initialisation, where nothing depends on anything
        torch.nn.init.normal_(parameter, std=0.3)
    facts = {"digest": "d" * 64, "encoder": "e" * 64, "clip": "c" * 64}
    return Prior(network, SHAPES, DiffusionConfig(**diffusion), facts)


def some_text(rows: int, length: int = 3) -> TextEmbedding:
    generator = torch.Generator().manual_seed(rows)
    pooled = torch.nn.functional.normalize(torch.randn(rows, 6, generator=generator), dim=1).double()
    tokens = torch.randn(rows, length, 5, generator=generator).double()
    return TextEmbedding(pooled, tokens, torch.arange(length) < torch.arange(1, rows + 1)[:, None])


def some_noise(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(rows, 8, 4, dtype=torch.float64, generator=generator)
    return x, torch.linspace(0.1, 5, rows, dtype=torch.float64)


def test_an_untrained_network_answers_with_the_best_guess_that_ignores_its_input():
    """A zero output of target "v" is the exact denoiser of standardised data, x / (1 + sigma^2)."""
    network = Denoiser(SHAPES, NetworkConfig(width=16, depth=2, heads=2)).double()
    prior = Prior(network, SHAPES, DiffusionConfig(), {"digest": "", "encoder": "", "clip": ""})
    x, sigma = some_noise(3)
    expected = x / (1 + sigma[:, None, None] ** 2)
    torch.testing.assert_close(prior.denoise(x, sigma, prior.condition(batch=3)), expected)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("schedule: rectified_flow, times: uniform", "use vp_cosine, vp_linear or shap_e"),
        ("schedule: edm, times: uniform", "use vp_cosine, vp_linear or shap_e"),
        ("schedule: vp_cosine", "set times=uniform, not logit_normal"),
    ],
)
def test_a_variance_is_refused_where_steps_have_none_of_ddpm_s(said: str, answer: str):
    with pytest.raises(UserError, match=answer):
        load_config(PriorConfig, None, [f"diffusion={{learned_variance: true, {said}}}"])


def test_a_prior_without_a_learned_variance_says_so():
    prior, (x, sigma) = make_prior(), some_noise(3)
    with pytest.raises(ValueError, match=r"without diffusion\.learned_variance"):
        prior.log_variance(x, sigma, sigma / 2, prior.condition(batch=3))


@pytest.mark.parametrize("schedule", ["rectified_flow", "vp_cosine"])
def test_the_v_prediction_means_the_same_in_every_schedule(schedule: str):
    prior, (x, sigma) = make_prior(), some_noise(3)
    condition = prior.condition(batch=3)
    expected = prior.denoise(x, sigma, condition)
    other = predict_x0(prior.network, DiffusionConfig(schedule=schedule), x, sigma, condition)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_sample_does_not_depend_on_its_batch_mates(group: int):
    prior, (x, sigma) = make_prior(group), some_noise(4)
    text = some_text(4)
    together = prior.denoise(x, sigma, prior.condition(text))
    row = TextEmbedding(text.pooled[2:3], text.tokens[2:3], text.mask[2:3])
    torch.testing.assert_close(together[2:3], prior.denoise(x[2:3], sigma[2:3], prior.condition(row)))


def test_every_condition_matters_and_the_null_condition_hides_them_all():
    prior, (x, sigma) = make_prior(), some_noise(2)
    image = torch.nn.functional.normalize(torch.ones(2, 6).double(), dim=1)
    conditions = {
        "none": prior.condition(batch=2), "text": prior.condition(some_text(2)),
        "image": prior.condition(image=image), "both": prior.condition(some_text(2), image),
    }  # fmt: skip
    answers = {name: prior.denoise(x, sigma, condition) for name, condition in conditions.items()}
    for name, answer in answers.items():
        for other, another in answers.items():
            assert name == other or float((answer - another).abs().max()) > 1e-3
    torch.testing.assert_close(prior.denoise(x, sigma, conditions["both"].without()), answers["none"])


def test_several_equal_views_say_what_one_says():
    prior, (x, sigma) = make_prior(), some_noise(2)
    view = torch.nn.functional.normalize(torch.ones(2, 1, 6).double(), dim=-1)
    one, three = (prior.condition(image=view.expand(-1, num, -1)) for num in (1, 3))
    torch.testing.assert_close(prior.denoise(x, sigma, three), prior.denoise(x, sigma, one))


def test_masked_text_tokens_are_not_read():
    prior, (x, sigma), text = make_prior(), some_noise(2), some_text(2)
    changed = TextEmbedding(text.pooled, torch.where(text.mask[..., None], text.tokens, 9.0), text.mask)
    torch.testing.assert_close(
        prior.denoise(x, sigma, prior.condition(text)), prior.denoise(x, sigma, prior.condition(changed))
    )


def test_one_row_of_text_serves_a_whole_batch():
    prior, text = make_prior(), some_text(1)
    condition = prior.condition(text, batch=3)
    assert isinstance(condition, Condition)
    assert torch.equal(condition.text_pooled, text.pooled.expand(3, 6))
    assert condition.has_text.tolist() == [True] * 3
    assert condition.has_view.tolist() == [[False]] * 3


def test_conditions_that_do_not_fit_are_refused():
    prior = make_prior()
    with pytest.raises(ValueError, match="rows of text, image"):
        prior.condition(some_text(2), batch=3)
    with pytest.raises(ValueError, match="rows of text, image"):
        prior.condition()
    with pytest.raises(ValueError, match="widths"):
        prior.condition(image=torch.ones(1, 7))


def test_another_encoder_or_clip_is_refused():
    prior = make_prior()
    prior.check(encoder_digest="e" * 64, clip_digest="c" * 64)
    with pytest.raises(UserError, match="CLIP cccccccccccc, but was given ffff"):
        prior.check(clip_digest="f" * 64)
    with pytest.raises(UserError, match="Use the encoder of the prior's own run"):
        prior.check(encoder_digest="f" * 64)


def test_a_group_that_does_not_divide_the_tokens_is_refused():
    with pytest.raises(UserError, match="must divide the latents' 8 tokens"):
        Denoiser(SHAPES, NetworkConfig(width=16, depth=1, heads=2, group=3))


def test_unstandardise_inverts_standardise_and_clamps():
    prior = make_prior()
    latent = torch.rand(5, 8, 4, dtype=torch.float64) * 1.6 - 0.8
    mean, std = standardisation(latent)
    prior.network.standard_mean.copy_(mean)
    prior.network.standard_std.copy_(std)
    torch.testing.assert_close(prior.unstandardise(prior.standardise(latent)), latent)
    assert float(prior.unstandardise(100 * torch.ones(1, 8, 4).double()).max()) == 1
    ends = torch.stack([-torch.ones(8, 4), torch.ones(8, 4)]).double()
    torch.testing.assert_close(prior.unstandardise(torch.stack(prior.bounds())), ends)


def test_a_common_standardisation_keeps_what_numbers_are_to_one_another():
    latents = torch.randn(500, 2, 3) * torch.tensor([0.1, 1.0, 3.0]) + 2
    mean, std = standardisation(latents, common=True)
    assert std.shape == mean.shape == (2, 3) and std.unique().numel() == 1
    torch.testing.assert_close(((latents - mean) / std).square().mean(), torch.tensor(1.0))


def test_standardisation_is_mean_and_deviation_for_many_assets():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    mean, std = standardisation(torch.randn(20000, 2, 2, generator=generator) * scale + 0.5)
    torch.testing.assert_close(mean, torch.full((2, 2), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(std, scale, atol=0, rtol=0.02)


def test_numbers_that_never_vary_keep_a_floor_and_few_assets_are_drawn_to_the_mean():
    latents = torch.randn(50, 4, 4, generator=torch.Generator().manual_seed(0))
    latents[:, 0, 0] = 0.3
    _, std = standardisation(latents, strength=0.0)
    assert float(std[0, 0]) == pytest.approx(0.05 * float((std**2).mean().sqrt()), rel=0.05)
    _, drawn = standardisation(latents, strength=8.0)
    assert float(drawn.std()) < float(std.std())
    _, alike = standardisation(torch.zeros(3, 2, 2))
    assert torch.isfinite(1 / alike).all()


def test_latents_that_are_not_finite_are_refused_by_name():
    latents = torch.zeros(3, 2, 2)
    latents[1, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"1 of 3 latents hold NaN or infinity \(chair\)"):
        check_finite(latents, ["boat", "chair", "mug"], "latents", "The encoder that made them")


WIDE = Shapes(
    tokens=8, channels=4, clip_dim=6, text_width=5, grid_width=3, classes=("chair", "mug"), layers=(6, 2)
)


def wide_prior(**network: object) -> Prior:
    torch.manual_seed(0)
    model = Denoiser(WIDE, NetworkConfig(width=16, depth=2, heads=2, group=2, **network)).double()  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    facts = {"digest": "d", "encoder": "e" * 64, "clip": "c" * 64}
    return Prior(model, WIDE, DiffusionConfig(), facts)


WAYS = [
    {}, {"pooled": "token"}, {"tokens": "token"}, {"pooled": "token", "tokens": "token"}, {"tokens": "none"}
]  # fmt: skip


@pytest.mark.parametrize("network", WAYS)
def test_every_way_of_conditioning_hears_each_condition_and_forgets_all_of_them(network: dict):
    prior, (x, sigma), text = wide_prior(**network), some_noise(2), some_text(2)
    views, grid = torch.randn(2, 3, 6), torch.randn(2, 3, 4, 3)
    conditions = {
        "none": prior.condition(batch=2), "text": prior.condition(text),
        "image": prior.condition(image=views, grid=grid),
        "label": prior.condition(label=torch.tensor([0, 1])),
    }  # fmt: skip
    if network.get("tokens") != "none":
        conditions["grid"] = prior.condition(image=views, grid=grid + 1)
    answers = {name: prior.denoise(x, sigma, condition) for name, condition in conditions.items()}
    names = list(answers)
    for i, name in enumerate(names):
        for other in names[:i]:
            assert float((answers[name] - answers[other]).abs().max()) > 1e-4, (name, other)
    everything = prior.condition(text, views, grid=grid, label=torch.tensor([0, 1]))
    torch.testing.assert_close(
        prior.denoise(x, sigma, everything.without()),
        prior.denoise(x, sigma, prior.condition(text, views, grid=0 * grid).without()),
    )


@pytest.mark.parametrize("network", WAYS)
def test_what_is_not_shown_is_not_read(network: dict):
    prior, (x, sigma), text = wide_prior(**network), some_noise(2), some_text(2)
    views, grid = torch.randn(2, 3, 6), torch.randn(2, 3, 4, 3)
    shown = torch.tensor([[True, False, True], [True, True, False]])
    one = replace(prior.condition(text, views, grid=grid), has_view=shown)
    hidden = ~shown[..., None]
    other = prior.condition(
        TextEmbedding(text.pooled, torch.where(text.mask[..., None], text.tokens, 9.0), text.mask),
        torch.where(hidden, 9.0, views), grid=torch.where(hidden[..., None], 9.0, grid),
    )  # fmt: skip
    torch.testing.assert_close(
        prior.denoise(x, sigma, one), prior.denoise(x, sigma, replace(other, has_view=shown))
    )


def test_grids_and_labels_that_do_not_fit_are_refused():
    prior = wide_prior()
    with pytest.raises(ValueError, match="grids of width 3"):
        prior.condition(image=torch.ones(1, 6))
    with pytest.raises(ValueError, match="grids of width 0"):
        make_prior().condition(image=torch.ones(1, 6), grid=torch.ones(1, 1, 4, 3))
    with pytest.raises(ValueError, match="labels are numbers below 2"):
        prior.condition(label=torch.tensor([2]))


def test_checkpointing_changes_neither_the_answer_nor_its_gradient():
    gradients = []
    for checkpointing in (False, True):
        prior, (x, sigma) = wide_prior(checkpointing=checkpointing), some_noise(2)
        network = prior.network.requires_grad_(True)
        network(x, sigma, prior.condition(some_text(2))).square().mean().backward()
        gradients.append(network.inp.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("name", "shapes", "low", "high"),
    [
        ("mini", (64, 16, 128, 96), 1.8, 2.4), ("tiny", (64, 16, 128, 96), 8, 9),
        ("small", (64, 16, 512, 512), 30, 45), ("base", (256, 64, 768, 768), 140, 170),
        ("shap_e", (1024, 1024, 768, 768), 300, 320),
    ],
)  # fmt: skip
def test_presets_have_the_sizes_that_they_promise(name: str, shapes: tuple, low: float, high: float):
    config = load_config(PriorConfig, Path("configs/prior") / f"{name}.yaml")
    with torch.device("meta"):
        model = Denoiser(Shapes(*shapes), config.network)
    assert low < sum(p.numel() for p in model.parameters()) / 1e6 < high


def with_components(num: int = 6) -> tuple[Prior, torch.Tensor]:
    """A prior fresh from principal components, and the standardised latents that they are of."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(40, 5, generator=generator) @ torch.randn(5, 32, generator=generator)
    latents = (mixed / mixed.std(0)).unflatten(1, (8, 4)) - mixed.mean(0).view(8, 4)
    latents = latents - latents.mean(0)
    torch.manual_seed(0)
    network = Denoiser(SHAPES, NetworkConfig(width=16, depth=2, heads=2, components=num)).double()
    basis, variance = principal_components(latents, (), num)
    network.basis.copy_(basis)
    network.variance.copy_(variance)
    return Prior(
        network, SHAPES, DiffusionConfig(target="x0"), {"digest": "", "encoder": "", "clip": ""}
    ), latents


def test_the_skip_is_the_best_linear_denoiser_where_noise_is_low_and_fades_where_it_is_high():
    """C (C + sigma^2)^-1 x / (1 + sigma^2), C the latents' covariance, which five axes span here."""
    prior, latents = with_components()
    flat = latents.flatten(1).double()
    covariance = flat.T @ flat / (len(flat) - 1)
    x, sigma = some_noise(3)
    for row in range(3):
        shrink = covariance @ torch.linalg.inv(
            covariance + sigma[row] ** 2 * torch.eye(32, dtype=torch.float64)
        )
        expected = (shrink @ x[row].flatten()).view(8, 4) / (1 + sigma[row] ** 2)
        found = prior.denoise(x, sigma, prior.condition(batch=3))[row]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_answers_stay_within_the_components_and_layers_have_their_own():
    prior, latents = with_components()
    for parameter in prior.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, sigma = some_noise(3)
    answer = prior.denoise(x, sigma, prior.condition(batch=3)).flatten(1)
    basis = prior.network.get_buffer("basis")
    torch.testing.assert_close(answer @ basis.T @ basis, answer, rtol=1e-5, atol=1e-5)
    own = principal_components(latents, (2, 6), 4)[0].view(2, 2, 8, 4)
    assert not own[0, :, 2:].any() and not own[1, :, :2].any()
    assert num_components(latents, (2, 6), 1000) == 2 * 8  # numbers of the smaller layer
    assert num_components(latents[:3], (2, 6), 1000) == 2 * 3
    assert num_components(latents, (), 0) == 0


@pytest.mark.parametrize("said", ["diffusion.target=v", "network.kind=shap_e_text"])
def test_components_need_a_network_of_ours_that_says_x0(said: str):
    with pytest.raises(UserError, match=r"network\.components adds the input"):
        load_config(PriorConfig, None, ["network.components=4", "diffusion.target=x0", said])


CLOUD = Shapes(tokens=8, channels=6, clip_dim=6, text_width=5, is_set=True)


def test_points_that_change_places_change_places_in_the_answer():
    torch.manual_seed(0)
    network = Denoiser(CLOUD, NetworkConfig(width=16, depth=2, heads=2)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prior = Prior(network, CLOUD, DiffusionConfig(), {"digest": "", "encoder": "", "clip": ""})
    x = torch.randn(3, 8, 6, dtype=torch.float64)
    sigma, order = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64), torch.randperm(8)
    condition = prior.condition(some_text(3))
    found = prior.denoise(x[:, order], sigma, condition)
    torch.testing.assert_close(found, prior.denoise(x, sigma, condition)[:, order])


@pytest.mark.parametrize("size", [{"group": 2}, {"components": 4}])
def test_what_goes_by_the_tokens_order_is_refused_for_a_set(size: dict[str, int]):
    with pytest.raises(UserError, match="points of a cloud have none"):
        Denoiser(CLOUD, NetworkConfig(width=16, depth=1, heads=2, **size))
