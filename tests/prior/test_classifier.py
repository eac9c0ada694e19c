"""The noisy classifier against the exact posterior of its toy latents, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prior.classifier import (
    ClassifierConfig,
    ClassifierTask,
    LatentClassifier,
    load_classifier,
    main,
    new_classifier,
)
from prior.denoiser import Denoiser, NetworkConfig
from prior.model import Prior, load_prior
from prior.train import main as train_prior
from shapeloom.config import UserError
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.runs import Run
from tests.prior.test_train import centre, write_latents

QUICK = ("train={steps: 1, batch_size: 8, warmup_steps: 0, precision: fp32}", "network={width: 16, heads: 2}")
LEARN = (
    "network={width: 32, depth: 1, heads: 2, group: 4}",
    "train={steps: 150, batch_size: 64, learning_rate: 0.003, warmup_steps: 10, precision: fp32, "
    "ema_decay: 0.95, picture_every: 75}",
)


def categorise(i: int, sample: dict) -> None:
    sample["json"]["category"] = f"kind {i % 4}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents around four centres, an untrained prior that knows their statistics, and a classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    write_latents(folder / "latents", change=categorise)
    train_prior(["--out", str(folder / "prior"), "--set", f"latents={folder / 'latents'}", *QUICK])
    learn(folder, folder / "classifier", *LEARN)
    return folder


def learn(folder: Path, out: Path, *settings: str) -> None:
    inputs = (f"prior={folder / 'prior'}", f"latents={folder / 'latents'}")
    main(["--out", str(out), "--set", *inputs, *settings])


def fresh(spread: float = 0.05) -> tuple[LatentClassifier, torch.Tensor, torch.Tensor]:
    """An untrained classifier of four kinds, for a prior that doesn't standardise, its latents and kinds."""
    shapes, network = Shapes(tokens=4, channels=3, clip_dim=6, text_width=5), NetworkConfig(width=16, heads=2)
    facts = {"digest": "", "encoder": "", "clip": ""}
    prior = Prior(Denoiser(shapes, network), shapes, DiffusionConfig(), facts)
    label = torch.arange(4).repeat(64)
    noise = spread * torch.randn(256, 4, 3, generator=torch.Generator().manual_seed(0))
    latent = torch.stack([torch.from_numpy(centre(k)).float() for k in range(4)])[label] + noise
    config = ClassifierConfig(network={"width": 32, "depth": 1, "heads": 2, "group": 2})
    model = new_classifier(prior, latent, label, config)
    return LatentClassifier(model, list("abcd"), digest="", encoder=""), latent, label


def test_untrained_it_knows_gaussian_classes_exactly():
    classifier, latent, label = fresh(spread=0.5)
    means = torch.stack([latent[label == k].mean(0) for k in range(4)])
    variance = (latent - means[label]).square().mean()
    sigma = torch.linspace(0.1, 3, 256)
    x = latent + sigma[:, None, None] * torch.randn(256, 4, 3, generator=torch.Generator().manual_seed(1))
    distance = (x[:, None] - means).square().flatten(2).sum(-1)
    expected = torch.log_softmax(-distance / (2 * (variance + sigma**2))[:, None], dim=1)
    found = classifier.log_probability(x, sigma, label)
    torch.testing.assert_close(found, expected.gather(1, label[:, None])[:, 0], atol=1e-4, rtol=1e-4)


def test_where_a_token_stands_says_little_beside_what_it_holds_at_first():
    model, *_ = fresh()
    assert 0 < float(model.network.position.detach().abs().max()) < 0.1


def test_guidance_stays_bounded_as_noise_grows():
    """sigma^2 times the gradient by x is what guidance adds."""
    classifier, latent, label = fresh()
    torch.manual_seed(0)
    for parameter in classifier.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sizes = []
    for level in (1e2, 1e4):
        x = (latent + level * torch.randn(latent.shape)).requires_grad_()
        score = classifier.log_probability(x, torch.full((len(x),), level), label).sum()
        sizes.append(float((level**2 * torch.autograd.grad(score, x)[0]).norm(dim=(1, 2)).mean()))
    assert sizes[0] / 10 < sizes[1] < 10 * sizes[0]


def test_accuracy_on_held_out_latents_falls_with_noise(tmp_path: Path):
    classifier, latent, label = fresh()
    run = Run.open(tmp_path, ClassifierConfig(), stage="classifier")
    known, held_out = (latent[:128], label[:128]), (latent[128:], label[128:])
    task = ClassifierTask(classifier.network, known, held_out, (0.02, 80.0), run, seed=0)
    measured = task.measure(classifier.network)
    assert measured["held_out/accuracy_sigma0.1"] == 1 > measured["held_out/accuracy_sigma5"] > 0.2
    assert measured["held_out/loss_sigma0.1"] < measured["held_out/loss_sigma5"] < 1.5  # log 4 is chance
    alone = ClassifierTask(classifier.network, known, None, (0.02, 80.0), run, seed=0)
    assert alone.measure(classifier.network) == {}


def test_it_says_the_posterior_of_four_centres(folder: Path):
    classifier, prior = load_classifier(folder / "classifier"), load_prior(folder / "prior")
    classifier.check(prior)
    centres = prior.standardise(torch.stack([torch.from_numpy(centre(k)).float() for k in range(4)]))
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(4).repeat(64)
    for level in (0.5, 1.5):
        sigma = torch.full((len(label),), level)
        x = centres[label] + level * torch.randn(len(label), 4, 3, generator=generator)
        # The centres' own spread is small beside these levels.
        distance = (x[:, None] - centres).square().flatten(2).sum(-1)
        truth = torch.softmax(-distance / (2 * level**2), dim=1).gather(1, label[:, None])[:, 0]
        found = classifier.log_probability(x, sigma, label).exp()
        # A guess that ignores x is off by 0.6 and more.
        assert float((found - truth).abs().mean()) < 0.1


def test_its_gradient_points_to_the_named_centre(folder: Path):
    classifier, prior = load_classifier(folder / "classifier"), load_prior(folder / "prior")
    centres = prior.standardise(torch.stack([torch.from_numpy(centre(k)).float() for k in range(4)]))
    label = torch.arange(4)
    x = centres.mean(0, keepdim=True).expand(4, -1, -1).clone().requires_grad_()
    score = classifier.log_probability(x, torch.full((4,), 1.5), label).sum()
    slope = torch.autograd.grad(score, x)[0]
    gain = torch.einsum("itc,jtc->ij", slope, centres - centres.mean(0))
    assert torch.equal(gain.argmax(1), label)


def test_classes_of_several_clusters_whose_means_say_nothing_are_learnt(folder: Path, tmp_path: Path):
    def crossed(i: int, sample: dict) -> None:
        sign = 1 if i % 8 < 4 else -1
        sample["json"]["category"] = f"kind {i % 2}"
        sample["latent.npy"] = (sign * centre(i % 2) + sample["latent.npy"] - centre(i % 4)).astype(
            np.float16
        )

    write_latents(tmp_path / "latents", change=crossed)
    train_prior(["--out", str(tmp_path / "prior"), "--set", f"latents={tmp_path / 'latents'}", *QUICK])
    learn(tmp_path, tmp_path / "classifier", *LEARN)
    classifier, prior = load_classifier(tmp_path / "classifier"), load_prior(tmp_path / "prior")
    x = torch.stack([sign * torch.from_numpy(centre(k)).float() for k in range(2) for sign in (1, -1)])
    label = torch.tensor([0, 0, 1, 1])
    found = classifier.log_probability(prior.standardise(x), torch.full((4,), 0.3), label)
    assert found.exp().min() > 0.9
    classifier.network.out.weight.zero_()
    classifier.network.out.bias.zero_()
    # Both means are near the middle, so that clusters on opposite sides are told apart half of the time.
    alone = classifier.log_probability(prior.standardise(x), torch.full((4,), 0.3), label)
    assert alone.exp().min() < 0.5


def test_held_out_accuracy_is_recorded(folder: Path):
    losses = json.loads((folder / "classifier" / "meta.json").read_text())["losses"]
    assert losses["held_out/accuracy_sigma0.1"] == 1
    assert losses["held_out/accuracy_sigma5"] < 1


def test_a_finished_classifier_is_left_alone(folder: Path):
    before = (folder / "classifier" / "weights.safetensors").read_bytes()
    learn(folder, folder / "classifier", *LEARN)
    assert (folder / "classifier" / "weights.safetensors").read_bytes() == before


def test_what_cannot_be_learnt_from_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="needs --set prior="):
        main(["--out", str(tmp_path / "a")])
    write_latents(tmp_path / "nameless")
    with pytest.raises(UserError, match="0 categories"):
        learn(folder, tmp_path / "b", f"latents={tmp_path / 'nameless'}", *QUICK)
    write_latents(tmp_path / "other", change=categorise, encoder="f" * 64)
    with pytest.raises(UserError, match="trained with the encoder eeee"):
        learn(folder, tmp_path / "c", f"latents={tmp_path / 'other'}", *QUICK)
    with pytest.raises(UserError, match="must divide the latents' 4 tokens"):
        learn(folder, tmp_path / "d", *QUICK, "network.group=3")


def test_a_classifier_of_other_latents_is_refused(folder: Path):
    classifier, prior = load_classifier(folder / "classifier"), load_prior(folder / "prior")
    prior.network.standard_mean += 1
    with pytest.raises(UserError, match="standardises its latents otherwise"):
        classifier.check(prior)
    prior.encoder_digest = "f" * 64
    with pytest.raises(UserError, match="latents of the encoder eeee"):
        classifier.check(prior)
