"""Cap3D's published Shap-E latents and captions as latent shards, to fine-tune text300M with.

    python -m sampling.shap_e.cap3d --out RUN/latents --set latents=DIR \\
        captions=Cap3D_automated_Objaverse.csv encoder=MODEL/encoder clip=ViT-L-14/openai

DIR holds UID.pt files, the unpacked ShapELatentCode_zips (subfolders are looked into): each is one tensor of
1,048,576 numbers, what Shap-E's encoder makes of an object of Objaverse. The captions' file has lines UID,
caption, and no header. There are no pictures, so priors learn from captions alone.
Luo et al. 2023, "Scalable 3D Captioning with Pretrained Models".
"""

import hashlib
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from data_prep.sources.listings import read_cap3d
from encoder.encode import latent_sample
from shapeloom.clip import Clip, load_clip
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.decoder import load_decoder
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.runs import Run
from shapeloom.seed import derive_seed
from shapeloom.shards import dataset_is_whole, finish_dataset, shard_is_finished, write_shard

log = get_logger("cap3d")
SUFFIX = ".pt"


class Cap3dConfig(Config):
    """Which latents and captions, and whose."""

    latents: Path = Field(description="folder of UID.pt files")
    captions: Path = Field(description="CSV file without a header: UID, caption")
    encoder: Path = Field(description="encoder folder of a converted Shap-E")
    clip: str = Field("ViT-L-14/openai", description="open_clip MODEL/TAG or MODEL/FILE")
    shard_size: int = Field(128, ge=1, description="latents a shard; 2 MB each")
    held_out: float = Field(0.02, ge=0, lt=1, description="share of the objects in split val")


def read_latent(path: Path, shape: tuple[int, int]) -> Tensor:
    """Returns a file's latent, float32 [tokens, channels]; raises UserError that names the file."""
    try:
        latent = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{path} is no file of a bare tensor ({reason}). Unpack its archive again."
        ) from error
    numbers = shape[0] * shape[1]
    if not isinstance(latent, Tensor) or latent.numel() != numbers or not latent.is_floating_point():
        found = (
            f"{latent.dtype} {list(latent.shape)}" if isinstance(latent, Tensor) else type(latent).__name__
        )
        raise UserError(f"{path} holds {found}, but this encoder's latents have {numbers} numbers.")
    latent = latent.detach().float().reshape(shape)
    if not bool(torch.isfinite(latent).all()):
        raise UserError(f"{path} holds NaN or infinity: delete it, or unpack its archive again.")
    return latent


def make_samples(
    paths: Sequence[Path], captions: dict[str, list[str]], shape: tuple[int, int], clip: Clip, held_out: float
) -> list[dict[str, Any]]:
    """Returns latent-shard samples of some files, in their order."""
    texts = [captions[path.stem] for path in paths]
    text = clip.text([caption for own in texts for caption in own])
    samples, first = [], 0
    for path, own in zip(paths, texts, strict=True):
        part = slice(first, first + len(own))
        first = part.stop
        is_held_out = derive_seed("cap3d", path.stem) < held_out * 2**63
        facts = {"captions": own, "split": "val" if is_held_out else "train", "group": path.stem}
        latent = read_latent(path, shape)
        samples.append(latent_sample(path.stem, facts, latent, text, part, torch.zeros(0, clip.embed_dim)))
    return samples


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, _ = parse_stage(
        Cap3dConfig, stage="sampling.shap_e.cap3d", description=__doc__ or "", argv=argv
    )
    start_logging()
    captions = read_cap3d(config.captions)
    found = sorted(config.latents.rglob(f"*{SUFFIX}"), key=lambda path: path.stem)
    paths = [path for path in found if path.stem in captions]
    if not paths:
        raise UserError(
            f"{config.latents} holds {len(found)} {SUFFIX} files, none of them named after one of the "
            f"{len(captions)} objects in {config.captions}."
        )
    if len({path.stem for path in paths}) < len(paths):
        raise UserError(f"{config.latents} holds two files of the same object: keep one of each.")
    log.info("%d latents with captions; %d without are left out", len(paths), len(found) - len(paths))
    decoder, clip = load_decoder(config.encoder), load_clip(config.clip)
    names = "".join(f"{path.stem} {path.stat().st_size} {captions[path.stem]}\n" for path in paths)
    digest = hashlib.sha256(names.encode()).hexdigest()
    inputs = {"data": digest, "encoder": decoder.digest, "clip": clip.digest}
    with Run.open(out, config, stage="encode", inputs=inputs, places=("latents", "captions")) as run:
        if run.done and dataset_is_whole(out):
            log.info("the latents in %s are already there", out)
            return
        run.reopen(config)
        shape = decoder.latent_shape
        with progress(len(paths), "reading latents") as bar:
            for first in range(0, len(paths), config.shard_size):
                shard = out / "shards" / f"{first // config.shard_size:06d}.tar"
                part = paths[first : first + config.shard_size]
                if not shard_is_finished(shard):
                    write_shard(shard, make_samples(part, captions, shape, clip, config.held_out))
                    run.save_progress()
                bar.advance(len(part))
        facts = {"tokens": shape[0], "channels": shape[1], "layers": decoder.layout.layers, **inputs}
        finish_dataset(out, kind="latents", facts=facts)
        run.finish(num_latents=len(paths), num_without_captions=len(found) - len(paths))


if __name__ == "__main__":
    run_main(main)
