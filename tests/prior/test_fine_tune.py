"""Fine-tuning: a new kind is learnt, the old ones are measured and kept, and only fitting runs are taken."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prior.fine_tune import FineTuneConfig, check_conditions, start_from, warn_of_forgetting
from prior.latents import MixtureConfig
from prior.model import Prior, load_prior
from prior.task import PriorConfig, read_latents
from prior.train import main, new_model
from shapeloom.config import UserError
from tests.prior.test_train import SETTINGS, Points, write_latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old and new latents, and a prior of the old ones."""

    def move(i: int, sample: dict) -> None:
        sample["latent.npy"] = -sample["latent.npy"]
        sample["text_pooled.npy"] = -sample["text_pooled.npy"]

    folder = tmp_path_factory.mktemp("fine_tune")
    write_latents(folder / "old")
    write_latents(folder / "new", change=move)
    main(["--out", str(folder / "prior"), "--set", f"latents={folder / 'old'}", *SETTINGS, "train.steps=150"])
    return folder


def fine_tune(folder: Path, out: Path, *settings: str) -> dict:
    main([
        "--out", str(out), "--set", f"latents={folder / 'new'}", f"fine_tune.init_from={folder / 'prior'}",
        f"fine_tune.old_latents={folder / 'old'}", *SETTINGS, "train.steps=60", *settings,
    ])  # fmt: skip
    return json.loads((out / "meta.json").read_text())["losses"]


@pytest.mark.parametrize("rank", [0, 4])
def test_the_new_is_learnt_and_replay_keeps_the_old(
    folder: Path, tmp_path: Path, rank: int, caplog: pytest.LogCaptureFixture
):
    losses = fine_tune(folder, tmp_path / "a", f"fine_tune.lora_rank={rank}", "fine_tune.replay=0.5")
    before, after = losses["before"], losses["0.97"]
    assert after["held_out/loss"] < 0.8 * before["held_out/loss"]
    without = fine_tune(folder, tmp_path / "b", f"fine_tune.lora_rank={rank}", "fine_tune.replay=0")
    assert without["0.97"]["old/loss"] > 1.1 * after["old/loss"]
    assert "raised the loss on the old latents" in caplog.text
    prior = load_prior(tmp_path / "a")  # plain weights, whatever the rank
    start = load_file(folder / "prior" / "weights.safetensors")
    assert prior.network.state_dict().keys() == start.keys()
    assert torch.equal(prior.network.standard_mean, start["standard_mean"])
    frozen = torch.equal(prior.network.inp.weight, start["inp.weight"])
    assert frozen == bool(rank)


def test_of_the_last_layers_alone_blocks_and_head_train(tmp_path: Path):
    config = PriorConfig(network={"width": 16, "depth": 6, "heads": 2})
    latents = read_latents(write_latents(tmp_path), "train", config)
    facts = {"digest": "", "encoder": "e" * 64, "clip": "c" * 64}

    def trained(**settings: int) -> set[str]:
        prior = Prior(new_model(latents, config), latents.shapes, config.diffusion, facts)
        model = start_from(
            prior, FineTuneConfig(init_from=tmp_path, **settings), latents, facts,
            network=config.network, diffusion=config.diffusion, seed=0,
        )  # fmt: skip
        names = [name.split(".") for name, value in model.named_parameters() if value.requires_grad]
        return {".".join(name[: 2 if name[0] == "blocks" else 1]) for name in names}

    assert trained(last_layers=2) == {"blocks.4", "blocks.5", "out_modulate", "out"}
    assert trained(last_layers=2, lora_rank=1) == {"blocks.4", "blocks.5"}
    assert {"inp", "blocks.0", "blocks.5", "out"} < trained()
    with pytest.raises(UserError, match=r"fine_tune\.last_layers=7, of 6 blocks"):
        trained(last_layers=7)


@pytest.mark.parametrize(("after", "warned"), [(0.9, False), (1.05, False), (1.15, True)])
def test_a_tenth_more_loss_on_the_old_is_worth_a_warning(
    after: float, warned: bool, caplog: pytest.LogCaptureFixture
):
    warn_of_forgetting({"old/loss": 1.0}, {"old/loss": after})
    assert ("raised the loss on the old latents" in caplog.text) == warned


class OnePicture(Points):
    reads = "image"


def test_a_network_of_one_picture_is_shown_one_picture_or_nothing(tmp_path: Path):
    latents = read_latents(write_latents(tmp_path), "train", PriorConfig())
    model, fitting = OnePicture(latents.shapes), {"no_condition": 0.1, "image_only": 0.9, "text_and_image": 0}
    check_conditions(model, MixtureConfig(**fitting), [latents])
    for other in ({"image_only": 0.8}, {"max_views": 2}):
        with pytest.raises(UserError, match="reads one picture alone"):
            check_conditions(model, MixtureConfig(**(fitting | other)), [latents])


def test_other_encoders_networks_and_shapes_are_refused(folder: Path, tmp_path: Path):
    write_latents(tmp_path / "other", encoder="f" * 64)
    other = tmp_path / "other"
    with pytest.raises(UserError, match="trained with the encoder eeee"):
        fine_tune(folder, tmp_path / "a", f"latents={other}", "fine_tune.old_latents=null")
    write_latents(tmp_path / "clip", clip="f" * 64)
    with pytest.raises(UserError, match="trained with the CLIP cccc"):
        fine_tune(folder, tmp_path / "a2", f"latents={tmp_path / 'clip'}", "fine_tune.old_latents=null")
    with pytest.raises(UserError, match=r"old_latents=.* were made by another encoder"):
        fine_tune(folder, tmp_path / "b", f"fine_tune.old_latents={other}")
    with pytest.raises(UserError, match="was trained with network"):
        fine_tune(folder, tmp_path / "c", "network.depth=3")

    def wider(i: int, sample: dict) -> None:
        sample["latent.npy"] = np.tile(sample["latent.npy"], (2, 1))

    write_latents(tmp_path / "wide", change=wider)
    with pytest.raises(UserError, match="but these latents are"):
        fine_tune(folder, tmp_path / "d", f"latents={tmp_path / 'wide'}", "fine_tune.old_latents=null")
    with pytest.raises(UserError, match="mean nothing without init_from"):
        main(["--out", str(tmp_path / "e"), "--set", "fine_tune.lora_rank=2"])
