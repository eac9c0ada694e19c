"""What `python -m sampling` and the web page are told: models, settings, and what is written of an object."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field as Key

from sampling.cutouts import PictureConfig
from sampling.formats import Format
from sampling.guidance import SampleSettings
from sampling.hub import fetch_package
from sampling.mesh import MeshConfig
from sampling.pipeline import MAX_SEED, ShapePipeline
from sampling.prompts import own_prompts
from shapeloom.config import Config, UserError
from shapeloom.decoder import RenderConfig
from shapeloom.log import get_logger

log = get_logger("sampling")


class TurntableConfig(Config):
    """The turntable of each object, as GIF, MP4 or APNG; a PNG is its first frame."""

    frames: int = Key(24, ge=1, le=720, description="pictures of one turn")
    size: int = Key(128, ge=16, le=2048, description="side in pixels")
    samples: RenderConfig = RenderConfig()


class SamplingConfig(SampleSettings):
    """What is sampled, from what, and how it is written."""

    model: str | None = Key(None, description="a run or saved pipeline folder, or a hub's owner/name")
    prior: Path | None = Key(None, description="folder of a finished prior.train; or `model`")
    view_prior: Path | None = Key(
        None, description="folder of a prior.train with predict=views: prompts go through pictures' vectors"
    )
    ema: float | None = Key(None, description="which average of the prior's weights; none: train.ema_decay's")
    encoder: Path | None = Key(None, description="folder of a finished encoder.train")
    clip: str | None = Key(None, description="folder of prior.train_clip, or an open_clip MODEL/TAG")
    prompts: list[str] = Key([], description="used when no --prompt, --prompts or --image is given")
    captions: int = Key(
        8, ge=1, description="without `prompts` either: so many captions that the prior was trained on"
    )
    num: int = Key(1, ge=1, description="objects a prompt; they get the seeds seed, seed + 1, ...")
    seed: int = Key(0, ge=0, le=MAX_SEED, description="of the first object of each prompt")
    weaker: Path | None = Key(None, description="folder of a worse prior to guide away from (autoguidance)")
    classifier: Path | None = Key(
        None, description="folder of a prior.classifier, for guidance.classifier_scale"
    )
    retries: int = Key(
        0,
        ge=0,
        le=100,
        description="more seeds to try for an object that comes out broken (empty, in crumbs)",
    )
    batch_size: int = Key(8, ge=1, description="objects that are sampled at once")
    formats: list[Format] = Key(["gif", "glb", "ply"], min_length=1, description="files of each object")
    mesh: MeshConfig = MeshConfig()
    turntable: TurntableConfig = TurntableConfig()
    pictures: PictureConfig = PictureConfig()
    device: Literal["auto", "cpu", "cuda"] = Key("auto", description="auto: a GPU where there is one")
    precision: Literal["auto", "bf16", "fp32"] = Key(
        "auto", description="of the priors' networks; auto: bf16 on GPUs that have it"
    )


def load_pipeline(config: SamplingConfig) -> ShapePipeline:
    """Loads what the config names; raises UserError for what is missing or doesn't fit together."""
    prior, encoder, clip = config.prior, config.encoder, config.clip
    if config.model is not None:
        parts = fetch_package(config.model)
        prior, encoder, clip = prior or parts.prior, encoder or parts.encoder, clip or parts.clip
    if prior is None or encoder is None or clip is None:
        raise UserError(
            "Sampling needs --model RUN, or --set prior=RUN/prior encoder=RUN/encoder clip=RUN/clip: "
            "finished runs of prior.train, encoder.train and prior.train_clip."
        )
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda was asked for, but torch finds no CUDA device here; use device=cpu.")
    on_gpu = device == "cuda" and torch.cuda.is_bf16_supported()
    return ShapePipeline.load(
        prior=prior, encoder=encoder, clip=clip, view_prior=config.view_prior,
        weaker=config.weaker, classifier=config.classifier, ema=config.ema, device=device,
        bf16=on_gpu if config.precision == "auto" else config.precision == "bf16",
    )  # fmt: skip


def captions_of(config: SamplingConfig) -> list[str]:
    """Returns captions that the config's prior was trained on, if its latents are there."""
    prior = config.prior or (None if config.model is None else Path(config.model, "prior"))
    captions = [] if prior is None else own_prompts(prior, config.captions)
    if captions:
        log.info("no prompt was given, so these are %d captions of the training assets", len(captions))
    return captions
