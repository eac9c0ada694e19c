"""The judge is never the conditioner, and its probes are ordinary logistic regressions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.judge import (
    JudgeConfig,
    NoJudge,
    Probe,
    fit_probe,
    make_judge,
    pooled,
    refuse_conditioner,
)
from prior.train_clip import DualEncoderConfig
from shapeloom import distributed
from shapeloom.config import UserError, load_config
from shapeloom.training import TrainConfig

SMALL = DualEncoderConfig(
    split="train", num_views=2, embed_dim=16, image_size=16, image_width=32, image_layers=1, text_width=32,
    text_layers=1, train=TrainConfig(steps=2, batch_size=4, warmup_steps=1, precision="fp32"),
)  # fmt: skip


def test_a_judge_with_one_changed_key_is_still_trained_apart_from_the_conditioner() -> None:
    config = load_config(JudgeConfig, None, ["clip.train.batch_size=8", "clip.embed_dim=16"])
    conditioner = DualEncoderConfig()
    assert config.clip.split == "judge" != conditioner.split
    assert config.clip.train.seed != conditioner.train.seed


def test_equal_digests_are_refused_with_advice() -> None:
    refuse_conditioner("a", "b")
    with pytest.raises(UserError, match=r"judge\.clip\.train\.seed"):
        refuse_conditioner("a", "a")


def test_a_judge_that_is_the_conditioner_is_refused_and_a_finished_one_is_loaded(
    ball_dataset: Path, tmp_path: Path
) -> None:
    world = distributed.start()
    config = JudgeConfig(clip=SMALL)
    judge = make_judge(ball_dataset, config, tmp_path / "judge", conditioner="", world=world)
    again = make_judge(ball_dataset, config, tmp_path / "judge", conditioner="", world=world)
    assert again.clip.digest == judge.clip.digest
    with pytest.raises(UserError, match="very CLIP that conditioned"):
        make_judge(ball_dataset, config, tmp_path / "judge", conditioner=judge.clip.digest, world=world)
    # All balls are red balls: there is nothing to tell apart.
    assert judge.probes == {}
    assert "colour" in judge.skipped["colour"] and "categories" in judge.skipped["family"]


def test_data_without_the_judges_split_says_what_to_do(ball_dataset: Path, tmp_path: Path) -> None:
    world = distributed.start()
    with pytest.raises(NoJudge, match=r"splits\.judge"):
        make_judge(ball_dataset, JudgeConfig(), tmp_path / "judge", conditioner="", world=world)


def test_a_probe_separates_what_a_plane_separates() -> None:
    rng = np.random.default_rng(0)
    centres = F.normalize(torch.from_numpy(rng.normal(size=(3, 8))).float(), dim=-1)
    number = rng.integers(0, 3, 300)
    embeddings = F.normalize(
        centres[number] + 0.1 * torch.from_numpy(rng.normal(size=(300, 8))).float(), dim=-1
    )
    labels = [("red", "green", "blue")[i] for i in number]
    probe = fit_probe(embeddings[:200], labels[:200], penalty=1e-4)
    right = np.array(probe.predict(embeddings[200:, None])) == np.array(labels[200:])
    assert right.mean() > 0.97  # centres are about 1.4 apart, noise is 0.28


def test_a_probe_at_its_optimum_has_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(60, 4, generator=generator)
    labels = [("a", "b")[i % 2] for i in range(60)]
    probe = fit_probe(embeddings, labels, penalty=0.01)
    weight, bias = probe.weight.requires_grad_(), probe.bias.requires_grad_()
    target = torch.tensor([i % 2 for i in range(60)])
    loss = F.cross_entropy(embeddings @ weight + bias, target) + 0.01 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-4  # L-BFGS stops at 1e-7 times a few, in float32


def test_views_vote_together() -> None:
    probe = Probe(["a", "b"], torch.tensor([[1.0, -1.0]]), torch.zeros(2))
    assert probe.predict(torch.tensor([[[0.9], [-0.2], [-0.2]], [[-0.9], [0.2], [0.2]]])) == ["a", "b"]
    with pytest.raises(ValueError, match="two classes"):
        fit_probe(torch.ones(3, 2), ["a", "a", "a"], penalty=1.0)


def test_the_mean_of_views_has_unit_length() -> None:
    views = F.normalize(torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.allclose(pooled(views).norm(dim=-1), torch.ones(5))
