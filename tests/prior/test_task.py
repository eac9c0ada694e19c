"""The prior's batches, losses and statistics by hand, with networks that haven't learnt anything."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prior.model import Prior
from prior.task import PriorConfig, PriorTask, read_held_out, read_latents
from prior.train import new_model
from shapeloom.runs import Run
from tests.prior.test_train import write_latents

NETWORK = {"width": 32, "depth": 2, "heads": 2}


class Silent(torch.nn.Module):
    """Says zero to everything, and keeps what it was shown; knows a network's statistics."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        for name in ("standard_mean", "standard_std"):
            self.register_buffer(name, network.get_buffer(name))
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x, sigma, condition):
        self.seen.append(x)
        return torch.zeros_like(x)


@pytest.mark.parametrize("spread", [0.01, 0.15])
def test_latents_are_learnt_at_unit_spread_and_brought_back_to_their_own(tmp_path: Path, spread: float):
    """Whatever the latents' spread within [-1, 1], noise levels mean the same, and samples have it again."""

    def change(i: int, sample: dict) -> None:
        latent = 0.4 + np.random.default_rng(i).normal(0, spread, (4, 3)) * np.array([1, 0.5, 0.25])
        sample["latent.npy"] = latent.astype(np.float32)

    folder = write_latents(tmp_path / "latents", change=change)
    config = PriorConfig(latents=folder, network=NETWORK, diffusion={"target": "x0"})
    latents = read_latents(folder, "train", config)
    model = new_model(latents, config)
    task = PriorTask(model, latents, config, Run.open(tmp_path / "run", config, stage="prior"))
    batch, silent = task.batch(range(64)), Silent(model)
    errors, _ = task.errors(silent, batch, torch.full((64,), 0.01))
    assert float(errors.mean()) == pytest.approx(1, abs=0.25)
    # Hardly any noise at that time: the network is shown what `standardise` makes of the latents.
    facts = {"digest": "", "encoder": "", "clip": ""}
    prior = Prior(model, latents.shapes, config.diffusion, facts)
    shown = prior.standardise(batch["latent"])
    assert float((silent.seen[0] - shown).square().mean().sqrt()) < 0.05
    torch.testing.assert_close(prior.unstandardise(shown), batch["latent"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_held_out_losses_are_means_over_all_held_out_latents(tmp_path: Path, batch_size: int):
    """Silence about x_0 costs its square, at every noise level."""
    folder = write_latents(tmp_path / "latents")
    train = {"batch_size": batch_size}
    config = PriorConfig(latents=folder, network=NETWORK, diffusion={"target": "x0"}, train=train)
    latents, held_out = read_latents(folder, "train", config), read_held_out(folder, config)
    assert held_out is not None and len(held_out.latent) == 24
    model = new_model(latents, config)
    run = Run.open(tmp_path / "run", config, stage="prior")
    losses = PriorTask(model, latents, config, run, held_out=held_out).measure(Silent(model))
    expected = ((held_out.latent.float() - model.standard_mean) / model.standard_std).square().mean()
    assert list(losses.values()) == pytest.approx([float(expected)] * len(losses), rel=1e-5)
    assert losses.keys() >= {"held_out/loss", "held_out/loss_t0.25", "held_out/loss_t0.75"}


def test_held_out_assets_are_measured_as_they_are_whatever_copies_there_are(tmp_path: Path):
    def stretch(i: int, sample: dict) -> None:
        sample["latent_copies.npy"] = 3 * sample["latent.npy"][None] + 1

    plain, copied = write_latents(tmp_path / "plain"), write_latents(tmp_path / "copied", change=stretch)
    config = PriorConfig(latents=plain, network=NETWORK, diffusion={"target": "x0"})
    model = new_model(read_latents(plain, "train", config), config)
    run = Run.open(tmp_path / "run", config, stage="prior")
    known = read_latents(copied, "train", config)
    losses = [
        PriorTask(model, known, config, run, held_out=read_held_out(folder, config)).measure(Silent(model))
        for folder in (plain, copied)
    ]
    assert losses[0] == losses[1]


def test_copies_count_as_latents_in_the_statistics(tmp_path: Path):
    def mirror(i: int, sample: dict) -> None:
        sample["latent_copies.npy"] = -sample["latent.npy"][None]

    folder = write_latents(tmp_path / "latents", change=mirror)
    config = PriorConfig(latents=folder, network=NETWORK)
    model = new_model(read_latents(folder, "train", config), config)
    torch.testing.assert_close(model.standard_mean, torch.zeros(4, 3))
