"""Trains the latent diffusion prior, or fine-tunes one.

    python -m prior.train --config configs/prior/tiny.yaml --out RUN/prior --set latents=RUN/latents

Every sample is a latent with some of its asset's conditions (`prior.latents.MixtureConfig`), so that one
model answers to text and to pictures, and to none for classifier-free guidance. With `predict=views` the
network learns a picture's CLIP vector from a caption instead (unCLIP's prior), for priors of pictures.
The folder holds weights.safetensors (EMA; with the latents' mean and spread) and prior.json (its sizes).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prior.description import Description
from prior.fine_tune import check_conditions, start_from, warn_of_forgetting
from prior.latents import Latents, num_components, principal_components, standardisation
from prior.lora import merge_lora
from prior.model import Prior, load_prior
from prior.task import PriorConfig, PriorTask, read_held_out, read_latents
from shapeloom import distributed
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.decoder import Decoder, load_decoder
from shapeloom.denoising import DenoisingNetwork
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run
from shapeloom.seed import derive_seed
from shapeloom.shards.tensors import LatentShards
from shapeloom.shared_run import open_run
from shapeloom.training import train

log = get_logger("prior")


def describe(latents: Latents, config: PriorConfig) -> Description:
    """What prior.json says of a fresh prior."""
    num = num_components(latents.latent, latents.shapes.layers, config.network.components)
    network = config.network.model_copy(update={"components": num})
    return Description(latents.shapes, network, config.diffusion, config.predict, max_views=latents.max_views)


def new_model(latents: Latents, config: PriorConfig) -> DenoisingNetwork:
    """A fresh network that knows the latents' statistics, or of zero mean and unit variance without them."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("prior", config.train.seed))
        described = describe(latents, config)
        model = described.make()
    known = [latents.latent, *([] if latents.copies is None else [latents.copies.flatten(0, 1)])]
    if config.standardise != "none" and model.standardises:
        numbers = torch.cat(known)
        # Points are one another's equals: each channel has one mean and spread.
        numbers = numbers.flatten(0, 1)[:, None] if latents.is_set else numbers
        mean, std = standardisation(numbers, common=config.standardise == "common")
        model.standard_mean.copy_(mean)
        model.standard_std.copy_(std)
    if num := described.network.components:
        learnt = (torch.cat(known) - model.standard_mean) / model.standard_std
        basis, variance = principal_components(learnt, latents.shapes.layers, num)
        model.get_buffer("basis").copy_(basis)
        model.get_buffer("variance").copy_(variance)
    return model


def read_old(
    config: PriorConfig, classes: Sequence[str], header: Mapping[str, Any]
) -> tuple[Latents, Latents] | None:
    """Latents of the prior that is fine-tuned: (training split, held-out split or else the same)."""
    folder = config.fine_tune.old_latents
    if folder is None:
        return None
    theirs = LatentShards(folder, "train").header
    if (theirs["encoder"], theirs["clip"]) != (header["encoder"], header["clip"]):
        raise UserError(
            f"fine_tune.old_latents={folder} were made by another encoder or CLIP than {config.latents}: "
            "their numbers mean different things. Name the latents that init_from was trained on."
        )
    old = read_latents(folder, "train", config, classes)
    return old, read_held_out(folder, config, classes) or old


def _compare(
    task: PriorTask, model: DenoisingNetwork, averages: dict[float, dict[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Held-out losses of each average of the weights: which to sample with is chosen after the training."""
    losses = {}
    for decay, weights in averages.items():
        model.load_state_dict(weights)
        losses[f"{decay:g}"] = task.measure(model)
    if len(averages) > 1 and any(losses.values()):
        best = min(losses, key=lambda name: losses[name]["held_out/loss"])
        log.info("of the averages, that of decay %s has the least held-out loss; see meta.json", best)
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, or goes on, or says that it is done."""
    config, out, _ = parse_stage(PriorConfig, stage="prior.train", description=__doc__, argv=argv)
    world = distributed.start(hang_seconds=config.train.hang_seconds)
    start_logging(quiet=not world.is_main)
    if config.latents is None:
        raise UserError("prior.train needs --set latents=RUN/latents: the folder that encoder.encode wrote.")
    shards = LatentShards(config.latents, config.split)
    header, first = shards.header, config.fine_tune.init_from
    inputs = {"latents": shards.digest, "encoder": header["encoder"], "clip": header["clip"]}
    start = None if first is None else load_prior(first)
    if start is not None:
        inputs["init_from"] = start.digest
    decoder = None if config.encoder is None else load_decoder(config.encoder, world.device)
    if decoder is not None and decoder.digest != header["encoder"]:
        raise UserError(
            f"The latents in {config.latents} were made by the encoder {header['encoder'][:12]}, but "
            f"encoder={config.encoder} is {decoder.digest[:12]}: name the one that made them."
        )
    if config.fine_tune.old_latents is not None:
        inputs["old_latents"] = LatentShards(config.fine_tune.old_latents).digest
    with open_run(out, config, stage="prior", inputs=inputs, world=world) as run:
        if run.done:
            log.info("%s already holds a finished prior", out)
            return
        _train(config, header, start, decoder, run, world)


def _train(
    config: PriorConfig, header: Mapping[str, Any], start: Prior | None, decoder: Decoder | None, run: Run,
    world: distributed.World,
) -> None:  # fmt: skip
    assert config.latents is not None
    latents = read_latents(
        config.latents, config.split, config, () if start is None else start.shapes.classes
    )
    model = new_model(latents, config) if start is None else start_from(
        start, config.fine_tune, latents, header,
        network=config.network, diffusion=config.diffusion, seed=config.train.seed,
    )  # fmt: skip
    held_out = read_held_out(config.latents, config, latents.shapes.classes)
    old = read_old(config, latents.shapes.classes, header)
    known = [latents, *([held_out] if held_out else []), *(old or ())]
    check_conditions(model, config.mixture, known)
    task = PriorTask(model, latents, config, run, held_out=held_out, old=old, decoder=decoder)
    description = replace(describe(latents, config), shapes=model.shapes)
    if world.is_main:
        description.write(run.folder)
    before = {} if start is None else task.measure(model)
    averages = train(task, config.train, run, world, export=merge_lora)
    facts: dict[str, Any] = {"num_latents": len(latents.latent), "num_captionless": latents.num_captionless}
    if world.is_main:
        # Without low-rank parts.
        plain = description.make().to(world.device)
        compared = _compare(task, plain, averages)
        facts["losses"] = compared | ({"before": before} if before else {})
        warn_of_forgetting(before, compared[f"{config.train.ema_decay:g}"])
    run.finish(**facts)


if __name__ == "__main__":
    run_main(main)
