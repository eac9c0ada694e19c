"""The prior's trainer through its command line: it learns, resumes, and refuses what it can't use."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prior.denoiser import load_prior
from prior.train import Latents, PriorConfig, main
from shapeloom.config import UserError
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.samplers import initial_noise, sample
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.seed import numpy_rng
from shapeloom.shards import LatentShards, finish_dataset, write_shard

WORDS = np.eye(4, 6, dtype=np.float16)
"""A made-up CLIP: caption i's vector is unit vector i."""
SETTINGS = (
    "network={width: 32, depth: 2, heads: 2}",
    "train={steps: 300, batch_size: 32, learning_rate: 0.003, warmup_steps: 10, precision: fp32, "
    "ema_decay: 0.97, checkpoint_every: 100, picture_every: 150}",
)


def centre(kind: int) -> np.ndarray:
    """The latent [4, 3] around which assets of a kind lie."""
    return np.random.default_rng(100 + kind).uniform(-0.7, 0.7, (4, 3))


def write_latents(folder: Path, *, bad: bool = False) -> Path:
    rng, samples = np.random.default_rng(0), []
    for i in range(96):
        kind, split = i % 4, "val" if i % 16 > 11 else "train"
        latent = centre(kind) + rng.normal(0, 0.05, (4, 3))
        if bad and i == 8:
            latent[0, 0] = np.nan
        samples.append({
            "__key__": f"asset{i:03d}",
            "json": {"captions": [f"kind {kind}"] * (1 + i % 2), "split": split, "group": f"g{i}"},
            "latent.npy": latent.astype(np.float16),
            "text_pooled.npy": np.repeat(WORDS[kind : kind + 1], 1 + i % 2, axis=0),
            "text_tokens.npy": np.repeat(WORDS[None, kind : kind + 1, :5], 1 + i % 2, axis=0),
            "text_mask.npy": np.ones((1 + i % 2, 1), bool),
            "image_pooled.npy": -np.repeat(WORDS[kind : kind + 1], 2, axis=0),
        })  # fmt: skip
    write_shard(folder / "shards" / "000000.tar", samples)
    facts = {"encoder": "e" * 64, "clip": "c" * 64, "data": "d" * 64, "tokens": 4, "channels": 3}
    finish_dataset(folder, kind="latents", facts=facts)
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def trained(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "prior"
    main(["--out", str(out), "--set", f"latents={latents}", *SETTINGS])
    return out


@pytest.mark.parametrize("source", ["text", "image"])
def test_samples_lie_at_the_centre_that_their_prompt_names(trained: Path, source: str):
    prior = load_prior(trained)
    kinds = torch.arange(4)
    vectors = torch.from_numpy(WORDS).float()
    if source == "text":
        from shapeloom.clip import TextEmbedding

        text = TextEmbedding(vectors, vectors[:, None, :5], torch.ones(4, 1, dtype=torch.bool))
        condition = prior.condition(text)
    else:
        condition = prior.condition(image=-vectors)
    sigmas = karras_sigmas(12)
    noise = torch.randn(4, *prior.shape, generator=torch.Generator().manual_seed(0))
    denoise = classifier_free(prior.denoise, condition.without(), scale=1.5)
    result = prior.unstandardise(sample(denoise, initial_noise(noise, sigmas), sigmas, condition))
    centres = torch.tensor(np.stack([centre(k) for k in range(4)]), dtype=torch.float32)
    distance = (result[:, None] - centres[None]).square().mean((2, 3)).sqrt()
    assert torch.equal(distance.argmin(1), kinds)
    # Centres are 0.5 and more apart; the spread of a kind is 0.05, and guidance overshoots a little.
    assert float(distance.diagonal().max()) < 0.3


def test_the_run_records_its_inputs_and_a_falling_held_out_loss(trained: Path):
    prior = load_prior(trained)
    assert (prior.encoder_digest, prior.clip_digest) == ("e" * 64, "c" * 64)
    assert prior.shape == (4, 3)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["held_out/loss"] for line in lines if "held_out/loss" in line]
    assert len(losses) == 2
    assert losses[1] < 0.6  # about 1 for an answer that ignores its input


def test_a_finished_run_says_so_and_changes_nothing(trained: Path, latents: Path):
    before = (trained / "weights.safetensors").read_bytes()
    main(["--out", str(trained), "--set", f"latents={latents}", *SETTINGS])
    assert (trained / "weights.safetensors").read_bytes() == before


def test_conditions_are_drawn_in_the_configured_shares(latents: Path):
    data, config = Latents(LatentShards(latents, "train")), PriorConfig()
    drawn = [data.draw(0, numpy_rng("test", n), config) for n in range(4000)]
    text = np.array([bool(d["has_text"]) for d in drawn])
    image = np.array([bool(d["has_image"]) for d in drawn])
    shares = {"none": (~text & ~image).mean(), "image": (~text & image).mean(), "both": (text & image).mean()}
    # Four standard errors of a share at 4000 draws.
    assert shares["none"] == pytest.approx(config.no_condition, abs=0.02)
    assert shares["image"] == pytest.approx(config.image_only, abs=0.023)
    assert shares["both"] == pytest.approx(config.text_and_image, abs=0.02)


def test_bad_latents_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="needs --set latents="):
        main(["--out", str(tmp_path / "a")])
    with pytest.raises(UserError, match="not a finished latents dataset"):
        main(["--out", str(tmp_path / "b"), "--set", f"latents={tmp_path / 'nothing'}"])
    folder = write_latents(tmp_path / "bad", bad=True)
    with pytest.raises(UserError, match=r"hold NaN or infinity \(asset008\)"):
        main(["--out", str(tmp_path / "c"), "--set", f"latents={folder}", *SETTINGS])


def test_shares_beyond_one_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="must be at most 1"):
        main(["--out", str(tmp_path), "--set", "no_condition=0.9", "image_only=0.2"])


def test_an_unfinished_prior_is_not_loaded(tmp_path: Path):
    with pytest.raises(UserError, match="not a finished prior run"):
        load_prior(tmp_path)
