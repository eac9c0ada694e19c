"""Trains the encoder on the train split of a data_prep run, through DeepSpeed.

python -m encoder.train --config configs/encoder/tiny.yaml --out RUN/encoder --set data=RUN/data
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from pydantic import Field as Key
from pydantic import model_validator
from torch import Tensor, nn

from encoder.batches import VIEWS, AugmentConfig, make_batch
from encoder.losses import LossConfig, point_losses, ray_losses, standard_divergence, total_loss
from encoder.mesh_losses import MeshLossConfig, mesh_loss
from encoder.model import Autoencoder, EncoderConfig, EncoderInputs, load_encoder, read_for_encoding
from encoder.tokens import pixel_features
from shapeloom import distributed
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.decoder import DecoderConfig, select
from shapeloom.log import get_logger, start_logging
from shapeloom.metrics import psnr
from shapeloom.noise import normal
from shapeloom.pictures import read_views, to_uint8
from shapeloom.runs import Run
from shapeloom.shards import AssetShards, ReadingOrder
from shapeloom.shared_run import open_run
from shapeloom.storage import Location, write_atomic
from shapeloom.surface_metrics import FIELD_SCORES, decoder_scores
from shapeloom.surfaces import read_surface
from shapeloom.training import TrainConfig, train

log = get_logger("encoder")
MEASURED = 4  # held-out assets whose surfaces are measured whenever there are pictures: half a second each


class EncoderTrainConfig(Config):
    """Everything that decides an encoder run."""

    data: Location = Key(description="a data_prep run: a folder or a URL")
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    start: Path | None = Key(
        None, description="a finished encoder run of the same sizes, whose weights training starts from"
    )
    decoder_alone: bool = Key(
        False, description="keep `start`'s encoder, and so its latents, and train its decoder"
    )
    losses: LossConfig = LossConfig()
    meshes: MeshLossConfig = MeshLossConfig()
    augment: AugmentConfig = AugmentConfig()
    bottleneck_noise: float = Key(0.05, ge=0, description="standard deviation, for latents in [-1, 1]")
    bottleneck_noise_end: float | None = Key(
        None, ge=0, description="what it has changed to, linearly, by the last step; null: it stays"
    )
    kl: float = Key(
        1e-3, ge=0, description="weight of a variational encoder's divergence, which takes the noise's place"
    )
    view_dropout: float = Key(
        0.3, ge=0, le=1, description="fraction of assets that must do with points alone"
    )
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _an_encoder_is_kept(self) -> "EncoderTrainConfig":
        if self.decoder_alone and self.start is None:
            raise ValueError("decoder_alone=true keeps the encoder of a finished run: name it as `start`")
        return self


def bottleneck_noise(config: EncoderTrainConfig, step: int) -> float:
    """Returns the standard deviation of step `step`, from 0."""
    first, last = config.bottleneck_noise, config.bottleneck_noise_end
    return first if last is None else first + (last - first) * step / max(1, config.train.steps - 1)


class EncoderTask:
    """Batches, loss and pictures of the encoder's training (see shapeloom.training.Task)."""

    def __init__(self, config: EncoderTrainConfig, shards: AssetShards, held_out: AssetShards) -> None:
        self.config, self.shards, self.held_out = config, shards, held_out
        torch.manual_seed(config.train.seed)  # initial weights
        model = Autoencoder(config.encoder, config.decoder)
        model.encoder.requires_grad_(not config.decoder_alone)
        self.model: nn.Module = model
        self.order = ReadingOrder(shards.shard_sizes, seed=config.train.seed)

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        config = self.config
        self.shards.read_ahead(self.order.shards_from(samples[0]))
        step, first = samples[0] // config.train.batch_size, config.meshes.from_step
        batch = make_batch(
            self.shards,
            [(number, self.order.index(number)) for number in samples],
            encoder=config.encoder,
            losses=config.losses,
            augment=config.augment,
            view_dropout=config.view_dropout,
            seed=config.train.seed,
            meshes=config.meshes if first is not None and step >= first else None,
            rays=config.losses.draws_rays(step, config.train.steps),
        )
        return batch | {"bottleneck_noise": torch.full((len(samples),), bottleneck_noise(config, step))}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, Autoencoder)
        pixels = pixel_features(*(batch[name] for name in VIEWS)) if VIEWS[0] in batch else None
        inputs = EncoderInputs(batch["points"], batch["rgb"], batch["normals"], pixels)
        latent, log_std = model.encoder.distribution(inputs, batch.get("views_kept"))
        noise = normal(batch["seed"], tuple(latent.shape[1:]), stream="bottleneck", device=latent.device)
        spread = batch["bottleneck_noise"][:, None, None] if log_std is None else log_std.exp()
        weights = model.decoder.weights(latent + spread * noise)
        losses = self.config.losses
        parts = point_losses(model.decoder, weights, batch, losses)
        if "ray_t" in batch:
            parts |= ray_losses(model.decoder, weights, batch, losses)
        total = total_loss(parts, losses)
        if log_std is not None:
            parts["kl"] = standard_divergence(latent, log_std)
            total = total + self.config.kl * parts["kl"]
        if "mesh_rgba" in batch:
            parts["mesh"] = mesh_loss(model.decoder, weights, batch, self.config.meshes)
            total = total + self.config.meshes.weight * parts["mesh"]
        return total, parts

    def names(self, samples: Sequence[int]) -> list[str]:
        return [self.shards.rows[self.order.index(number)].label for number in samples]

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """Returns held-out assets, the truth above, the render below, and how good their surfaces are."""
        assert isinstance(model, Autoencoder)
        shards = self.held_out
        num = min(8, len(shards))
        device = next(model.parameters()).device
        samples = [read_for_encoding(shards, i, model.encoder.config) for i in range(num)]
        weights = model.decoder.weights(model.encode(samples))
        size, view = shards.resolution, shards.num_views - 1
        truth = [read_views(shards, i, [view], size=size) for i in range(num)]
        poses = torch.stack([torch.from_numpy(v.cam_to_world) for v in truth]).to(device)
        matrices = torch.stack([torch.from_numpy(v.intrinsics) for v in truth]).to(device)
        render = model.decoder.render(weights, poses, matrices, size, size).rgb[:, 0].cpu().numpy()
        true_rgb = np.concatenate([v.rgb for v in truth])
        log.info("step %d: PSNR of %d held-out pictures %.2f dB", step, num, psnr(render, true_rgb).mean())
        surfaces = [
            decoder_scores(model.decoder, select(weights, i), read_surface(shards, i))[1]
            for i in range(min(MEASURED, num))
        ]
        means = {f"held_out/{k}": np.array(np.mean([each[k] for each in surfaces])) for k in FIELD_SCORES}
        picture = np.concatenate([np.hstack(list(true_rgb)), np.hstack(list(render))])
        return {"held_out": to_uint8(picture), **means}


def starting_weights(config: EncoderTrainConfig) -> Autoencoder | None:
    """Returns the autoencoder that training starts from; UserError if it isn't of the config's sizes."""
    if config.start is None:
        return None
    model = load_encoder(config.start)
    if not isinstance(model, Autoencoder):
        raise UserError(f"start={config.start} holds Shap-E's encoder, which this trainer doesn't train.")
    for name, asked, found in (
        ("encoder", config.encoder, model.encoder.config), ("decoder", config.decoder, model.decoder.config)
    ):  # fmt: skip
        if asked != found:
            raise UserError(
                f"start={config.start} holds an {name} of other sizes than this config's `{name}`. Copy that "
                f"key from {config.start / 'config.yaml'} to your preset."
            )
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, or goes on, or says that it is done."""
    config, out, _ = parse_stage(EncoderTrainConfig, stage="encoder.train", description=__doc__, argv=argv)
    world = distributed.start(hang_seconds=config.train.hang_seconds)
    start_logging(quiet=not world.is_main)
    shards = AssetShards(config.data, split="train")
    start = starting_weights(config)
    inputs = {"data": shards.digest} | ({"start": start.decoder.digest} if start else {})
    with open_run(out, config, stage="encoder", inputs=inputs, world=world) as run:
        if run.done:
            log.info("the encoder in %s is already trained", out)
            return
        _train(config, shards, start, run, world)


def _train(
    config: EncoderTrainConfig, shards: AssetShards, start: Autoencoder | None, run: Run,
    world: distributed.World,
) -> None:  # fmt: skip
    held_out = AssetShards(config.data, split="val") if "val" in shards.header["splits"] else shards
    task = EncoderTask(config, shards, held_out)
    if start is not None:
        task.model.load_state_dict(start.state_dict())
    if world.is_main:
        for name, part in (("encoder", config.encoder), ("decoder", config.decoder)):
            write_atomic(
                run.folder / f"{name}.yaml", yaml.safe_dump(part.model_dump(mode="json"), sort_keys=False)
            )
    train(task, config.train, run, world)
    run.finish()


if __name__ == "__main__":
    run_main(main)
