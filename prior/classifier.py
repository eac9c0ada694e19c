"""Trains a classifier of noisy latents, by whose gradient a prior's samples can be steered.

    python -m prior.classifier --config configs/prior/classifier_tiny.yaml --out RUN/classifier \\
        --set prior=RUN/prior latents=RUN/latents

It learns log p(category | x, sigma) of x = x_0 + sigma eps (Dhariwal & Nichol 2021, "Diffusion Models Beat
GANs on Image Synthesis", section 4), x_0 standardised as the prior's. Its gradient is asked for at all
levels, and right answers alone don't make that right: the logits start from those of Gaussian classes of one
variance,

    log p(x | class m, sigma) = (mu_m . x - |mu_m|^2 / 2) / (v + sigma^2) + what all classes share,

which hold exactly at high noise; a transformer learns what is to be added. Labels are the categories of the
latents' assets. `python -m sampling --set classifier=RUN/classifier guidance.classifier_scale=2` follows it.
The folder holds weights.safetensors (EMA) and classifier.json.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from prior.latents import check_finite
from prior.model import Prior, load_prior
from shapeloom import distributed
from shapeloom.config import Config, UserError, parse_stage, run_main, validated
from shapeloom.denoising import MAX_SIZE
from shapeloom.log import get_logger, start_logging
from shapeloom.nn.transformer import TransformerBlock
from shapeloom.noise import normal
from shapeloom.runs import Run, read_meta
from shapeloom.saved import check_fits
from shapeloom.seed import derive_seed
from shapeloom.shards import ReadingOrder
from shapeloom.shards.tensors import LatentShards
from shapeloom.shared_run import open_run
from shapeloom.storage import AnyPath, Location, read_json, write_atomic
from shapeloom.training import TrainConfig, train
from shapeloom.weights import checked_digest, read_tensors

log = get_logger("classifier")
HELD_OUT_SIGMAS = (0.1, 0.5, 1.0, 2.0, 5.0)


class ClassifierSize(Config):
    """Size of the classifier."""

    width: int = Field(128, ge=8, le=MAX_SIZE, description="channels of a token")
    depth: int = Field(2, ge=1, le=512, description="transformer blocks")
    heads: int = Field(4, ge=1, le=512, description="attention heads")
    group: int = Field(
        default=1, ge=1, le=4096, description="neighbouring latent tokens that are joined to one"
    )


class ClassifierConfig(Config):
    """What `python -m prior.classifier` does."""

    prior: Path | None = Field(default=None, description="folder of the finished prior to be steered")
    latents: Location | None = Field(default=None, description="latents that the prior was trained on")
    split: str = Field(default="train", description="which assets to learn from")
    network: ClassifierSize = ClassifierSize()
    train: TrainConfig = TrainConfig(
        steps=300, batch_size=64, learning_rate=1e-3, warmup_steps=20, weight_decay=0.1, ema_decay=0.98
    )


class Classifier(nn.Module):
    """Logits of Gaussian classes, and a transformer over latent tokens that corrects them.

    The buffers `standard_*` are the prior's; `centres` are the classes' means and `variance` their common
    variance in each number, standardised.
    """

    standard_mean: Tensor
    standard_std: Tensor
    centres: Tensor
    variance: Tensor
    frequencies: Tensor

    def __init__(self, tokens: int, channels: int, num_classes: int, size: ClassifierSize) -> None:
        """Raises UserError if the size's numbers don't divide one another."""
        super().__init__()
        width, self.group = size.width, size.group
        if tokens % size.group or width % size.heads:
            raise UserError(
                f"network.group={size.group} must divide the latents' {tokens} tokens, and "
                f"network.heads={size.heads} the width {width}; choose others."
            )
        self.inp = nn.Linear(channels * size.group, width)
        self.position = nn.Parameter(torch.randn(tokens // size.group, width) * 0.02)
        self.register_buffer("frequencies", torch.exp(torch.linspace(math.log(0.25), math.log(16), 32)))
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, size.heads, None, width) for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, num_classes)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("centres", torch.zeros(num_classes, tokens * channels))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("standard_mean", torch.zeros(tokens, channels))
        self.register_buffer("standard_std", torch.ones(tokens, channels))

    def forward(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits of each class for x = x_0 + sigma eps (x_0 standardised), sigma > 0."""
        level = torch.log(sigma)[:, None] / 4 * self.frequencies  # as the denoiser's
        modulation = self.level(torch.cat([level.sin(), level.cos()], dim=-1))
        # The mean of x_0 given x, for Gaussian data of unit variance: its gradient falls as 1 / sigma^2, by
        # which guidance multiplies.
        expected = x / (1 + sigma**2)[:, None, None]
        hidden = self.inp(expected.unflatten(1, (-1, self.group)).flatten(2)) + self.position
        for block in self.blocks:
            hidden = block(hidden, None, None, modulation)
        gaussian = x.flatten(1) @ self.centres.T - self.centres.square().sum(1) / 2
        return gaussian / (self.variance + sigma**2)[:, None] + self.out(self.norm(hidden.mean(1)))


class LatentClassifier:
    """A trained classifier. Make it with `load_classifier`.

    Attributes:
        classes: names of the categories, in the order of their numbers.
        digest: SHA-256 of its weights.
        encoder_digest: of the encoder whose latents it knows.
    """

    def __init__(self, network: Classifier, classes: Sequence[str], *, digest: str, encoder: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.classes, self.digest, self.encoder_digest = tuple(classes), digest, encoder

    def log_probability(
        self,
        x: Float[Tensor, "batch tokens channels"],
        sigma: Float[Tensor, " batch"],
        label: Int64[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """log p(label | x, sigma), differentiable in x; for `diffusion.guidance.classifier_guided`."""
        answer = F.log_softmax(self.network(x, sigma), dim=-1)
        return answer.gather(1, label[:, None])[:, 0]

    def check(self, prior: Prior) -> None:
        """Raises UserError unless it was trained on latents as this prior sees them."""
        if self.encoder_digest != prior.encoder_digest:
            raise UserError(
                f"This classifier knows latents of the encoder {self.encoder_digest[:12]}, but the prior "
                f"makes those of {prior.encoder_digest[:12]}. Train one for this prior: "
                "python -m prior.classifier."
            )
        mine, theirs = self.network, prior.network
        pairs = (
            (mine.standard_mean, theirs.standard_mean),
            (mine.standard_std, theirs.standard_std),
        )
        for have, need in pairs:
            # As far as a prior in bfloat16 keeps them.
            if not torch.allclose(have, need.to(have), rtol=1e-2, atol=1e-3):
                raise UserError(
                    "This classifier was trained for a prior that standardises its latents otherwise. Train "
                    "one for this prior: python -m prior.classifier."
                )


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> LatentClassifier:
    """Loads a finished classifier; raises UserError if `folder` isn't one."""
    meta = read_meta(folder, stage="classifier")
    path, weights = folder / "classifier.json", folder / "weights.safetensors"
    saved = read_json(path, advice="Copy it again, or train the classifier again.")
    size = validated(ClassifierSize, saved.get("network"), f"`network` of {path}")
    try:
        (tokens, channels), classes = map(int, saved["shape"]), [str(name) for name in saved["classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} doesn't describe a classifier ({error!r}). Copy it again.") from error
    if not (1 <= tokens <= MAX_SIZE and 1 <= channels <= MAX_SIZE):
        raise UserError(f"{path}: `shape` has numbers from 1 to {MAX_SIZE:,}, not {tokens} and {channels}.")
    check_fits(lambda: Classifier(tokens, channels, len(classes), size), weights)
    network = Classifier(tokens, channels, len(classes), size)
    digest = checked_digest(weights, meta["weights_digest"])
    network.load_state_dict(read_tensors(weights))
    return LatentClassifier(network.to(device), classes, digest=digest, encoder=meta["inputs"]["encoder"])


def read_labelled(
    folder: AnyPath | str, split: str, classes: Sequence[str] = ()
) -> tuple[Float[Tensor, "assets tokens channels"], Int64[Tensor, " assets"], tuple[str, ...]]:
    """Returns the latents of assets whose category is one of `classes` (none given: all), numbers, classes.

    Raises UserError for fewer than two classes, and for latents that aren't finite.
    """
    shards = LatentShards(folder, split)
    names = tuple(classes) or tuple(sorted({row.category for row in shards.rows} - {""}))
    if len(names) < 2:
        raise UserError(
            f"The assets of {folder} (split {split}) have {len(names)} categories, and a classifier tells "
            "two or more apart. Give assets a `category` in the data's manifest, then prepare and encode "
            "them again."
        )
    rows = [i for i, row in enumerate(shards.rows) if row.category in names]
    if len(rows) < len(shards.rows):
        log.warning("%s: %d of %d assets have no known category", split, len(shards) - len(rows), len(shards))
    latents = [shards.read(i)["latent"].float() for i in rows]
    stacked = torch.stack(latents) if latents else torch.zeros(0, 1, 1)
    check_finite(stacked, [shards.rows[i].key for i in rows], "latents", "The encoder that made them")
    return stacked, torch.tensor([names.index(shards.rows[i].category) for i in rows]), names


class ClassifierTask:
    """Batches and loss for `shapeloom.training.train`; logs held-out accuracy by noise level."""

    def __init__(
        self, model: Classifier, known: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor] | None,
        sigma_range: tuple[float, float], run: Run, *, seed: int,
    ) -> None:  # fmt: skip
        """known, held_out: latents and class numbers. sigma_range: the noise levels of samplers."""
        self.model: nn.Module = model
        self._latent, self._label = known
        self._held_out, self._sigma_range, self._run, self._seed = held_out, sigma_range, run, seed
        self._order = ReadingOrder([len(self._latent)], seed=seed)

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Latents, class numbers and noise seeds of these global sample numbers."""
        rows = torch.tensor([self._order.index(n) for n in samples])
        seeds = torch.tensor([derive_seed("classifier noise", self._seed, n) for n in samples])
        return {"latent": self._latent[rows], "label": self._label[rows], "seed": seeds}

    def names(self, samples: Sequence[int]) -> list[str]:
        """Numbers of latents among those that have a category."""
        return [f"latent {self._order.index(n)}" for n in samples]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy at noise levels even in log sigma."""
        low, high = (math.log(level) for level in self._sigma_range)
        share = torch.special.ndtr(normal(batch["seed"], (), stream="time")).to(batch["latent"])
        logits = self._logits(model, batch, torch.exp(low + (high - low) * share))
        right = (logits.argmax(1) == batch["label"]).float().mean()
        return F.cross_entropy(logits, batch["label"]), {"accuracy": right}

    def _logits(self, model: nn.Module, batch: dict[str, Tensor], sigma: Tensor) -> Tensor:
        x0 = (batch["latent"] - model.get_buffer("standard_mean")) / model.get_buffer("standard_std")
        eps = normal(batch["seed"], tuple(x0.shape[1:]), stream="noise").to(x0)
        logits: Tensor = model(x0 + sigma[:, None, None] * eps, sigma)
        return logits.float()

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Held-out accuracy and cross entropy at each of HELD_OUT_SIGMAS; {} without held-out assets."""
        if self._held_out is None:
            return {}
        device = next(model.parameters()).device
        latent, label = (part.to(device) for part in self._held_out)
        seeds = torch.tensor([derive_seed("classifier held out", self._seed, n) for n in range(len(latent))])
        scalars: dict[str, float] = {}
        for sigma in HELD_OUT_SIGMAS:
            logits = self._logits(
                model, {"latent": latent, "seed": seeds}, torch.full((len(latent),), sigma, device=device)
            )
            right = (logits.argmax(1) == label).float().mean()
            scalars[f"held_out/accuracy_sigma{sigma:g}"] = float(right)
            scalars[f"held_out/loss_sigma{sigma:g}"] = float(F.cross_entropy(logits, label))
        return scalars

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """None; logs `measure`."""
        if measured := self.measure(model):
            self._run.scalars(step, measured)
        return {}


def new_classifier(
    prior: Prior, latent: Float[Tensor, "assets tokens channels"], label: Int64[Tensor, " assets"],
    config: ClassifierConfig,
) -> Classifier:  # fmt: skip
    """Returns a classifier that sees latents as the prior does, and so far knows Gaussian classes alone."""
    num_classes = int(label.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("classifier", config.train.seed))
        model = Classifier(*prior.shape, num_classes, config.network)
    model.standard_mean.copy_(prior.network.standard_mean)
    model.standard_std.copy_(prior.network.standard_std)
    x0 = prior.standardise(latent.to(prior.device)).flatten(1).cpu()
    member = F.one_hot(label, num_classes).to(x0)
    model.centres.copy_(member.T @ x0 / member.sum(0)[:, None])
    model.variance.copy_((x0 - model.centres[label]).square().mean())
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, or goes on, or says that it is done."""
    config, out, _ = parse_stage(ClassifierConfig, stage="prior.classifier", description=__doc__, argv=argv)
    world = distributed.start(hang_seconds=config.train.hang_seconds)
    start_logging(quiet=not world.is_main)
    if config.prior is None or config.latents is None:
        raise UserError(
            "prior.classifier needs --set prior=RUN/prior latents=RUN/latents: a finished prior and the "
            "latents that it was trained on."
        )
    prior = load_prior(config.prior)
    if prior.predicts != "latents":
        raise UserError(f"{config.prior} was trained with predict=views; name a prior of latents.")
    shards = LatentShards(config.latents, config.split)
    prior.check(encoder_digest=shards.header["encoder"])
    inputs = {"latents": shards.digest, "encoder": shards.header["encoder"], "prior": prior.digest}
    with open_run(out, config, stage="classifier", inputs=inputs, world=world) as run:
        if run.done:
            log.info("%s already holds a finished classifier", out)
            return
        _train(config, prior, shards, run, world)


def _train(
    config: ClassifierConfig, prior: Prior, shards: LatentShards, run: Run, world: distributed.World
) -> None:
    assert config.latents is not None
    latent, label, classes = read_labelled(config.latents, config.split)
    held_out = None
    if shards.header["splits"].get("val"):
        other, its_label, _ = read_labelled(config.latents, "val", classes)
        held_out = (other, its_label) if len(other) else None
    model = new_classifier(prior, latent, label, config)
    task = ClassifierTask(
        model, (latent, label), held_out, prior.network.sigma_range, run, seed=config.train.seed
    )
    if world.is_main:
        saved = {"shape": prior.shape, "classes": classes, "network": config.network.model_dump()}
        write_atomic(run.folder / "classifier.json", json.dumps(saved, indent=1))
    train(task, config.train, run, world)
    run.finish(num_latents=len(latent), losses=task.measure(task.model))


if __name__ == "__main__":
    run_main(main)
