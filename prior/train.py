"""Trains the latent diffusion prior.

    python -m prior.train --config configs/prior/tiny.yaml --out RUN/prior --set latents=RUN/latents

Every sample is a latent with one of its asset's conditions: a caption, a view's CLIP vector, both or neither,
so that one model answers to text and to pictures, and to none for classifier-free guidance.
The folder holds weights.safetensors (EMA; with the latents' mean and spread) and prior.json (its sizes).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from prior.denoiser import (
    Condition,
    Denoiser,
    DiffusionConfig,
    NetworkConfig,
    Shapes,
    check_latents,
    standardisation,
)
from shapeloom import distributed
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.diffusion.objectives import add_noise, make_target, sample_times
from shapeloom.diffusion.schedules import make_schedule
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run
from shapeloom.seed import derive_seed, normal, numpy_rng
from shapeloom.shards import LatentShards, ReadingOrder
from shapeloom.storage import write_atomic
from shapeloom.training import TrainConfig, train

log = get_logger("prior")


class PriorConfig(Config):
    """What `python -m prior.train` does."""

    latents: Path | None = Field(default=None, description="folder of latent shards")
    split: str = Field(default="train", description="which assets to learn from")
    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    no_condition: float = Field(
        default=0.1, ge=0, le=1, description="share of samples shown without any condition"
    )
    image_only: float = Field(
        default=0.15, ge=0, le=1, description="share shown with a view's CLIP vector alone"
    )
    text_and_image: float = Field(0.1, ge=0, le=1, description="share with both; the rest: text alone")
    train: TrainConfig = TrainConfig(
        steps=1000, batch_size=64, learning_rate=1e-3, warmup_steps=50, weight_decay=0.01, ema_decay=0.995
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "PriorConfig":
        total = self.no_condition + self.image_only + self.text_and_image
        if total > 1:
            raise ValueError(f"no_condition + image_only + text_and_image must be at most 1, got {total:g}")
        return self


class Latents:
    """A split's latents and conditions in memory, float32, and what is drawn from them."""

    def __init__(self, shards: LatentShards) -> None:
        """Raises UserError for latents that aren't finite."""
        data = {
            name: value.float() if value.is_floating_point() else value
            for name, value in shards.load().items()
        }
        self.latent: Tensor = data["latent"]
        self.text_pooled, self.text_tokens = data["text_pooled"], data["text_tokens"]
        self.text_mask, self.image_pooled = data["text_mask"], data["image_pooled"]
        self.num_captions = data["num_captions"]
        check_latents(self.latent, [row.key for row in shards.rows])

    @property
    def shapes(self) -> Shapes:
        """Sizes of the latents and conditions."""
        _, tokens, channels = self.latent.shape
        return Shapes(tokens, channels, self.text_pooled.shape[-1], self.text_tokens.shape[-1])

    def draw(self, row: int, rng: np.random.Generator, config: PriorConfig) -> dict[str, Tensor]:
        """A row's latent, one of its captions, one of its views, and which of the two is shown."""
        caption = int(rng.integers(int(self.num_captions[row])))
        view = int(rng.integers(self.image_pooled.shape[1]))
        share = rng.random() - config.no_condition
        image_alone = 0 <= share < config.image_only
        both = 0 <= share - config.image_only < config.text_and_image
        return {
            "latent": self.latent[row],
            "text_pooled": self.text_pooled[row, caption],
            "text_tokens": self.text_tokens[row, caption],
            "text_mask": self.text_mask[row, caption],
            "has_text": torch.tensor(share >= 0 and not image_alone),
            "image_pooled": self.image_pooled[row, view],
            "has_image": torch.tensor(image_alone or both),
        }


class PriorTask:
    """Batches and loss for `shapeloom.training.train`; logs the loss on held-out latents."""

    def __init__(
        self, latents: Latents, config: PriorConfig, run: Run, *, held_out: Latents | None = None
    ) -> None:
        self._latents, self._config, self._run = latents, config, run
        self._seed = config.train.seed
        self._order = ReadingOrder([len(latents.latent)], seed=self._seed)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed("prior", self._seed))
            model = Denoiser(latents.shapes, config.network)
        mean, std = standardisation(latents.latent)
        model.standard_mean.copy_(mean)
        model.standard_std.copy_(std)
        self.model: nn.Module = model
        self._held_out = (
            None if held_out is None else self._collect(held_out, range(min(256, len(held_out.latent))))
        )

    def _collect(
        self, latents: Latents, samples: Sequence[int], *, ordered: bool = False
    ) -> dict[str, Tensor]:
        rows = [self._order.index(n) if ordered else n for n in samples]
        drawn = [
            latents.draw(row, numpy_rng("prior", self._seed, n), self._config)
            for n, row in zip(samples, rows, strict=True)
        ]
        batch = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
        seeds = [derive_seed("prior noise", self._seed, n) for n in samples]
        return batch | {"seed": torch.tensor(seeds)}

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Latents, conditions and noise seeds of these global sample numbers."""
        return self._collect(self._latents, samples, ordered=True)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the target, over all latent numbers."""
        times = self._config.diffusion
        z = normal(batch["seed"], (), stream="time").to(batch["latent"].device)
        t = sample_times(z, times.times, mean=times.times_mean, std=times.times_std)
        return self.errors(model, batch, t).mean(), {}

    def errors(
        self, model: nn.Module, batch: dict[str, Tensor], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Each sample's mean squared error at time t."""
        diffusion, latent = self._config.diffusion, batch["latent"]
        schedule = make_schedule(diffusion.schedule)
        x0 = (latent - model.get_buffer("standard_mean")) / model.get_buffer("standard_std")
        eps = normal(batch["seed"], tuple(x0.shape[1:]), stream="noise").to(x0.device)
        alpha = schedule.alpha(t)
        x = add_noise(schedule, x0, eps, t) / alpha[:, None, None]
        fields = ("text_pooled", "text_tokens", "text_mask", "has_text", "image_pooled", "has_image")
        condition = Condition(**{name: batch[name] for name in fields})
        prediction = model(x, schedule.sigma(t) / alpha, condition).float()
        return (prediction - make_target(diffusion.target, schedule, x0, eps, t)).square().flatten(1).mean(1)

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """No pictures; logs held-out losses at three times, from most signal to most noise."""
        if self._held_out is not None:
            device = next(model.parameters()).device
            batch = {name: value.to(device) for name, value in self._held_out.items()}
            scalars = {}
            for t in (0.25, 0.5, 0.75):
                times = torch.full((len(batch["latent"]),), t, device=device)
                scalars[f"held_out/loss_t{t:g}"] = float(self.errors(model, batch, times).mean())
            scalars["held_out/loss"] = float(np.mean(list(scalars.values())))
            self._run.scalars(step, scalars)
        return {}


def held_out_split(shards: LatentShards) -> Latents | None:
    """The latents of split "val", if the folder has any."""
    return Latents(LatentShards(shards.folder, "val")) if shards.header["splits"].get("val") else None


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, or goes on, or says that it is done."""
    config, out, _ = parse_stage(PriorConfig, stage="prior.train", description=__doc__, argv=argv)
    world = distributed.start()
    start_logging(quiet=not world.is_main)
    if config.latents is None:
        raise UserError("prior.train needs --set latents=RUN/latents: the folder that encoder.encode wrote.")
    shards = LatentShards(config.latents, config.split)
    inputs = {"latents": shards.digest, "encoder": shards.header["encoder"], "clip": shards.header["clip"]}
    run = Run.open(out, config, stage="prior", inputs=inputs, writes=world.is_main)
    if run.done:
        log.info("%s already holds a finished prior", out)
        return
    latents = Latents(shards)
    task = PriorTask(latents, config, run, held_out=held_out_split(shards))
    if world.is_main:
        saved = {
            "shapes": vars(latents.shapes),
            "network": config.network.model_dump(),
            "diffusion": config.diffusion.model_dump(),
        }
        write_atomic(run.folder / "prior.json", json.dumps(saved, indent=1))
    train(task, config.train, run, world)
    run.finish(num_latents=len(latents.latent))


if __name__ == "__main__":
    run_main(main)
