"""Trains the field of point clouds: from a cloud to signed distances, and by marching cubes to a mesh.

    python -m encoder.train_cloud --config configs/encoder/cloud_tiny.yaml --out RUN/cloud_field \\
        --set data=RUN/data

It is what the explicit baseline has in the place of an encoder and a decoder (Point-E's SDF regression; see
`shapeloom.fields.cloud`): nothing of an asset is learnt, its latent is its points. The folder is an encoder
run like any other: `encoder.encode` makes latent shards of clouds with it, `prior.train` learns these, and
sampling and evaluation decode them. meta.json says how good meshes of held-out assets' true clouds are: the
ceiling of all that is made of clouds.
"""

from collections.abc import Sequence

import numpy as np
import torch
import yaml
from pydantic import Field as Key
from torch import Tensor, nn

from encoder.batches import AugmentConfig, make_batch
from encoder.losses import LossConfig, distance_losses, total_loss
from encoder.model import CloudAutoencoder, EncoderConfig, read_for_encoding
from shapeloom import distributed
from shapeloom.config import Config, parse_stage, run_main
from shapeloom.decoder import Decoder, DecoderConfig, select
from shapeloom.fields.cloud import CloudFieldConfig, to_cloud
from shapeloom.log import get_logger, start_logging
from shapeloom.noise import normal
from shapeloom.runs import Run
from shapeloom.shards import AssetShards, ReadingOrder
from shapeloom.shared_run import open_run
from shapeloom.storage import Location, write_atomic
from shapeloom.surface_metrics import FIELD_SCORES, decoder_scores
from shapeloom.surfaces import read_surface
from shapeloom.training import TrainConfig, train

log = get_logger("cloud")
CEILING_ASSETS = 24


class CloudTrainConfig(Config):
    """Everything that decides a cloud field's run; of the losses, those of distances count."""

    data: Location = Key(description="a data_prep run: a folder or a URL")
    cloud: CloudFieldConfig = CloudFieldConfig()
    losses: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    jitter: float = Key(
        0.01, ge=0, description="standard deviation that points are moved by, as samples lie less well"
    )
    train: TrainConfig = TrainConfig()


class CloudTask:
    """Batches, loss and scores (see shapeloom.training.Task)."""

    def __init__(self, config: CloudTrainConfig, shards: AssetShards, held_out: AssetShards) -> None:
        self.config, self.shards, self.held_out = config, shards, held_out
        torch.manual_seed(config.train.seed)  # initial weights
        self.model: nn.Module = CloudAutoencoder(Decoder(DecoderConfig(cloud=config.cloud)))
        self.order = ReadingOrder(shards.shard_sizes, seed=config.train.seed)

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        config = self.config
        self.shards.read_ahead(self.order.shards_from(samples[0]))
        return make_batch(
            self.shards,
            [(number, self.order.index(number)) for number in samples],
            encoder=EncoderConfig(num_points=config.cloud.num_points),
            losses=config.losses,
            augment=config.augment,
            view_dropout=0.0,
            seed=config.train.seed,
            rays=False,
        )

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, CloudAutoencoder)
        decoder, surface, losses = model.decoder, batch["surface_points"], self.config.losses
        noise = normal(batch["seed"], (self.config.cloud.num_points, 3), stream="jitter").to(surface)
        moved = (batch["points"] + self.config.jitter * noise).clamp(-1, 1)
        weights = decoder.weights(to_cloud(moved, batch["rgb"]))
        sdf = decoder.geometry(weights, torch.cat([surface, batch["sdf_points"]], dim=1)).sdf
        at_surface, around = sdf.split([surface.shape[1], batch["sdf"].shape[1]], dim=1)
        parts = distance_losses(at_surface, around, batch, softness=losses.occupancy_softness)
        return total_loss(parts, losses), parts

    def names(self, samples: Sequence[int]) -> list[str]:
        return [self.shards.rows[self.order.index(number)].label for number in samples]

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """Returns no picture, but how good the surfaces of 4 held-out assets' clouds are."""
        assert isinstance(model, CloudAutoencoder)
        found = ceiling(model, self.held_out, 4)
        return {f"held_out/{name}": np.array(value) for name, value in found.items()}


def ceiling(model: CloudAutoencoder, shards: AssetShards, num: int) -> dict[str, float]:
    """Returns mean FIELD_SCORES of the surfaces that the first `num` assets' true clouds give."""
    found = []
    for index in range(min(num, len(shards))):
        latent = model.encode([read_for_encoding(shards, index, model)])
        weights = select(model.decoder.weights(latent), 0)
        found.append(decoder_scores(model.decoder, weights, read_surface(shards, index))[1])
    return {name: round(float(np.mean([each[name] for each in found])), 5) for name in FIELD_SCORES}


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, or goes on, or says that it is done."""
    config, out, _ = parse_stage(
        CloudTrainConfig, stage="encoder.train_cloud", description=__doc__ or "", argv=argv
    )
    world = distributed.start(hang_seconds=config.train.hang_seconds)
    start_logging(quiet=not world.is_main)
    shards = AssetShards(config.data, split="train")
    with open_run(out, config, stage="encoder", inputs={"data": shards.digest}, world=world) as run:
        if run.done:
            log.info("the cloud field in %s is already trained", out)
            return
        _train(config, shards, run, world)


def _train(config: CloudTrainConfig, shards: AssetShards, run: Run, world: distributed.World) -> None:
    held_out = AssetShards(config.data, split="val") if "val" in shards.header["splits"] else shards
    task = CloudTask(config, shards, held_out)
    if world.is_main:
        described = DecoderConfig(cloud=config.cloud).model_dump(mode="json")
        write_atomic(run.folder / "decoder.yaml", yaml.safe_dump(described, sort_keys=False))
    train(task, config.train, run, world)
    facts = {}
    if world.is_main:
        assert isinstance(task.model, CloudAutoencoder)
        facts = {"ceiling": ceiling(task.model.eval(), held_out, CEILING_ASSETS)}
        log.info(
            "surfaces of held-out assets' true clouds, %d points each: %s", config.cloud.num_points,
            ", ".join(f"{name} {value:.3f}" for name, value in facts["ceiling"].items()),
        )  # fmt: skip
    run.finish(**facts)


if __name__ == "__main__":
    run_main(main)
