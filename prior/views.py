"""What the view model is trained on: an asset's views, from others of them or from a caption; and the loss.

A sample is one asset: `views` of its stored views are made at the same noise level, from up to
`max_references` others, or a caption, both, or neither. Any of its views is either, so every ordered pair
occurs. Samples without a caption may be mirrored and have their colour channels permuted (captions name
colours and sides).
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field as Key
from pydantic import model_validator
from torch import Tensor, nn

from shapeloom.clip import Clip
from shapeloom.config import Config, UserError
from shapeloom.diffusion.objectives import (
    DiffusionConfig,
    add_noise,
    loss_weight,
    make_target,
    sample_times,
)
from shapeloom.diffusion.schedules import make_schedule
from shapeloom.noise import normal
from shapeloom.pictures import on_white
from shapeloom.rendering.cameras import Cameras
from shapeloom.seed import derive_seed, numpy_rng
from shapeloom.shards import AssetShards, ReadingOrder
from shapeloom.storage import Location
from shapeloom.training import TrainConfig
from shapeloom.view_diffusion import (
    References,
    ViewModel,
    encode_latents,
    straight_rgba,
    to_picture,
)
from shapeloom.view_network import ViewInputs, ViewNetwork, ViewNetworkConfig, azimuths, turned

STATISTICS_ASSETS = 128
HELD_OUT_TIMES = (0.5, 0.75, 0.98)
"""At the last one nothing of the view is left but what conditions say."""
NUM_HELD_OUT, PICTURES = 64, 8


class ViewMixture(Config):
    """What samples are shown. The shares are of all samples; the rest is shown references alone."""

    no_condition: float = Key(0.1, ge=0, le=1, description="share shown nothing but cameras")
    text_only: float = Key(0.25, ge=0, le=1, description="share shown a caption and no reference")
    text_and_references: float = Key(0.1, ge=0, le=1, description="share shown both")
    max_references: int = Key(
        2, ge=1, le=32, description="references of a sample that is shown any: 1 to so many"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "ViewMixture":
        total = self.no_condition + self.text_only + self.text_and_references
        if total > 1:
            raise ValueError(
                f"no_condition + text_only + text_and_references must be at most 1, got {total:g}"
            )
        return self


class ViewTrainConfig(Config):
    """Everything that decides a view model's run."""

    data: Location = Key(description="a data_prep run: a folder or a URL")
    clip: Path | None = Key(None, description="folder of prior.train_clip, for captions; none: no captions")
    vae: Path | None = Key(
        None, description="folder of a VAE in diffusers' layout, whose latents are diffused; none: pixels"
    )
    network: ViewNetworkConfig = ViewNetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig(target="x0", times_mean=2.5, times_std=1.5)
    mixture: ViewMixture = ViewMixture()
    views: int = Key(2, ge=1, le=32, description="views of a sample, made together")
    mirror: bool = Key(True, description="mirror half of the samples that are shown no caption")
    colors: bool = Key(True, description="permute colour channels in half of them")
    train: TrainConfig = TrainConfig(
        steps=2000, batch_size=8, learning_rate=1e-3, warmup_steps=100, weight_decay=0.01, ema_decay=0.998
    )

    @model_validator(mode="after")
    def _variance_is_fixed(self) -> "ViewTrainConfig":
        if self.diffusion.learned_variance:
            raise ValueError("the view model learns no variance: leave diffusion.learned_variance out")
        return self


class Captions:
    """CLIP's vectors of captions, each made alone: they don't depend on the batch. The latest are kept."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.of = functools.lru_cache(maxsize=65536)(self._make)

    def _make(self, caption: str) -> tuple[Tensor, Tensor, Tensor]:
        found = self.clip.text([caption])
        return found.pooled[0].cpu(), found.tokens[0].cpu(), found.mask[0].cpu()


def mirrored(
    pictures: Float[Tensor, "views 4 size size"],
    poses: Float[Tensor, "views 4 4"],
    matrices: Float[Tensor, "views 3 3"],
) -> tuple[Float[Tensor, "views 4 size size"], Float[Tensor, "views 4 4"], Float[Tensor, "views 3 3"]]:
    """Returns the views of the asset's mirror image, y -> -y."""
    world, camera = torch.diag(torch.tensor([1.0, -1, 1, 1])), torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    moved = matrices.clone()
    moved[:, 0, 2] = pictures.shape[-1] - matrices[:, 0, 2]
    return pictures.flip(-1), world @ poses @ camera, moved


def read_pictures(
    shards: AssetShards, index: int, views: Sequence[int], *, size: int
) -> tuple[Float[Tensor, "views 4 size size"], Float[Tensor, "views 4 4"], Float[Tensor, "views 3 3"]]:
    """Returns stored views as the model has them, at `size` pixels a side, with their cameras.

    Raises UserError unless `size` divides the stored resolution.
    """
    factor, rest = divmod(shards.resolution, size)
    if rest or not factor:
        raise UserError(
            f"network.size={size} doesn't divide the data's resolution of {shards.resolution} pixels. Use a "
            "size that does, or prepare the data at that resolution."
        )
    asset = shards.read(index, views=views)
    assert asset.rgba is not None  # views were asked for
    matrices = torch.from_numpy(asset.intrinsics.copy())
    matrices[:, :2] /= factor
    pictures = to_picture(asset.rgba)
    pictures = F.avg_pool2d(pictures, factor) if factor > 1 else pictures
    return pictures, torch.from_numpy(asset.cam_to_world.copy()), matrices


class ViewTask:
    """Batches, loss and pictures (see shapeloom.training.Task)."""

    def __init__(
        self, model: ViewNetwork, config: ViewTrainConfig, shards: AssetShards, held_out: AssetShards, *,
        clip: Clip | None = None, vae: Any = None,
    ) -> None:  # fmt: skip
        """Raises UserError if assets have too few views, or no captions where they are wanted."""
        self.model: nn.Module = model
        self.config, self.shards, self.held_out, self.vae = config, shards, held_out, vae
        self.captions = None if clip is None else Captions(clip)
        self._shapes, self._seed = model.shapes, config.train.seed
        self._context_length = 1 if clip is None else clip.context_length
        self._order = ReadingOrder(shards.shard_sizes, seed=self._seed)
        needed = config.views + config.mixture.max_references
        if shards.num_views < needed:
            raise UserError(
                f"views={config.views} and mixture.max_references={needed - config.views} need {needed} "
                f"views an asset, but the data holds {shards.num_views}: lower them, or prepare more views."
            )

    def names(self, samples: Sequence[int]) -> list[str]:
        """Keys and captions."""
        return [self.shards.rows[self._order.index(n)].label for n in samples]

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """See `shapeloom.training.Task`."""
        self.shards.read_ahead(self._order.shards_from(samples[0]))
        drawn = [self._draw(self.shards, self._order.index(n), n) for n in samples]
        return {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}

    def _draw(self, shards: AssetShards, index: int, number: int) -> dict[str, Tensor]:
        config, rng = self.config, numpy_rng("views", self._seed, number)
        mixture, row = config.mixture, shards.rows[index]
        kind = np.searchsorted(
            np.cumsum([mixture.no_condition, mixture.text_only, mixture.text_and_references]), rng.random(),
            side="right",
        )  # fmt: skip
        says = self.captions is not None and bool(row.captions) and kind in (1, 2)
        shows = kind >= 2 or (kind == 1 and not says)
        chosen = [int(v) for v in rng.permutation(shards.num_views)[: config.views + mixture.max_references]]
        pictures, poses, matrices = read_pictures(shards, index, chosen, size=config.network.size)
        if not says and config.mirror and rng.random() < 0.5:
            pictures, poses, matrices = mirrored(pictures, poses, matrices)
        if not says and config.colors and rng.random() < 0.5:
            pictures = pictures[:, [*rng.permutation(3).tolist(), 3]]
        few, num = int(rng.integers(1, mixture.max_references + 1)), config.views
        there = torch.arange(mixture.max_references) < (few if shows else 0)
        there &= (pictures[num:, 3] > -1).flatten(1).any(1)  # an empty picture says nothing
        # Captions alone know the asset's own frame; half of what is shown nothing is in any frame.
        frame = azimuths(poses[num : num + 1]) if shows else torch.zeros(1)
        if kind == 0 and rng.random() < 0.5:
            frame = torch.tensor([rng.uniform(-np.pi, np.pi)], dtype=torch.float32)
        poses = turned(poses[None], frame)[0]
        return {
            "pictures": pictures[:num], "cam_to_world": poses[:num], "intrinsics": matrices[:num],
            "references": pictures[num:] * there[:, None, None, None], "reference_pose": poses[num:],
            "reference_intrinsics": matrices[num:], "has_reference": there,
            "seed": torch.tensor(derive_seed("view noise", self._seed, number)),
            **self._text(str(rng.choice(row.captions)) if says else None),
        }  # fmt: skip

    def _text(self, caption: str | None) -> dict[str, Tensor]:
        shapes = self._shapes
        if caption is None or self.captions is None:
            pooled = torch.zeros(shapes.clip_dim)
            tokens = torch.zeros(self._context_length, shapes.text_width)
            mask = torch.zeros(self._context_length, dtype=torch.bool)
        else:
            pooled, tokens, mask = self.captions.of(caption)
        return {
            "text_pooled": pooled, "text_tokens": tokens, "text_mask": mask,
            "has_text": torch.tensor(caption is not None),
        }  # fmt: skip

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the target, weighted by time, and that of the volume's own pictures."""
        times = self.config.diffusion
        z = normal(batch["seed"], (), stream="time").to(batch["pictures"].device)
        t = sample_times(z, times.times, mean=times.times_mean, std=times.times_std)
        weight = loss_weight(times.weighting, times.target, make_schedule(times.schedule), t)
        errors, drawn = self.errors(model, batch, t)
        return (weight * errors).mean() + drawn.mean(), {"volume": drawn.mean().detach()}

    def errors(
        self, model: nn.Module, batch: dict[str, Tensor], t: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Returns mean squared errors of each object's views: of the answer at time t, of the volume."""
        assert isinstance(model, ViewNetwork)
        diffusion, views = self.config.diffusion, self.config.views
        schedule, known = make_schedule(diffusion.schedule), model.conditioner
        x0 = batch["pictures"].flatten(0, 1)
        if self.vae is not None:
            with torch.no_grad():
                x0 = encode_latents(self.vae, x0)
        x0 = (x0 - known.mean[:, None, None]) / known.std
        eps = normal(batch["seed"], (views, *x0.shape[1:]), stream="noise").to(x0).flatten(0, 1)
        each = t.repeat_interleave(views)
        alpha = schedule.alpha(each)
        x_t = add_noise(schedule, x0, eps, each)
        told = model.told(view_inputs(batch))
        answer = model(x_t / alpha[:, None, None, None], schedule.sigma(each) / alpha, told).float()
        target = make_target(diffusion.target, schedule, x0, eps, each)
        shown = told.drawn().float()
        true = F.interpolate(batch["pictures"].flatten(0, 1), size=shown.shape[-2:], mode="area")
        both = (answer - target).square().flatten(1).mean(1), (shown - true).square().flatten(1).mean(1)
        first, second = (each.unflatten(0, (-1, views)).mean(1) for each in both)
        return first, second

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Returns losses on held-out assets at HELD_OUT_TIMES, and their mean."""
        device, sums = next(model.parameters()).device, torch.zeros(len(HELD_OUT_TIMES))
        rows = range(min(NUM_HELD_OUT, len(self.held_out)))
        at_once = max(1, self.config.train.batch_size // self.config.train.accumulation)
        for first in range(0, len(rows), at_once):
            drawn = [self._draw(self.held_out, i, i) for i in rows[first : first + at_once]]
            batch = {name: torch.stack([each[name] for each in drawn]).to(device) for name in drawn[0]}
            for i, t in enumerate(HELD_OUT_TIMES):
                times = torch.full((len(drawn),), t, device=device)
                sums[i] += self.errors(model, batch, times)[0].sum().cpu()
        means = (sums / len(rows)).tolist()
        return {f"held_out/loss_t{t:g}": m for t, m in zip(HELD_OUT_TIMES, means, strict=True)} | {
            "held_out/loss": float(np.mean(means))
        }

    @torch.no_grad()
    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """Returns held-out losses, and a picture: references, true views beneath, samples beneath these."""
        assert isinstance(model, ViewNetwork)
        numbers = {name: np.array(value) for name, value in self.measure(model).items()}
        shown = ViewModel(model, self.config.diffusion, vae=self.vae)
        size, rows = self.config.network.size, range(min(PICTURES, len(self.held_out)))
        drawn = [read_pictures(self.held_out, i, [0, 1], size=size) for i in rows]
        pictures, poses, matrices = (torch.stack(part) for part in zip(*drawn, strict=True))
        cameras = [Cameras(poses[:, v : v + 1], matrices[:, v : v + 1], size, size) for v in (0, 1)]
        condition = shown.condition(cameras=cameras[1], references=References(pictures[:, :1], cameras[0]))
        made = shown.sample(condition, seeds=torch.arange(len(rows)), steps=8)
        columns = [pictures[:, 0], pictures[:, 1], made]
        sheet = np.concatenate([np.hstack(list(on_white(straight_rgba(each)))) for each in columns])
        return numbers | {"views": sheet}


def view_inputs(batch: dict[str, Tensor]) -> ViewInputs:
    """Returns what a training batch says of conditions."""
    return ViewInputs(**{name: batch[name] for name in ViewInputs.__dataclass_fields__})


@torch.no_grad()
def picture_statistics(
    shards: AssetShards, *, size: int, vae: Any = None
) -> tuple[Float[Tensor, " channels"], Float[Tensor, ""]]:
    """Returns the mean of each channel of what is diffused, and the spread around these of all together."""
    count = min(len(shards), STATISTICS_ASSETS)
    found = []
    for index in range(0, len(shards), max(1, len(shards) // count)):
        pictures = read_pictures(shards, index, [0], size=size)[0]
        found.append(pictures if vae is None else encode_latents(vae, pictures))
    numbers = torch.cat(found)
    mean = numbers.mean(dim=(0, 2, 3))
    return mean, (numbers - mean[:, None, None]).std()
