"""Distillation: its targets against an ODE known in closed form; a toy prior in two calls; refusals."""

import json
from pathlib import Path

import pytest
import torch

from prior.distill import Method, ends, main, straight_x0
from prior.model import load_prior
from prior.train import main as train_prior
from shapeloom.config import UserError
from shapeloom.denoising import Condition, from_batch, select
from shapeloom.diffusion.steps import karras_sigmas
from tests.prior.test_train import SETTINGS, write_latents

SPREAD = 0.5
FEW = ("train={steps: 80, batch_size: 32, learning_rate: 0.001, warmup_steps: 5, precision: fp32, "
       "ema_decay: 0.95, checkpoint_every: 40, picture_every: 40}", "steps=2", "substeps=8",
       "guidance_scale=1.5")  # fmt: skip


def gaussian(x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
    """The exact denoiser of N(0, SPREAD^2)."""
    return x * (SPREAD**2 / (SPREAD**2 + sigma**2))[:, None, None]


def flow(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Its probability-flow ODE in closed form: spreads scale as sqrt(SPREAD^2 + sigma^2)."""
    return x * ((SPREAD**2 + end**2) / (SPREAD**2 + start**2)).sqrt()[:, None, None]


def no_condition(batch: int) -> Condition:
    rows = torch.zeros(batch, 1)
    return from_batch({
        "text_pooled": rows, "text_tokens": rows[:, None], "text_mask": rows > 0, "has_text": rows[:, 0] > 0,
        "image_pooled": rows[:, None], "has_view": rows > 0, "label": rows[:, 0].long() - 1,
    })  # fmt: skip


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_targets_end_where_the_ode_of_a_gaussian_does(method: Method):
    sigmas, substeps = karras_sigmas(128), 32
    place = torch.tensor([0, 32, 64, 96]) if method == "progressive" else torch.tensor([5, 63, 64, 100, 127])
    level, end = sigmas[place].float(), sigmas[(place // substeps + 1) * substeps].float()
    x = torch.randn(len(place), 2, 3, generator=torch.Generator().manual_seed(0)) * level[:, None, None]

    def student(x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
        last = sigmas.float()
        at = (last[None] - sigma[:, None]).abs().argmin(1)
        part_end = last[(at // substeps + 1).clamp(max=4) * substeps]
        # Of a level that ends a part nothing is asked; any lower end will do.
        return straight_x0(x, sigma, flow(x, sigma, part_end), part_end)

    found = ends(gaussian, student, method, x, place, sigmas, substeps, no_condition(len(place)))
    # Second-order solvers over 32 levels of each part (progressive) or a 128th of the way (consistency).
    torch.testing.assert_close(found, flow(x, level, end), rtol=0.02, atol=0.01)


def test_a_straight_step_with_its_x0_lands_on_its_end():
    x, x_end = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    level, end = torch.tensor([80.0, 2.0, 0.5]), torch.tensor([20.0, 0.1, 0.0])
    x0 = straight_x0(x, level, x_end, end)
    share = (end / level)[:, None, None]
    torch.testing.assert_close(x0 + share * (x - x0), x_end)


def test_rows_of_a_condition_are_selected():
    condition = select(no_condition(5), torch.tensor([3, 1]))
    assert condition.label.shape == (2,)
    assert condition.image_grid is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of four Gaussians as latents, and a prior that has learnt it."""
    folder = tmp_path_factory.mktemp("distill")
    write_latents(folder / "latents")
    train_prior(["--out", str(folder / "prior"), "--set", f"latents={folder / 'latents'}", *SETTINGS])
    return folder


def distill(folder: Path, out: Path, *settings: str) -> dict:
    main(["--out", str(out), "--set", f"teacher={folder / 'prior'}", f"latents={folder / 'latents'}", *FEW,
          *settings])  # fmt: skip
    return json.loads((out / "meta.json").read_text())


@pytest.mark.parametrize(("method", "steps"), [("progressive", 40), ("consistency", 80)])
def test_two_calls_come_closer_to_the_teacher_than_its_own_two(
    folder: Path, tmp_path: Path, method: str, steps: int
):
    meta = distill(folder, tmp_path / "few", f"method={method}", f"train.steps={steps}")
    losses = meta["losses"]
    assert losses["held_out/distance"] < 0.7 * losses["held_out/distance_undistilled"]
    assert (meta["distilled_steps"], meta["guidance_baked_in"]) == (2, 1.5)
    few = load_prior(tmp_path / "few").distilled
    assert few is not None
    assert (few.steps, few.sigmas[0], few.sigmas[-1]) == pytest.approx((2, 80, 0))


def test_what_cannot_be_distilled_is_refused(folder: Path, tmp_path: Path):
    distill(folder, tmp_path / "few", "train.steps=1", "train.warmup_steps=0")
    with pytest.raises(UserError, match="distilled already"):
        distill(folder, tmp_path / "again", f"teacher={tmp_path / 'few'}")
    write_latents(tmp_path / "other", encoder="f" * 64)
    with pytest.raises(UserError, match="trained with the encoder eeee"):
        distill(folder, tmp_path / "b", f"latents={tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"needs --set teacher="):
        main(["--out", str(tmp_path / "c")])
