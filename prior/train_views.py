"""Trains the view model: from pictures of an object or a caption, and a camera, to what it shows.

    python -m prior.train_views --config configs/views/tiny.yaml --out RUN/views \\
        --set data=RUN/data clip=RUN/clip

Any stored view of an asset is made from any others of it (`prior.views`). The folder holds the averaged
weights in diffusers' layout: unet/ (UNet2DConditionModel), conditioner/ and view_model.json, beside the
training loop's weights.safetensors. `python -m sampling.views` makes turntables with it,
`python -m eval.views` measures it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prior.views import ViewTask, ViewTrainConfig, picture_statistics
from shapeloom import distributed
from shapeloom.clip import Clip, load_clip
from shapeloom.config import parse_stage, run_main
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run
from shapeloom.seed import derive_seed
from shapeloom.shards import AssetShards
from shapeloom.shared_run import open_run
from shapeloom.storage import file_digest
from shapeloom.training import train
from shapeloom.view_diffusion import CONDITIONER, UNET, load_vae, save_layout, vae_shapes
from shapeloom.view_network import ViewNetwork, ViewShapes

log = get_logger("views")


def make_model(config: ViewTrainConfig, shards: AssetShards, clip: Clip | None, vae: Any) -> ViewNetwork:
    """Returns a fresh network that knows the pictures' statistics."""
    channels, side = (4, config.network.size) if vae is None else vae_shapes(vae, config.network.size)
    widths = (8, 8) if clip is None else (clip.embed_dim, clip.text_width)
    shapes = ViewShapes(
        channels=channels, side=side, clip_dim=widths[0], text_width=widths[1],
        references=config.mixture.max_references,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("views", config.train.seed))
        model = ViewNetwork(shapes, config.network)
    mean, std = picture_statistics(shards, size=config.network.size, vae=vae)
    model.conditioner.mean.copy_(mean)
    model.conditioner.std.copy_(std)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, or goes on, or says that it is done."""
    config, out, _ = parse_stage(
        ViewTrainConfig, stage="prior.train_views", description=__doc__ or "", argv=argv
    )
    world = distributed.start(hang_seconds=config.train.hang_seconds)
    start_logging(quiet=not world.is_main)
    shards = AssetShards(config.data, split="train")
    clip = None if config.clip is None else load_clip(config.clip)
    vae = None if config.vae is None else load_vae(config.vae, world.device)
    inputs = {"data": shards.digest}
    if clip is not None:
        inputs["clip"] = clip.digest
    if config.vae is not None:
        inputs["vae"] = file_digest(config.vae / UNET.rpartition("/")[2])
    with open_run(out, config, stage="views", inputs=inputs, world=world) as run:
        if run.done:
            log.info("%s already holds a finished view model", out)
            return
        _train(config, shards, clip, vae, run, world)


def _train(
    config: ViewTrainConfig,
    shards: AssetShards,
    clip: Clip | None,
    vae: Any,
    run: Run,
    world: distributed.World,
) -> None:
    held_out = AssetShards(config.data, split="val") if "val" in shards.header["splits"] else shards
    model = make_model(config, shards, clip, vae)
    task = ViewTask(model, config, shards, held_out, clip=clip, vae=vae)
    averages: dict[float, dict[str, Tensor]] = train(task, config.train, run, world)
    facts: dict[str, Any] = {"num_assets": len(shards)}
    if world.is_main:
        save_layout(
            run.folder, model.shapes, config.network, config.diffusion, averages[config.train.ema_decay]
        )
        facts["layout_digests"] = {name: file_digest(run.folder / name) for name in (UNET, CONDITIONER)}
        # A network of its own: under ZeRO-3 this process holds but a part of the task's.
        averaged = make_model(config, shards, clip, vae).to(world.device)
        averaged.load_state_dict(averages[config.train.ema_decay])
        facts["losses"] = task.measure(averaged)
    run.finish(**facts)


if __name__ == "__main__":
    run_main(main)
