"""The prior's trainer through its command line: it learns, resumes, and refuses what it can't use."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prior.fine_tune import check_conditions
from prior.latents import Latents, MixtureConfig
from prior.model import Prior, load_prior
from prior.task import PriorConfig, PriorTask, read_latents
from prior.train import main
from sampling.guidance import prior_sigmas
from shapeloom.clip import TextEmbedding
from shapeloom.config import Config, UserError
from shapeloom.denoising import Condition, DenoisingNetwork, Shapes
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.samplers import initial_noise, sample
from shapeloom.diffusion.schedules import make_schedule
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.diffusion.variance import learned_log_variance, variance_loss
from shapeloom.runs import Run
from shapeloom.seed import numpy_rng
from shapeloom.shards import finish_dataset, write_shard
from shapeloom.shards.tensors import LatentShards

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


def write_latents(
    folder: Path, *, change: Callable[[int, dict], None] = lambda i, sample: None, **facts
) -> Path:
    """change(i, sample) alters asset i before it is written; facts go into the header."""
    rng, samples = np.random.default_rng(0), []
    for i in range(96):
        kind, split = i % 4, "val" if i % 16 > 11 else "train"
        latent = centre(kind) + rng.normal(0, 0.05, (4, 3))
        samples.append({
            "__key__": f"asset{i:03d}",
            "json": {"captions": [f"kind {kind}"] * (1 + i % 2), "split": split, "group": f"g{i}"},
            "latent.npy": latent.astype(np.float16),
            "text_pooled.npy": np.repeat(WORDS[kind : kind + 1], 1 + i % 2, axis=0),
            "text_tokens.npy": np.repeat(WORDS[None, kind : kind + 1, :5], 1 + i % 2, axis=0),
            "text_mask.npy": np.ones((1 + i % 2, 1), bool),
            "image_pooled.npy": -np.repeat(WORDS[kind : kind + 1], 2, axis=0),
        })  # fmt: skip
        change(i, samples[-1])
    write_shard(folder / "shards" / "000000.tar", samples)
    facts = {"encoder": "e" * 64, "clip": "c" * 64, "data": "d" * 64, "tokens": 4, "channels": 3, **facts}
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


class Points(DenoisingNetwork):
    """A network of another kind: its tokens are no latents, and lie anywhere."""

    reads, standardises, clamps = "text", False, "nothing"
    sigma_range = (0.05, 20.0)

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes, self.config, self.checkpointing = shapes, Config(), False
        size = shapes.tokens * shapes.channels
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(size + shapes.clip_dim + 1, 64)])
        self.out = torch.nn.Linear(64, size)
        self.register_buffer("standard_mean", torch.zeros(shapes.tokens, shapes.channels))
        self.register_buffer("standard_std", torch.ones(shapes.tokens, shapes.channels))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
        words = condition.text_pooled * condition.has_text[:, None]
        seen = torch.cat([x.flatten(1) / (1 + sigma[:, None]), sigma.log()[:, None], 3 * words], dim=1)
        return self.out(torch.nn.functional.silu(self.blocks[0](seen))).view_as(x)

    def parts(self) -> tuple[torch.nn.ModuleList, list[torch.nn.Module]]:
        return self.blocks, [self.out]


def test_a_network_of_another_kind_is_trained_and_sampled_as_it_says_of_itself(tmp_path: Path):
    def change(i: int, sample: dict) -> None:
        sample["latent.npy"] = 3 * sample["latent.npy"]

    folder = write_latents(tmp_path / "latents", change=change)
    captions = MixtureConfig(no_condition=0.1, image_only=0, text_and_image=0)
    config = PriorConfig(latents=folder, mixture=captions, diffusion={"target": "x0"})
    latents = read_latents(folder, "train", config)
    torch.manual_seed(0)
    model = Points(latents.shapes)
    check_conditions(model, captions, [latents])
    with pytest.raises(UserError, match="captions alone"):
        check_conditions(model, MixtureConfig(), [latents])
    task = PriorTask(model, latents, config, Run.open(tmp_path / "run", config, stage="prior"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(150):
        loss, _ = task.loss(model, task.batch(range(32 * step, 32 * step + 32)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prior = Prior(model, latents.shapes, config.diffusion, {"digest": "", "encoder": "", "clip": ""})
    vectors = torch.from_numpy(WORDS).float()
    text = TextEmbedding(vectors, vectors[:, None, :5], torch.ones(4, 1, dtype=torch.bool))
    sigmas = prior_sigmas(prior, 12)
    assert (float(sigmas[0]), float(sigmas[-2])) == pytest.approx((20, 0.05))
    noise = initial_noise(torch.randn(4, *prior.shape), sigmas)
    made = prior.unstandardise(sample(prior.denoise, noise, sigmas, prior.condition(text)))
    centres = 3 * torch.tensor(np.stack([centre(k) for k in range(4)]), dtype=torch.float32)
    # Centres are 1.5 and more apart, and reach to 2.1: nothing is clamped.
    assert float((made - centres).square().mean((1, 2)).sqrt().max()) < 0.6
    assert float(made.abs().max()) > 1.5


def test_a_variance_is_learnt_that_fits_better_than_the_untrained_one(latents: Path, tmp_path: Path):
    out, steps = tmp_path / "prior", 1024
    learned = "diffusion={schedule: shap_e, target: x0, times: uniform, learned_variance: true}"
    main(["--out", str(out), "--set", f"latents={latents}", learned, *SETTINGS, "train.steps=60"])
    prior, schedule = load_prior(out), make_schedule("shap_e")
    kinds, generator = torch.arange(96) % 4, torch.Generator().manual_seed(0)
    x0 = prior.standardise(LatentShards(latents).load()["latent"].float())
    vectors = torch.from_numpy(WORDS).float()[kinds]
    text = TextEmbedding(vectors, vectors[:, None, :5], torch.ones(96, 1, dtype=torch.bool))
    condition = prior.condition(text)
    # The last step with noise, where the bounds are furthest apart.
    times = torch.tensor([2 / steps, 1 / steps])
    start, end = (schedule.sigma(times) / schedule.alpha(times))[:, None].expand(2, 96)
    x = x0 + start[:, None, None] * torch.randn(x0.shape, generator=generator)
    low, high = (learned_log_variance(torch.full_like(x, bound), start, end) for bound in (-1.0, 1.0))
    share = 2 * (prior.log_variance(x, start, end, condition) - low) / (high - low) - 1
    predicted = prior.denoise(x, start, condition)
    found, untrained = (variance_loss(x0, predicted, v, start, end) for v in (share, torch.zeros_like(share)))
    assert float(found.mean()) < 0.95 * float(untrained.mean())


def test_a_finished_run_says_so_and_changes_nothing(trained: Path, latents: Path):
    before = (trained / "weights.safetensors").read_bytes()
    main(["--out", str(trained), "--set", f"latents={latents}", *SETTINGS])
    assert (trained / "weights.safetensors").read_bytes() == before


def test_conditions_are_drawn_in_the_configured_shares(latents: Path):
    config = MixtureConfig()
    data = Latents(LatentShards(latents, "train"), config)
    drawn = [data.draw(0, numpy_rng("test", n)) for n in range(4000)]
    text = np.array([bool(d["has_text"]) for d in drawn])
    image = np.array([bool(d["has_view"].any()) for d in drawn])
    shares = {"none": (~text & ~image).mean(), "image": (~text & image).mean(), "both": (text & image).mean()}
    # Four standard errors of a share at 4000 draws.
    assert shares["none"] == pytest.approx(config.no_condition, abs=0.02)
    assert shares["image"] == pytest.approx(config.image_only, abs=0.023)
    assert shares["both"] == pytest.approx(config.text_and_image, abs=0.02)


def test_a_prior_says_how_many_views_it_was_shown(trained: Path, latents: Path, tmp_path: Path):
    assert load_prior(trained).max_views == 1
    more = ["train.steps=2", "train.warmup_steps=1", "mixture.max_views=9"]  # of which the latents have 2
    main(["--out", str(tmp_path / "prior"), "--set", f"latents={latents}", *SETTINGS, *more])
    prior = load_prior(tmp_path / "prior")
    assert prior.max_views == 2
    condition = prior.condition(
        image=torch.randn(2, 2, 6), has_view=torch.tensor([[True, True], [True, False]])
    )
    first = prior.condition(image=condition.image_pooled[:, :1])
    x, sigma = torch.randn(2, *prior.shape), torch.ones(2)
    both, one = prior.denoise(x, sigma, condition), prior.denoise(x, sigma, first)
    torch.testing.assert_close(both[1], one[1])
    assert (both[0] - one[0]).abs().max() > 1e-4


def test_bad_latents_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="needs --set latents="):
        main(["--out", str(tmp_path / "a")])
    with pytest.raises(UserError, match="not a finished latents dataset"):
        main(["--out", str(tmp_path / "b"), "--set", f"latents={tmp_path / 'nothing'}"])


def spoil(name: str, value: object) -> Callable[[int, dict], None]:
    def change(i: int, sample: dict) -> None:
        if i == 8:
            sample[name] = value(sample[name]) if callable(value) else value

    return change


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("latent.npy", with_nan), r"1 of 72 latents hold NaN or infinity \(asset008\)"),
        (spoil("text_pooled.npy", with_nan), r"caption embeddings hold NaN or infinity \(asset008\)"),
        (spoil("image_pooled.npy", with_nan), r"view embeddings hold NaN or infinity \(asset008\)"),
        (
            spoil("text_pooled.npy", np.zeros((1, 9), np.float16)),
            r"text_pooled of asset asset008 is \[1, 9\]",
        ),
        (spoil("latent.npy", np.zeros((4, 5), np.float16)), r"latent of asset asset008 is \[4, 5\]"),
        (
            spoil("json", {"captions": [" "], "split": "train", "group": "g"}),
            r"1 assets have an empty caption \(asset008\)",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_by_name(tmp_path: Path, change: Callable, message: str):
    folder = write_latents(tmp_path / "bad", change=change)
    with pytest.raises(UserError, match=message):
        main(["--out", str(tmp_path / "out"), "--set", f"latents={folder}", *SETTINGS])


def test_a_shard_cut_in_half_is_refused_by_name(tmp_path: Path):
    folder = write_latents(tmp_path / "cut")
    shard = folder / "shards" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=r"shards/000000\.tar has \d+ bytes in place of \d+"):
        main(["--out", str(tmp_path / "out"), "--set", f"latents={folder}", *SETTINGS])


def test_an_asset_without_captions_is_shown_by_its_pictures_and_counted(tmp_path: Path):
    def change(i: int, sample: dict) -> None:
        if i == 8:
            sample["json"]["captions"] = []
            for name in ("text_pooled.npy", "text_tokens.npy", "text_mask.npy"):
                sample[name] = sample[name][:0]

    folder = write_latents(tmp_path / "latents", change=change)
    data = Latents(LatentShards(folder, "train"), MixtureConfig())
    drawn = [data.draw(8, numpy_rng("test", n)) for n in range(50)]
    assert not any(bool(d["has_text"]) for d in drawn)
    assert any(bool(d["has_view"].any()) for d in drawn)
    main(["--out", str(tmp_path / "out"), "--set", f"latents={folder}", *SETTINGS, "train.steps=2"])
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["num_captionless"] == 1


def test_views_grids_classes_and_tokens_are_dropped_independently(tmp_path: Path):
    def change(i: int, sample: dict) -> None:
        sample["json"]["category"] = f"kind {i % 4}"
        sample["image_grid.npy"] = np.full((2, 5, 7), i, np.float16)

    folder = write_latents(tmp_path / "latents", change=change, layers=[2, 2])
    config = MixtureConfig(
        no_condition=0, image_only=0, text_and_image=1, max_views=2, grid=True, labels=True, drop_label=0.25,
        drop_tokens=0.5,
    )  # fmt: skip
    data = Latents(LatentShards(folder, "train"), config)
    assert data.shapes.classes == ("kind 0", "kind 1", "kind 2", "kind 3")
    assert (data.shapes.grid_width, data.shapes.layers) == (7, (2, 2))
    drawn = [data.draw(6, numpy_rng("test", n)) for n in range(2000)]
    assert all(bool((d["image_grid"] == 6).all()) for d in drawn)
    labels = np.array([int(d["label"]) for d in drawn])
    assert set(labels.tolist()) == {-1, 2}
    two = np.array([bool(d["has_view"].all()) for d in drawn])
    tokens = np.array([bool(d["text_mask"].any()) for d in drawn])
    # Four standard errors of a share at 2000 draws.
    assert (labels == -1).mean() == pytest.approx(0.25, abs=0.04)
    assert two.mean() == pytest.approx(0.5, abs=0.045) and tokens.mean() == pytest.approx(0.5, abs=0.045)
    assert np.corrcoef(np.stack([labels == -1, two, tokens]))[~np.eye(3, dtype=bool)] == pytest.approx(
        0, abs=0.09
    )
    with pytest.raises(UserError, match="clip_grid=true"):
        Latents(LatentShards(write_latents(tmp_path / "plain"), "train"), config)


def test_shares_beyond_one_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="must be at most 1"):
        main(["--out", str(tmp_path), "--set", "mixture.no_condition=0.9", "mixture.image_only=0.2"])
    with pytest.raises(UserError, match="sees captions alone"):
        main(["--out", str(tmp_path), "--set", "predict=views"])


def test_an_unfinished_prior_is_not_loaded(tmp_path: Path):
    with pytest.raises(UserError, match="not a finished prior run"):
        load_prior(tmp_path)


def test_a_prior_of_views_finds_the_pictures_that_captions_name(latents: Path, tmp_path: Path):
    from shapeloom.clip import TextEmbedding

    # Pictures' vectors have to be cut into tokens of 16 numbers; the made-up CLIP of this test is 16 wide.
    def widen(i: int, sample: dict) -> None:
        for name in ("text_pooled.npy", "image_pooled.npy"):
            sample[name] = np.pad(sample[name], ((0, 0), (0, 10)))

    folder = write_latents(tmp_path / "wide", change=widen)
    shares = ("predict=views", "mixture={image_only: 0, text_and_image: 0}")
    arguments = ["--set", f"latents={folder}", *SETTINGS, *shares, "train.steps=150"]
    main(["--out", str(tmp_path / "views"), *arguments])
    prior = load_prior(tmp_path / "views")
    assert prior.predicts == "views" and prior.shape == (1, 16)
    pooled = torch.nn.functional.pad(torch.from_numpy(WORDS).float(), (0, 10))
    text = TextEmbedding(pooled, torch.from_numpy(WORDS[:, None, :5]).float(), torch.ones(4, 1) > 0)
    sigmas = karras_sigmas(8)
    noise = torch.randn(4, *prior.shape, generator=torch.Generator().manual_seed(0))
    x0 = sample(prior.denoise, initial_noise(noise, sigmas), sigmas, prior.condition(text))
    found = torch.nn.functional.normalize(prior.unstandardise(x0).flatten(1), dim=-1)
    # A picture's vector is minus its caption's here.
    assert float((found * -pooled).sum(1).min()) > 0.8
    with pytest.raises(UserError, match="doesn't fit their width 6"):
        main(["--out", str(tmp_path / "no"), "--set", f"latents={latents}", *SETTINGS, *shares])


def test_copies_are_drawn_as_often_as_the_latents_themselves(tmp_path: Path):
    def mirror(i: int, sample: dict) -> None:
        sample["latent_copies.npy"] = np.stack([-sample["latent.npy"], 0 * sample["latent.npy"] + 0.5])

    folder = write_latents(tmp_path / "latents", change=mirror)
    latents = read_latents(folder, "train", PriorConfig())
    assert latents.copies is not None
    drawn = [latents.draw(5, numpy_rng("copies", i))["latent"] for i in range(300)]
    for each in (latents.latent[5], -latents.latent[5], torch.full((4, 3), 0.5)):
        share = np.mean([bool((one == each.float()).all()) for one in drawn])
        assert 0.25 < share < 0.42


def test_latents_of_bad_fidelity_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def rate(i: int, sample: dict) -> None:
        sample["json"]["fidelity"] = {"psnr": 10.0 + i % 2, "iou": 0.5}

    folder = write_latents(tmp_path / "latents", change=rate)
    config = PriorConfig(latents=folder, min_psnr=10.5)
    whole, kept = LatentShards(folder, "train"), read_latents(folder, "train", config)
    odd = [i for i in range(len(whole)) if int(whole.rows[i].key[-3:]) % 2]
    torch.testing.assert_close(kept.latent, torch.stack([whole.read(i)["latent"] for i in odd]))
    assert "36 of 72 assets are left out" in caplog.text
    with pytest.raises(UserError, match=r"min_psnr=12 leaves none of the 72 .* 11.0 dB at best"):
        read_latents(folder, "train", config.model_copy(update={"min_psnr": 12.0}))


def test_fidelity_that_was_not_recorded_cannot_choose(latents: Path):
    with pytest.raises(UserError, match="doesn't say how faithful"):
        read_latents(latents, "train", PriorConfig(min_psnr=10))
