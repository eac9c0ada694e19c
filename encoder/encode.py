"""Encodes every asset: python -m encoder.encode --out RUN/latents --set data=.. encoder=.. clip=..

Each asset shard becomes one latent shard: latents, CLIP embeddings of captions and views, and how well the
latent reproduces the asset, so that bad encodings can be left out. `mirrored`, `turned` and `stretched` add
latents of an asset's other poses and proportions, for an encoder that learnt these: a prior that has few
assets then overfits later. Shards are worked on side by side, each written aside and renamed: what was
finished before a kill stays finished.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import Field as Key
from torch import Tensor

from encoder.batches import AugmentConfig, random_change
from encoder.model import AnyAutoencoder, load_encoder, read_for_encoding
from shapeloom.box import symmetries
from shapeloom.clip import Clip, TextEmbedding, load_clip
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.decoder import Decoder, RenderConfig, load_decoder
from shapeloom.executors import Executor, check_written, everywhere, run_tasks
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.metrics import mask_iou, psnr
from shapeloom.pictures import on_white, read_views
from shapeloom.runs import Run
from shapeloom.seed import numpy_rng
from shapeloom.shards import (
    AssetSample,
    AssetShards,
    dataset_is_whole,
    finish_dataset,
    shard_is_finished,
    write_shard,
)
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import Location

log = get_logger("encode")


class EncodeConfig(Config):
    """What to encode and with what."""

    data: Location = Key(description="a data_prep run: a folder or a URL")
    encoder: Path = Key(description="an encoder run")
    clip: str = Key(description="a train-clip run, or an open_clip model as MODEL/PRETRAINED")
    splits: tuple[str, ...] = Key(("train", "val", "test"), description="which splits to encode")
    clip_views: int = Key(4, ge=1, description="views of an asset that CLIP embeds")
    clip_grid: bool = Key(
        False, description="keep the views' grids of tokens too, for priors that look at them"
    )
    batch_size: int = Key(16, ge=1, description="assets encoded at once")
    fidelity_size: int = Key(
        32, ge=8, description="side of the pictures that fidelity is measured at, pixels; divides the data's"
    )
    mirrored: bool = Key(False, description="latents of mirror images (x -> -x) too, as `latent_copies`")
    turned: bool = Key(
        False, description="and of quarter turns about +Z; captions must hold for them all the same"
    )
    stretched: int = Key(
        0, ge=0, le=64, description="and of so many copies an asset, stretched as in the encoder's training"
    )
    embeddings: Location | None = Key(
        None,
        description="latents of the same assets and CLIP, to take embeddings over (a folder or a URL); "
        "nothing is rendered",
    )
    workers: int | None = Key(
        None, ge=0, description="processes; none: one per GPU, or one per core; 0: in this process"
    )


@dataclass(frozen=True)
class ShardTask:
    """Some assets of one asset shard, to become one latent shard."""

    path: Path
    shard: int
    indices: tuple[int, ...]
    config: EncodeConfig

    @property
    def device(self) -> str:
        """Where to encode it: on Ray the one GPU that the task was given."""
        num_gpus = torch.cuda.device_count()
        return f"cuda:{self.shard % num_gpus}" if num_gpus else "cpu"


@lru_cache(1)
def _tools(config: EncodeConfig, device: str) -> tuple[AnyAutoencoder, Clip, AssetShards]:
    """What a worker keeps from one shard to the next."""
    model, clip = load_encoder(config.encoder, device), load_clip(config.clip, device)
    return model, clip, AssetShards(config.data)


def encode_shard(task: ShardTask, report: Callable[[int], None]) -> None:
    """Writes one latent shard; reports the number of assets after each batch."""
    model, clip, shards = _tools(task.config, task.device)
    samples: list[dict[str, Any]] = []
    for start in range(0, len(task.indices), task.config.batch_size):
        batch = task.indices[start : start + task.config.batch_size]
        samples += encode_batch(shards, batch, model, clip, task.config)
        report(len(samples))
    write_shard(task.path, samples)


def encode_batch(
    shards: AssetShards, indices: Sequence[int], model: AnyAutoencoder, clip: Clip, config: EncodeConfig
) -> list[dict[str, Any]]:
    """Returns one latent-shard sample an asset."""
    samples = [read_for_encoding(shards, i, model) for i in indices]
    latents = model.encode(samples)
    copies = [model.encode(list(changed)) for changed in zip(*_changed(samples, config), strict=True)]
    if config.embeddings is not None:
        return [
            {**_embedded(config.embeddings, shards.rows[i].key), "latent.npy": _half(latent)}
            for i, latent in zip(indices, latents, strict=True)
        ]
    num_views = min(config.clip_views, shards.num_views)
    seen = [shards.read(i, views=range(num_views)) for i in indices]
    fidelity = _fidelity(model, latents, shards, indices, config.fidelity_size)
    pictures = np.concatenate([on_white(asset.rgba) for asset in seen if asset.rgba is not None])
    image_pooled = clip.image(pictures).reshape(len(indices), num_views, -1)
    grids = clip.grid(pictures).unflatten(0, (len(indices), num_views)) if config.clip_grid else None
    captions = [asset.row.captions for asset in seen]
    text = clip.text([caption for per_asset in captions for caption in per_asset])
    out, first = [], 0
    for number, asset in enumerate(seen):
        row, part = asset.row, slice(first, first + len(captions[number]))
        first = part.stop
        facts = {
            "captions": row.captions, "split": row.split, "group": row.group, "category": row.category,
            "attributes": row.attributes, "fidelity": fidelity[number],
        }  # fmt: skip
        out.append(latent_sample(row.key, facts, latents[number], text, part, image_pooled[number]))
        if copies:
            out[-1]["latent_copies.npy"] = _half(torch.stack([copy[number] for copy in copies]))
        if grids is not None:
            out[-1]["image_grid.npy"] = _half(grids[number])
    return out


@lru_cache(1)
def _known(folder: str) -> tuple[LatentShards, dict[str, int]]:
    known = LatentShards(folder)
    return known, {row.key: index for index, row in enumerate(known.rows)}


def _embedded(folder: str, key: str) -> dict[str, Any]:
    """What the latents in a folder say of an asset, but for its latents and how faithful they are."""
    known, places = _known(folder)
    if key not in places:
        raise UserError(
            f"embeddings={folder} knows no asset {key}: name latents of the same data and splits."
        )
    index = places[key]
    facts = {name: value for name, value in known.facts(index).items() if name != "fidelity"}
    arrays = {f"{name}.npy": value.numpy() for name, value in known.read(index).items()}
    return {"__key__": key, "json": facts, **{k: v for k, v in arrays.items() if not k.startswith("latent")}}


def latent_sample(
    key: str, facts: dict[str, Any], latent: Tensor, text: TextEmbedding, part: slice, image_pooled: Tensor
) -> dict[str, Any]:
    """Returns a sample of a latent shard, as `LatentShards` reads it, numbers in 16 bits.

    part: the rows of `text` that are the asset's captions.
    """
    return {
        "__key__": key, "json": facts, "latent.npy": _half(latent),
        "text_pooled.npy": _half(text.pooled[part]), "text_tokens.npy": _half(text.tokens[part]),
        "text_mask.npy": text.mask[part].cpu().numpy(), "image_pooled.npy": _half(image_pooled),
    }  # fmt: skip


def _half(numbers: Tensor) -> np.ndarray:
    return numbers.cpu().numpy().astype(np.float16)


def _changed(samples: Sequence[AssetSample], config: EncodeConfig) -> list[list[AssetSample]]:
    """Returns each asset's copies: its other poses, then the stretched ones, half of which are mirrored."""
    moves = symmetries(mirrored=config.mirrored, turned=config.turned)[1:]
    poses = [[_moved(sample, move.astype(np.float32)) for move in moves] for sample in samples]
    if not config.stretched:
        return poses
    trained = AugmentConfig(**_trained(config)["augment"])
    kinds = trained.model_copy(update={"turn": False, "colors": False})
    for sample, copies in zip(samples, poses, strict=True):
        assert sample.points is not None
        extents = np.abs(sample.points).max(axis=0)
        for number in range(config.stretched):
            change = random_change(numpy_rng("stretched", sample.row.key, number), kinds, extents)
            copies.append(_moved(sample, change.matrix.numpy()))
    return poses


def _moved(sample: AssetSample, matrix: np.ndarray) -> AssetSample:
    """What the encoder reads of the asset, as if it had been changed before it was prepared.

    matrix: [3, 3], x -> matrix @ x. Poses follow orthogonal ones alone.
    """
    assert sample.points is not None and sample.points_normal is not None
    poses = sample.cam_to_world.copy()
    poses[:, :3] = matrix @ poses[:, :3]
    before = sample.points_normal.astype(np.float32)
    normals = before @ np.linalg.inv(matrix)
    lengths = np.linalg.norm(np.stack([before, normals]), axis=-1, keepdims=True)
    normals *= lengths[0] / np.maximum(lengths[1], 1e-6)
    return replace(
        sample,
        points=sample.points @ matrix.T,
        points_normal=np.round(normals).astype(np.int8),
        cam_to_world=poses,
    )


def _trained(config: EncodeConfig) -> dict[str, Any]:
    return dict(yaml.safe_load((config.encoder / "config.yaml").read_text()))


def _check_copies(config: EncodeConfig) -> None:
    """Raises UserError for copies of a kind that the encoder has never seen."""
    trained = _trained(config)
    for name, key in (("mirrored", "mirror"), ("turned", "turn"), ("stretched", "stretch")):
        if getattr(config, name) and not trained.get("augment", {}).get(key):
            raise UserError(
                f"{name} asks for latents of assets as the encoder {config.encoder} has never seen "
                f"them: train one with augment.{key}, or leave {name} out."
            )
    if config.stretched and trained["encoder"].get("num_views"):
        raise UserError(
            f"the encoder {config.encoder} reads views, and a stretched asset has none: leave stretched out."
        )


def _check_embeddings(config: EncodeConfig, data: str, clip: str) -> None:
    """Raises UserError for embeddings of other data or by another CLIP, and for copies, which have none."""
    if config.embeddings is None:
        return
    header = LatentShards(config.embeddings).header
    if (header["data"], header["clip"]) != (data, clip):
        raise UserError(
            f"embeddings={config.embeddings} are of other data or by another CLIP than data={config.data} "
            f"and clip={config.clip}. Name latents of the same run, or leave embeddings out."
        )
    if config.mirrored or config.turned or config.stretched:
        raise UserError("embeddings take over no copies: leave those or embeddings out.")


def _fidelity(
    model: AnyAutoencoder, latents: Tensor, shards: AssetShards, indices: Sequence[int], size: int
) -> list[dict[str, float]]:
    """Returns PSNR (dB, on white) and mask IoU of each asset's first view, at `size` pixels squared."""
    truth = [read_views(shards, index, [0], size=size) for index in indices]
    poses = torch.stack([torch.from_numpy(view.cam_to_world) for view in truth])
    matrices = torch.stack([torch.from_numpy(view.intrinsics) for view in truth])
    render = model.decoder.render(
        model.decoder.weights(latents), poses.to(latents), matrices.to(latents), size, size,
        samples=RenderConfig(coarse=24, fine=8),
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
    config, out, arguments = parse_stage(EncodeConfig, stage="encoder.encode", description=__doc__, argv=argv)
    start_logging()
    shards = AssetShards(config.data)
    decoder, clip = load_decoder(config.encoder), load_clip(config.clip)
    _check_copies(config)
    _check_embeddings(config, shards.digest, clip.digest)
    inputs = {"data": shards.digest, "encoder": decoder.digest, "clip": clip.digest}
    with Run.open(out, config, stage="encode", inputs=inputs) as run:
        if run.done and dataset_is_whole(out):
            log.info("the latents in %s are already there", out)
            return
        if run.done:
            log.warning("%s was done, but has lost shards since, which are made again", out)
            run.reopen(config)
        _encode(config, shards, decoder, run, arguments.executor)


def _encode(
    config: EncodeConfig, shards: AssetShards, decoder: Decoder, run: Run, executor: Executor
) -> None:
    # Workers on other machines write there too.
    out = run.folder.absolute()
    members: dict[int, list[int]] = {}
    for index, row in enumerate(shards.rows):
        if row.split in config.splits:
            members.setdefault(row.shard, []).append(index)
    if not members:
        raise UserError(f"{config.data} has no assets of the splits {config.splits}.")
    tasks = [
        ShardTask(
            out / "shards" / f"{shard:06d}.tar",
            shard,
            tuple(indices),
            everywhere(config, "data", "clip", "embeddings"),
        )
        for shard, indices in members.items()
    ]
    _run_shards(tasks, config, run, executor)
    tokens, channels = decoder.latent_shape
    facts = {"tokens": tokens, "channels": channels, **run.meta["inputs"]}
    facts["layers"], facts["is_set"] = decoder.layout.layers, decoder.layout.is_set
    finish_dataset(out, kind="latents", facts=facts)
    if config.embeddings is not None:
        run.finish(num_latents=sum(map(len, members.values())))
        return
    latents = LatentShards(out)
    psnr = [latents.facts(i)["fidelity"]["psnr"] for i in range(len(latents))]
    log.info("%d latents; PSNR of their renders: median %.2f dB", len(psnr), np.median(psnr))
    run.finish(num_latents=len(psnr), median_psnr=round(float(np.median(psnr)), 3))


def _run_shards(tasks: Sequence[ShardTask], config: EncodeConfig, run: Run, executor: Executor) -> None:
    done = {task.path: len(task.indices) if shard_is_finished(task.path) else 0 for task in tasks}
    total = sum(len(task.indices) for task in tasks)
    with progress(total, "encoding assets", done=sum(done.values())) as bar:

        def on_report(task: ShardTask, number: int) -> None:
            bar.advance(max(0, number - done[task.path]))  # a shard that lost its worker starts over
            done[task.path] = max(done[task.path], number)

        workers = config.workers if config.workers is not None else torch.cuda.device_count() or None
        open_tasks = [task for task in tasks if not done[task.path]]
        for task, _ in run_tasks(
            encode_shard, open_tasks, workers=workers, on_report=on_report, executor=executor,
            preload=["encoder.model"], on_gpu=True,
        ):  # fmt: skip
            check_written(task.path)
            bar.advance(len(task.indices) - done[task.path])  # Ray passes no reports on
            done[task.path] = len(task.indices)
            run.save_progress()


if __name__ == "__main__":
    # By its name: what workers are sent must not be of a module called __main__.
    from encoder.encode import main as by_name

    run_main(by_name)
