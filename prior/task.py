"""What a prior is trained on: a config's latents, their batches, and the loss.

Every sample is a latent with some of its asset's conditions (`prior.latents.MixtureConfig`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from prior.denoiser import NetworkConfig
from prior.description import Predicts
from prior.fine_tune import FineTuneConfig
from prior.latents import Latents, MixtureConfig, ViewLatents, name_some
from shapeloom.config import Config
from shapeloom.decoder import Decoder
from shapeloom.denoising import Condition, DenoisingNetwork, from_batch
from shapeloom.diffusion.objectives import (
    DiffusionConfig,
    add_noise,
    loss_weight,
    make_target,
    predict_x0,
    sample_times,
    split_answer,
    to_x0,
)
from shapeloom.diffusion.samplers import initial_noise, sample
from shapeloom.diffusion.schedules import make_schedule
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.diffusion.variance import variance_loss
from shapeloom.log import get_logger
from shapeloom.noise import normal
from shapeloom.pictures import to_uint8
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.runs import Run
from shapeloom.seed import derive_seed, numpy_rng
from shapeloom.shards import ReadingOrder
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import AnyPath, Location
from shapeloom.training import TrainConfig
from shapeloom.viewpoints import fitting_distance

log = get_logger("prior")
HELD_OUT_TIMES = (0.25, 0.5, 0.75)
NUM_HELD_OUT = 256
NUM_STEPS, BOUND_WEIGHT = 1024, 0.001
"""Of DDPM where the variance is learned, as many as Shap-E's; and lambda, Nichol & Dhariwal 2021, eq. 16."""
PICTURES, PICTURE_SIZE, PICTURE_STEPS, PICTURE_FOV = 8, 64, 16, 0.7


class PriorConfig(Config):
    """What `python -m prior.train` does."""

    latents: Location | None = Field(default=None, description="latent shards: a folder or a URL")
    split: str = Field(default="train", description="which assets to learn from")
    min_psnr: float | None = Field(
        default=None, description="leave out assets whose latents' renders encode found worse, dB"
    )
    predict: Predicts = Field(default="latents", description="views: pictures' CLIP vectors, from captions")
    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    standardise: Literal["each", "common", "none"] = Field(
        default="each",
        description="learn latents of zero mean and unit variance, each number's or all together's; none: as "
        "encoded",
    )
    mixture: MixtureConfig = MixtureConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    encoder: Path | None = Field(
        default=None, description="encoder run that made the latents, to show samples as pictures in training"
    )
    train: TrainConfig = TrainConfig(
        steps=1000, batch_size=64, learning_rate=1e-3, warmup_steps=50, weight_decay=0.01, ema_decay=0.995
    )

    @model_validator(mode="after")
    def _views_come_from_captions(self) -> "PriorConfig":
        if self.predict == "views" and (self.mixture.image_only or self.mixture.text_and_image):
            raise ValueError(
                "a prior of views sees captions alone: set mixture.image_only=0 mixture.text_and_image=0"
            )
        if self.predict == "views" and self.encoder is not None:
            raise ValueError("a prior of views makes no shapes to show: leave encoder out")
        return self

    @model_validator(mode="after")
    def _components_say_x0(self) -> "PriorConfig":
        if self.network.components and (
            self.network.kind != "shapeloom"
            or self.diffusion.target != "x0"
            or self.diffusion.learned_variance
        ):
            raise ValueError(
                "network.components adds the input to a guess of x_0: it needs network.kind=shapeloom and "
                f"diffusion.target=x0 without learned_variance, got {self.network.kind} and "
                f"{self.diffusion.target}"
            )
        return self


def read_latents(
    folder: AnyPath | str, split: str, config: PriorConfig, classes: Sequence[str] = ()
) -> Latents:
    """What the config says to learn, of a split."""
    kind = Latents if config.predict == "latents" else ViewLatents
    shards = LatentShards(folder, split)
    if config.min_psnr is not None and (left_out := shards.leave_out(below_psnr=config.min_psnr)):
        log.warning(
            "%s: %d of %d assets are left out, whose latents render below %g dB: %s",
            split, len(left_out), len(left_out) + len(shards), config.min_psnr, name_some(left_out),
        )  # fmt: skip
    return kind(shards, config.mixture, classes)


def read_held_out(folder: AnyPath | str, config: PriorConfig, classes: Sequence[str] = ()) -> Latents | None:
    """The latents of split "val", if the folder has any.

    Without their copies: losses of runs with and without these are then of the same latents.
    """
    if not LatentShards(folder).header["splits"].get("val"):
        return None
    held_out = read_latents(folder, "val", config, classes)
    held_out.copies = None
    return held_out


class PriorTask:
    """Batches and loss for `shapeloom.training.train`; logs losses on held-out latents, shows samples.

    old: what a prior that is fine-tuned was trained on: (training split, held-out split).
    """

    def __init__(
        self, model: DenoisingNetwork, latents: Latents, config: PriorConfig, run: Run, *,
        held_out: Latents | None = None, old: tuple[Latents, Latents] | None = None,
        decoder: Decoder | None = None,
    ) -> None:  # fmt: skip
        self._latents, self._config, self._run, self._decoder = latents, config, run, decoder
        self._seed = config.train.seed
        self._order = ReadingOrder([len(latents.latent)], seed=self._seed)
        self._old = old[0] if old else None
        self._old_order = ReadingOrder([len(old[0].latent) if old else 1], seed=self._seed)
        self._measured: dict[str, dict[str, Tensor]] = {}
        for name, data in (("held_out", held_out), ("old", old[1] if old else None)):
            if data is not None:
                rows = range(min(NUM_HELD_OUT, len(data.latent)))
                self._measured[name] = self._collect([(data, n, n) for n in rows])
        self.model: nn.Module = model
        self._sigma_range = model.sigma_range

    def _collect(self, chosen: Sequence[tuple[Latents, int, int]]) -> dict[str, Tensor]:
        """Stacks (source, row, sample number)."""
        drawn = [source.draw(row, numpy_rng("prior", self._seed, n)) for source, row, n in chosen]
        batch = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
        seeds = [derive_seed("prior noise", self._seed, n) for _, _, n in chosen]
        return batch | {"seed": torch.tensor(seeds)}

    def names(self, samples: Sequence[int]) -> list[str]:
        """Keys and captions; of replayed samples those that they would have had."""
        return [self._latents.labels[self._order.index(n) % len(self._latents.labels)] for n in samples]

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Latents, conditions and noise seeds of these global sample numbers."""
        return self._collect([self._source(n) for n in samples])

    def _source(self, n: int) -> tuple[Latents, int, int]:
        share = self._config.fine_tune.replay
        if self._old is not None and numpy_rng("prior replay", self._seed, n).random() < share:
            return self._old, self._old_order.index(n), n
        return self._latents, self._order.index(n), n

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the target, over all latent numbers, weighted by time.

        With diffusion.learned_variance at whole steps, and with L_vlb (in nats a number) at its weight:
        Nichol & Dhariwal 2021, eq. 16. L_vlb is without its last step, which samplers take without noise.
        """
        times = self._config.diffusion
        z = normal(batch["seed"], (), stream="time").to(batch["latent"].device)
        t = sample_times(z, times.times, mean=times.times_mean, std=times.times_std)
        if times.learned_variance:
            # Steps 2 to n: the first one ends without noise. The last is cut where `sample_times` is.
            t = ((t * NUM_STEPS).ceil().clamp_min(2) / NUM_STEPS).clamp_max(1 - 1e-4)
        weight = loss_weight(times.weighting, times.target, make_schedule(times.schedule), t)
        errors, bound = self.errors(model, batch, t)
        simple = (weight * errors).mean()
        if not times.learned_variance:
            return simple, {}
        vlb = (NUM_STEPS - 1) * bound.mean()
        return simple + BOUND_WEIGHT * vlb, {"simple": simple.detach(), "vlb": vlb.detach()}

    def errors(
        self, model: nn.Module, batch: dict[str, Tensor], t: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Each sample's mean squared error at time t, and mean term of L_vlb for the step from t (or 0)."""
        diffusion, latent = self._config.diffusion, batch["latent"]
        schedule = make_schedule(diffusion.schedule)
        x0 = (latent - model.get_buffer("standard_mean")) / model.get_buffer("standard_std")
        eps = normal(batch["seed"], tuple(x0.shape[1:]), stream="noise").to(x0.device)
        alpha = schedule.alpha(t)
        x_t = add_noise(schedule, x0, eps, t)
        x, sigma = x_t / alpha[:, None, None], schedule.sigma(t) / alpha
        prediction, share = split_answer(model(x, sigma, from_batch(batch)).float(), diffusion)
        target = make_target(diffusion.target, schedule, x0, eps, t)
        errors = (prediction - target).square().flatten(1).mean(1)
        if share is None:
            return errors, torch.zeros_like(errors)
        before = t - 1 / NUM_STEPS
        predicted = to_x0(diffusion.target, schedule, prediction, x_t, t)
        terms = variance_loss(x0, predicted, share, sigma, schedule.sigma(before) / schedule.alpha(before))
        return errors, terms.flatten(1).mean(1)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Losses on held-out latents, and on those of a prior that is fine-tuned, from most signal to most
        noise, and their means."""
        device = next(model.parameters()).device
        # As many at once as in training, which fit into memory.
        at_once = max(1, self._config.train.batch_size // self._config.train.accumulation)
        scalars: dict[str, float] = {}
        for name, measured in self._measured.items():
            errors = torch.zeros(len(HELD_OUT_TIMES))
            for first in range(0, len(measured["latent"]), at_once):
                batch = {key: value[first : first + at_once].to(device) for key, value in measured.items()}
                for i, t in enumerate(HELD_OUT_TIMES):
                    times = torch.full((len(batch["latent"]),), t, device=device)
                    errors[i] += self.errors(model, batch, times)[0].sum().cpu()
            errors /= len(measured["latent"])
            losses = {
                f"{name}/loss_t{t:g}": float(error) for t, error in zip(HELD_OUT_TIMES, errors, strict=True)
            }
            scalars |= losses | {f"{name}/loss": float(np.mean(list(losses.values())))}
        return scalars

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """Shapes sampled for held-out conditions, in one row, beneath the shapes they were taken from."""
        measured = self.measure(model)
        if measured:
            self._run.scalars(step, measured)
        if self._decoder is None or "held_out" not in self._measured:
            return {}
        device = next(model.parameters()).device
        batch = {k: v[:PICTURES].to(device) for k, v in self._measured["held_out"].items()}
        low, high = self._sigma_range
        sigmas = karras_sigmas(PICTURE_STEPS, sigma_min=low, sigma_max=high)
        noise = normal(batch["seed"], tuple(batch["latent"].shape[1:]), stream="pictures").to(device)

        def denoise(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            return predict_x0(model, self._config.diffusion, x, sigma, condition)

        x0 = sample(denoise, initial_noise(noise, sigmas), sigmas, from_batch(batch), method="euler")
        latents = x0 * model.get_buffer("standard_std") + model.get_buffer("standard_mean")
        rows = [self._render(batch["latent"]), self._render(latents.clamp(-1, 1))]
        return {"samples": np.concatenate(rows)}

    def _render(self, latents: Float[Tensor, "batch tokens channels"]) -> np.ndarray:
        """A view of each, side by side."""
        assert self._decoder is not None
        views = ring(1, distance=fitting_distance(PICTURE_FOV))[None].expand(len(latents), 1, 4, 4)
        matrix = intrinsics(PICTURE_FOV, PICTURE_SIZE, PICTURE_SIZE).expand(len(latents), 1, 3, 3)
        rendering = self._decoder.render(
            self._decoder.weights(latents), views.to(latents), matrix.to(latents), PICTURE_SIZE, PICTURE_SIZE
        )
        return to_uint8(np.hstack(list(rendering.rgb[:, 0].cpu().numpy())))
