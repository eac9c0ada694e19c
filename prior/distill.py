"""Distils a finished prior into one that samples in a few steps.

    python -m prior.distill --config configs/prior/distill_tiny.yaml --out RUN/few \\
        --set teacher=RUN/prior latents=RUN/latents

The teacher's steps * substeps noise levels fall into `steps` parts. The student learns to cross a part in one
call: from x at a level t of part i it says the x_0 whose straight line (a DDIM step) ends where the teacher's
probability-flow ODE ends at the part's last level e,

    x_e = (e / t) x + (1 - e / t) x_0,

under the teacher's classifier-free guidance, which is thereby baked in. Where x_e comes from:

    progressive   the teacher walks the part, from its first level (Salimans & Ho 2022, "Progressive
                  Distillation", algorithm 2, in one halving by `substeps` instead of repeated ones by 2)
    consistency   the teacher takes one step from any level of the part, the student itself the rest (Heek
                  et al. 2024, "Multistep Consistency Models", algorithm 1, without a schedule of levels)

The result is a prior like any other, but for the levels in its prior.json that it has to be sampled at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from prior.description import Description, Distilled
from prior.fine_tune import FineTuneConfig, start_from
from prior.latents import MixtureConfig
from prior.model import Prior, load_prior
from prior.task import PriorConfig, PriorTask, read_held_out, read_latents
from shapeloom import distributed
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.denoising import Condition, from_batch, select
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.objectives import convert, predict_x0, split_answer
from shapeloom.diffusion.samplers import Denoise, initial_noise, sample
from shapeloom.diffusion.schedules import make_schedule
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.log import get_logger, start_logging
from shapeloom.noise import normal
from shapeloom.runs import Run
from shapeloom.shards.tensors import LatentShards
from shapeloom.shared_run import open_run
from shapeloom.storage import Location
from shapeloom.training import TrainConfig, train

log = get_logger("distill")
Method = Literal["progressive", "consistency"]
NUM_MEASURED = 64
"""Held-out conditions that the student's samples are compared with the teacher's on."""


class DistillConfig(Config):
    """What `python -m prior.distill` does."""

    teacher: Path | None = Field(default=None, description="folder of the finished prior to distil")
    latents: Location | None = Field(default=None, description="latents that the teacher was trained on")
    split: str = Field(default="train", description="which assets to learn from")
    method: Method = Field(
        "progressive", description="progressive distillation (Salimans & Ho 2022), or consistency"
    )
    steps: int = Field(default=4, ge=1, le=64, description="network calls of a sample afterwards")
    substeps: int = Field(default=4, ge=2, le=64, description="the teacher's steps for each of these")
    guidance_scale: float = Field(default=3.0, ge=0, description="of the teacher, baked into the student")
    mixture: MixtureConfig = MixtureConfig()
    train: TrainConfig = TrainConfig(
        steps=400, batch_size=64, learning_rate=3e-4, warmup_steps=20, weight_decay=0.0, ema_decay=0.99
    )


def straight_x0(
    x: Float[Tensor, "batch tokens channels"],
    level: Float[Tensor, " batch"],
    x_end: Float[Tensor, "batch tokens channels"],
    end: Float[Tensor, " batch"],
) -> Float[Tensor, "batch tokens channels"]:
    """The x_0 with which one DDIM step from x at noise `level` lands on x_end at `end` < level."""
    share = (end / level)[:, None, None]
    return (x_end - share * x) / (1 - share)


@torch.no_grad()
def ends(
    teacher: Denoise[Condition], student: Denoise[Condition], method: Method,
    x: Float[Tensor, "batch tokens channels"], place: Int64[Tensor, " batch"],
    sigmas: Float[Tensor, " levels"], substeps: int, condition: Condition,
) -> Float[Tensor, "batch tokens channels"]:  # fmt: skip
    """Where each x at sigmas[place] should be at the last level of its part; see the top of this file.

    sigmas: all of the teacher's levels. For "progressive", places are the parts' first levels.
    """
    if method == "progressive":
        x_end = torch.empty_like(x)
        for first in place.unique().tolist():
            rows = torch.nonzero(place == first)[:, 0]
            levels = sigmas[first : first + substeps + 1]
            x_end[rows] = sample(teacher, x[rows], levels, select(condition, rows), method="dpmpp_2m")
        return x_end
    level, following = sigmas[place].to(x), sigmas[place + 1].to(x)
    end = sigmas[(place // substeps + 1) * substeps].to(x)
    slope = (x - teacher(x, level, condition)) / level[:, None, None]
    moved = x + (following - level)[:, None, None] * slope
    # At noise 0 there is neither a slope nor anything left to do; 1 stands in.
    inside = following > end
    safe = torch.where(following > 0, following, 1)
    second = (moved - teacher(moved, safe, condition)) / safe[:, None, None]
    heun = x + (following - level)[:, None, None] * (slope + second) / 2
    moved = torch.where((following > 0)[:, None, None], heun, moved)
    share = torch.where(inside, end / safe, 1)[:, None, None]
    return share * moved + (1 - share) * student(moved, safe, condition)


class DistillTask(PriorTask):
    """A prior's batches, with the teacher's answers for targets; logs how far samples are from the
    teacher's."""

    def __init__(
        self, teacher: Prior, config: DistillConfig, data: PriorConfig, run: Run, header: Mapping[str, Any]
    ) -> None:
        """data: the teacher's sizes and objective. Raises UserError for latents that aren't the teacher's."""
        assert config.teacher is not None
        assert config.latents is not None
        classes = teacher.shapes.classes
        latents = read_latents(config.latents, config.split, data, classes)
        model = start_from(
            load_prior(config.teacher), FineTuneConfig(init_from=config.teacher), latents, header,
            network=data.network, diffusion=data.diffusion, seed=config.train.seed,
        )  # fmt: skip
        held_out = read_held_out(config.latents, data, classes) or latents
        super().__init__(model, latents, data, run, held_out=held_out)
        self._teacher, self._distill = teacher, config
        self.num_latents, self.max_views = len(latents.latent), latents.max_views
        self.sigmas = karras_sigmas(config.steps * config.substeps)
        self.few_sigmas = self.sigmas[:: config.substeps]
        self._wanted: Tensor | None = None
        self._unaided = 0.0

    def _guided(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The teacher under the guidance that is baked in; `denoise` for rows of any batch."""
        scale = self._distill.guidance_scale
        steered = classifier_free(self._teacher.denoise, condition.without(), scale=scale)
        return steered(x, sigma, condition)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the network's target that says the wanted x_0."""
        config, condition = self._distill, from_batch(batch)
        x0 = (batch["latent"] - model.get_buffer("standard_mean")) / model.get_buffer("standard_std")
        spots = config.steps if config.method == "progressive" else config.steps * config.substeps
        drawn = torch.special.ndtr(normal(batch["seed"], (), stream="time"))
        place = (drawn * spots).long().clamp(max=spots - 1).to(x0.device)
        place = place * (config.substeps if config.method == "progressive" else 1)
        sigmas = self.sigmas.to(x0.device)
        level = sigmas[place].to(x0)
        end = sigmas[(place // config.substeps + 1) * config.substeps].to(x0)
        eps = normal(batch["seed"], tuple(x0.shape[1:]), stream="noise").to(x0)
        x = x0 + level[:, None, None] * eps
        x_end = ends(
            self._guided, self._student(model), config.method, x, place, sigmas,
            config.substeps, condition,
        )  # fmt: skip
        diffusion = self._teacher.diffusion
        schedule = make_schedule(diffusion.schedule)
        t = schedule.time(level)
        x_t = schedule.alpha(t)[:, None, None] * x
        wanted = convert(straight_x0(x, level, x_end, end), "x0", diffusion.target, schedule, x_t, t)
        said, _ = split_answer(model(x, level, condition).float(), diffusion)
        return (said - wanted).square().mean(), {}

    def _student(self, model: nn.Module) -> Denoise[Condition]:
        return lambda x, sigma, condition: predict_x0(model, self._teacher.diffusion, x, sigma, condition)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Root mean squared distance, in standard deviations of latents, of the student's samples from the
        teacher's at all its levels, from the same noise; for comparison also the undistilled teacher's at as
        few steps."""
        device = next(model.parameters()).device
        batch = {k: v[:NUM_MEASURED].to(device) for k, v in self._measured["held_out"].items()}
        condition, sigmas = from_batch(batch), self.sigmas
        x = initial_noise(normal(batch["seed"], tuple(batch["latent"].shape[1:]), stream="pictures"), sigmas)
        x = x.to(device)
        few = self.few_sigmas
        if self._wanted is None:
            self._wanted = sample(self._guided, x, sigmas, condition, method="dpmpp_2m")
            self._unaided = _distance(
                sample(self._guided, x, few, condition, method="dpmpp_2m"), self._wanted
            )
        found = sample(self._student(model), x, few, condition, method="euler")
        return {
            "held_out/distance": _distance(found, self._wanted),
            "held_out/distance_undistilled": self._unaided,
        }

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """None; logs `measure`."""
        self._run.scalars(step, self.measure(model))
        return {}


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def main(argv: Sequence[str] | None = None) -> None:
    """Distils, or goes on, or says that it is done."""
    config, out, _ = parse_stage(DistillConfig, stage="prior.distill", description=__doc__, argv=argv)
    world = distributed.start(hang_seconds=config.train.hang_seconds)
    start_logging(quiet=not world.is_main)
    if config.teacher is None or config.latents is None:
        raise UserError(
            "prior.distill needs --set teacher=RUN/prior latents=RUN/latents: a finished prior and the "
            "latents that it was trained on."
        )
    teacher = load_prior(config.teacher, world.device)
    if teacher.distilled is not None:
        raise UserError(f"{config.teacher} is distilled already; name the prior that it was made from.")
    if teacher.predicts != "latents":
        raise UserError(f"{config.teacher} was trained with predict=views; priors of latents are distilled.")
    shards = LatentShards(config.latents, config.split)
    header = shards.header
    inputs = {"latents": shards.digest, "encoder": header["encoder"], "clip": header["clip"]}
    inputs["teacher"] = teacher.digest
    with open_run(out, config, stage="prior", inputs=inputs, world=world) as run:
        if run.done:
            log.info("%s already holds a finished prior", out)
            return
        _distil(config, teacher, header, run, world)


def _distil(
    config: DistillConfig, teacher: Prior, header: Mapping[str, Any], run: Run, world: distributed.World
) -> None:
    data = PriorConfig(
        network=teacher.network.config, diffusion=teacher.diffusion,
        mixture=config.mixture, train=config.train,
    )  # fmt: skip
    task = DistillTask(teacher, config, data, run, header)
    few = task.few_sigmas.tolist()
    if world.is_main:
        distilled = Distilled(tuple(few), config.guidance_scale)
        description = Description(
            teacher.shapes, data.network, data.diffusion, distilled=distilled, max_views=task.max_views
        )
        description.write(run.folder)
    train(task, config.train, run, world)
    run.finish(
        num_latents=task.num_latents, distilled_steps=config.steps,
        guidance_baked_in=config.guidance_scale, losses=task.measure(task.model),
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
