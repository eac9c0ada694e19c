"""Encodes every asset: python -m encoder.encode --out RUN/latents --set data=.. encoder=.. clip=..

Each asset shard becomes one latent shard: latents, CLIP embeddings of captions and views, and how well the
latent reproduces the asset, so that bad encodings can be left out. A shard is written aside and renamed:
whatever was finished before a kill stays finished.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field as Key

from encoder.model import Autoencoder, load_encoder, read_for_encoding
from shapeloom.clip import Clip, load_clip
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.decoder import RenderConfig
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.metrics import mask_iou, psnr
from shapeloom.pictures import on_white, read_views
from shapeloom.runs import Run
from shapeloom.shards import (
    AssetShards,
    LatentShards,
    finish_dataset,
    shard_is_finished,
    write_shard,
)
from shapeloom.storage import Location

log = get_logger("encode")


class EncodeConfig(Config):
    """What to encode and with what."""

    data: Location  # a data_prep run: a folder or a URL
    encoder: Path  # an encoder run
    clip: str  # a train-clip run, or an open_clip model as MODEL/PRETRAINED
    splits: tuple[str, ...] = ("train", "val", "test")
    clip_views: int = Key(4, ge=1)  # views embedded an asset
    batch_size: int = Key(16, ge=1)
    fidelity_size: int = Key(32, ge=8)  # pixels a side that fidelity is measured at; divides the data's


def encode_batch(
    shards: AssetShards, indices: Sequence[int], model: Autoencoder, clip: Clip, config: EncodeConfig
) -> list[dict[str, Any]]:
    """Returns one latent-shard sample an asset."""
    samples = [read_for_encoding(shards, i, model.encoder.config) for i in indices]
    latents = model.encode(samples)
    num_views = min(config.clip_views, shards.num_views)
    seen = [shards.read(i, views=range(num_views)) for i in indices]
    fidelity = _fidelity(model, latents, shards, indices, config.fidelity_size)
    pictures = np.concatenate([on_white(asset.rgba) for asset in seen if asset.rgba is not None])
    image_pooled = clip.image(pictures).reshape(len(indices), num_views, -1)
    captions = [asset.row.captions for asset in seen]
    text = clip.text([caption for per_asset in captions for caption in per_asset])
    out, first = [], 0
    for number, asset in enumerate(seen):
        part = slice(first, first + len(captions[number]))
        first = part.stop
        row = asset.row
        out.append(
            {
                "__key__": row.key,
                "json": {
                    "captions": row.captions,
                    "split": row.split,
                    "group": row.group,
                    "category": row.category,
                    "attributes": row.attributes,
                    "fidelity": fidelity[number],
                },
                "latent.npy": latents[number].cpu().numpy().astype(np.float16),
                "text_pooled.npy": text.pooled[part].cpu().numpy().astype(np.float16),
                "text_tokens.npy": text.tokens[part].cpu().numpy().astype(np.float16),
                "text_mask.npy": text.mask[part].cpu().numpy(),
                "image_pooled.npy": image_pooled[number].cpu().numpy().astype(np.float16),
            }
        )
    return out


def _fidelity(
    model: Autoencoder, latents: torch.Tensor, shards: AssetShards, indices: Sequence[int], size: int
) -> list[dict[str, float]]:
    """Returns PSNR (dB, on white) and mask IoU of each asset's first view, at `size` pixels squared."""
    truth = [read_views(shards, index, [0], size=size) for index in indices]
    poses = torch.stack([torch.from_numpy(view.cam_to_world) for view in truth])
    matrices = torch.stack([torch.from_numpy(view.intrinsics) for view in truth])
    render = model.decoder.render(
        model.decoder.weights(latents), poses.to(latents), matrices.to(latents), size, size,
        samples=RenderConfig(coarse=32, fine=16),
    )  # fmt: skip
    scores = zip(
        psnr(render.rgb[:, 0].cpu().numpy(), np.concatenate([view.rgb for view in truth])),
        mask_iou(render.alpha[:, 0].cpu().numpy(), np.concatenate([view.alpha for view in truth])),
        strict=True,
    )
    return [
        {"psnr": round(float(quality), 3), "iou": round(float(overlap), 4)} for quality, overlap in scores
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Encodes, or goes on, or says that it is done."""
    config, out, _ = parse_stage(EncodeConfig, stage="encoder.encode", description=__doc__, argv=argv)
    start_logging()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_encoder(config.encoder, device)
    clip = load_clip(config.clip, device)
    shards = AssetShards(config.data)
    inputs = {"data": shards.digest, "encoder": model.decoder.digest, "clip": clip.digest}
    run = Run.open(out, config, stage="encode", inputs=inputs)
    if run.done:
        log.info("the latents in %s are already there", out)
        return
    todo: dict[int, list[int]] = {}
    for index, row in enumerate(shards.rows):
        if row.split in config.splits:
            todo.setdefault(row.shard, []).append(index)
    if not todo:
        raise UserError(f"{config.data} has no assets of the splits {config.splits}.")
    with progress(sum(len(indices) for indices in todo.values()), "encoding assets") as bar:
        for shard, indices in todo.items():
            path = out / "shards" / f"{shard:06d}.tar"
            if not shard_is_finished(path):
                batches = [
                    indices[i : i + config.batch_size] for i in range(0, len(indices), config.batch_size)
                ]
                write_shard(
                    path, [s for batch in batches for s in encode_batch(shards, batch, model, clip, config)]
                )
                run.save_progress()
            bar.advance(len(indices))
    projection = model.decoder.config.projection
    facts = {"tokens": projection.num_tokens, "channels": projection.channels, **inputs}
    finish_dataset(out, kind="latents", facts=facts)
    latents = LatentShards(out)
    psnr = [latents.facts(i)["fidelity"]["psnr"] for i in range(len(latents))]
    log.info("%d latents; PSNR of their renders: median %.2f dB", len(psnr), np.median(psnr))
    run.finish(num_latents=len(psnr), median_psnr=round(float(np.median(psnr)), 3))


if __name__ == "__main__":
    run_main(main)
