"""Shap-E's published checkpoints, or a diffusers folder, to a pipeline of ours, and back to diffusers.

    python -m sampling.shap_e.convert --out MODEL --set source=DIR model=text300M
    python -m sampling.shap_e.convert --out DIFFUSERS_DIR --set source=MODEL to=diffusers [prior=RUN/prior]

source: a folder with text_cond.pt or image_cond.pt, and transmitter.pt (or vector_decoder.pt, which can't
encode assets); or a folder as diffusers' openai/shap-e and openai/shap-e-img2img; or, to diffusers, a run or
pipeline folder of ours. MODEL loads with ShapePipeline.from_pretrained. CLIP isn't part of any of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from prior.denoiser import NetworkConfig
from prior.description import Description, read_description
from sampling.hub import FORMAT, fetch_package
from shapeloom.config import Config, UserError, load_config, parse_stage, run_main
from shapeloom.decoder import DecoderConfig
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run, lock_folder, read_meta
from shapeloom.shap_e.diffusers import read_diffusers, write_prior, write_renderer, write_scheduler
from shapeloom.shap_e.names import OURS, TRANSMITTER, renamed
from shapeloom.shap_e.prior import ShapEDenoiser
from shapeloom.shap_e.published import FILES, PUBLISHED, Part, Sizes, read_published
from shapeloom.storage import file_digest, put_file, scratch_file, write_atomic
from shapeloom.weights import checked_digest, read_tensors

log = get_logger("convert")
OFFICIAL_CLIP = "ViT-L-14/openai"


class ConvertConfig(Config):
    """What to convert."""

    source: Path = Field(
        description="a folder of published files, a pipeline of ours or one in diffusers' layout"
    )
    model: Literal["text300M", "image300M"] = Field(
        "text300M", description="which of the two, where the source is a folder of published files"
    )
    prior: Path | None = Field(
        None, description="to diffusers: a fine-tuned prior's folder, instead of the source's own"
    )
    to: Literal["shapeloom", "diffusers"] = Field("shapeloom", description="the layout to write")
    allow_other: bool = Field(
        False, description="take .pt files that aren't the published ones, such as fine-tuned models"
    )


def convert(config: ConvertConfig, out: Path, *, sizes: Sizes = PUBLISHED) -> None:
    """Writes `out`; raises UserError for a source that isn't one, or is damaged."""
    if not config.source.is_dir():
        raise UserError(f"source={config.source} is no folder.")
    if config.to == "diffusers":
        _to_diffusers(config, out)
        return
    if config.prior is not None:
        raise UserError(
            "prior goes with to=diffusers; here, sample with --model MODEL --set prior=RUN/prior."
        )
    part: Part = config.model
    if (config.source / "shap_e_renderer").is_dir():
        sizes, part, prior, decoder = read_diffusers(config.source)
        encoder: dict[str, Tensor] = {}
    else:
        path = config.source / FILES[part][0]
        prior = read_published(path, part, sizes=sizes, allow_other=config.allow_other)
        encoder, decoder = _read_coder(config, sizes)
    with lock_folder(out):
        write_pipeline(config, out, sizes, part, prior=prior, encoder=encoder, decoder=decoder)


def _read_coder(config: ConvertConfig, sizes: Sizes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors, if there is one, and the decoder's under the names of vector_decoder.pt."""
    whole = config.source / FILES["transmitter"][0]
    if not whole.is_file():
        path = config.source / FILES["decoder"][0]
        if not path.is_file():
            raise UserError(f"{config.source} has neither {whole.name} nor {path.name}.")
        return {}, read_published(path, "decoder", sizes=sizes, allow_other=config.allow_other)
    state = read_published(whole, "transmitter", sizes=sizes, allow_other=config.allow_other)
    decoder = tuple(TRANSMITTER.values())
    encoder = {name: value for name, value in state.items() if not name.startswith(decoder)}
    return encoder, renamed(state, TRANSMITTER, back=True)


def write_pipeline(
    config: ConvertConfig, out: Path, sizes: Sizes, part: Part, *,
    prior: dict[str, Tensor], encoder: dict[str, Tensor], decoder: dict[str, Tensor],
) -> None:  # fmt: skip
    """Writes the folders encoder/ and prior/ of a pipeline, as finished runs."""
    with Run.open(out / "encoder", config, stage="encoder") as run:
        dumped = DecoderConfig(shap_e=sizes.field).model_dump(mode="json")
        write_atomic(run.folder / "decoder.yaml", yaml.safe_dump({"shap_e": dumped["shap_e"]}))
        if encoder:
            coder = yaml.safe_dump(sizes.encoder.model_dump(mode="json"))
            write_atomic(run.folder / "encoder.yaml", coder)
        digest = save_tensors(run.folder / "weights.safetensors", encoder | renamed(decoder, OURS))
        run.finish(weights_digest=digest)
    size = sizes.prior(part)
    network = NetworkConfig(
        kind="shap_e_text" if size.reads == "text" else "shap_e_image",
        width=size.width, depth=size.depth, heads=size.heads,
    )  # fmt: skip
    diffusion = DiffusionConfig(schedule="shap_e", target="x0", times="uniform")
    # Which file CLIP was in isn't published: no digest, so any is taken whose vectors fit.
    with Run.open(out / "prior", config, stage="prior", inputs={"encoder": digest, "clip": ""}) as run:
        Description(sizes.shapes(part), network, diffusion).write(run.folder)
        run.finish(weights_digest=save_tensors(run.folder / "weights.safetensors", prior))
    write_atomic(
        out / "pipeline.json", json.dumps({"format": FORMAT, "clip": OFFICIAL_CLIP}, indent=1) + "\n"
    )
    log.info("%s is ready: ShapePipeline.from_pretrained(%r)", out, str(out))


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Writes a safetensors file, whole or not at all, and returns its SHA-256."""
    with scratch_file(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        put_file(temporary, path)
    return file_digest(path)


def _to_diffusers(config: ConvertConfig, out: Path) -> None:
    """Writes prior/, shap_e_renderer/ and scheduler/; tokenizer and CLIP are diffusers' own."""
    source, parts = config.source, fetch_package(config.source)
    prior = config.prior or parts.prior
    meta, description = read_meta(prior, stage="prior"), read_description(prior)
    if meta["inputs"]["encoder"] != read_meta(parts.encoder, stage="encoder")["weights_digest"]:
        raise UserError(f"The prior in {prior} is of another decoder's latents than {source}'s.")
    field = load_config(DecoderConfig, parts.encoder / "decoder.yaml").shap_e
    with torch.device("meta"):
        network = description.make()
    if not isinstance(network, ShapEDenoiser) or field is None:
        raise UserError(f"{source} is no Shap-E model, which is all that diffusers' pipelines can run.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} isn't empty: name a new folder.")
    checked_digest(prior / "weights.safetensors", meta["weights_digest"])
    checked_digest(parts.encoder / "weights.safetensors", meta["inputs"]["encoder"])
    write_prior(out / "prior", network.size, description.shapes, read_tensors(prior / "weights.safetensors"))
    weights = read_tensors(parts.encoder / "weights.safetensors")
    write_renderer(out / "shap_e_renderer", field, renamed(weights, OURS, back=True))
    write_scheduler(out / "scheduler")
    log.info("%s has prior/, shap_e_renderer/ and scheduler/ for diffusers' Shap-E pipelines", out)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, _ = parse_stage(
        ConvertConfig, stage="sampling.shap_e.convert", description=__doc__ or "", argv=argv
    )
    start_logging()
    convert(config, out)


if __name__ == "__main__":
    run_main(main)
