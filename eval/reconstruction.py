"""Held-out assets through the encoder and back, from views that the encoder was not given.

NeRF pictures are rendered without knowing depth, on white, all pixels counted; meshes are the SDF head's
isosurface. Beside each score stands that of a blank (a white picture; a surface of one point at the centre)
and that of the nearest training asset. Batches are cached, so that a killed evaluation goes on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from pydantic import Field
from torch import Tensor

from data_prep.mesh import Mesh
from data_prep.points import sample_surface
from encoder.model import AnyAutoencoder, read_for_encoding
from eval.nearest import TrainingAssets, drawn_points
from eval.pictures import coloured_mesh, render_mesh
from sampling.mesh import MeshConfig, field_to_mesh
from shapeloom.config import Config, UserError
from shapeloom.decoder import RenderConfig, select
from shapeloom.log import progress
from shapeloom.metrics import FSCORE_THRESHOLD, bootstrap_interval, mask_iou, psnr, ssim, surface_scores
from shapeloom.pictures import Views, read_views, to_uint8
from shapeloom.seed import numpy_rng
from shapeloom.shards import AssetSample, AssetShards
from shapeloom.storage import write_atomic
from shapeloom.surfaces import face_normals

PICTURE_SCORES = ("psnr", "ssim", "iou")
SURFACE_SCORES = ("chamfer", "fscore", "normal_consistency")
Record = dict[str, Any]


class ReconstructionConfig(Config):
    """What is reconstructed, and how finely it is measured."""

    splits: list[str] = Field(["val", "test"], min_length=1, description="held-out splits")
    max_assets: int = Field(64, ge=1, description="of each split")
    views: int = Field(4, ge=1, description="held-out views of each asset, evenly chosen")
    size: int | None = Field(None, ge=11, description="side of the pictures in pixels; none: as stored")
    samples: RenderConfig = RenderConfig()
    mesh: MeshConfig = MeshConfig(resolution=96, max_faces=20_000)
    surface_points: int = Field(8192, ge=100, description="points of each surface to measure between")
    batch_size: int = Field(16, ge=1)
    pictures: int = Field(12, ge=0, description="assets that the report shows")


def held_out_views(num_stored: int, num_encoder: int, num_wanted: int) -> list[int]:
    """Returns up to `num_wanted` views, evenly chosen among those after the encoder's first `num_encoder`.

    Raises UserError if the encoder was given all of them.
    """
    if num_stored <= num_encoder:
        raise UserError(
            f"The encoder reads {num_encoder} views and the data holds {num_stored}, so no view is held out "
            "to measure on. Prepare the data with more views (data_prep's num_views)."
        )
    num = min(num_wanted, num_stored - num_encoder)
    return [num_encoder + (i * (num_stored - num_encoder)) // num for i in range(num)]


def evaluate_reconstruction(
    data: Path, model: AnyAutoencoder, config: ReconstructionConfig, folder: Path, *, nearest: bool = True
) -> tuple[Record, list[Record]]:
    """Returns the summary and each asset's record; records and pictures are kept in `folder`.

    nearest: whether to find and score the nearest training assets too, a good part of the cost.
    Raises UserError if the data has none of the splits.
    """
    available = AssetShards(data).header["splits"]
    splits = [split for split in config.splits if available.get(split)]
    if not splits:
        raise UserError(
            f"{data} has no assets of {', '.join(config.splits)} to measure reconstruction on; it has: "
            f"{', '.join(sorted(available))}. Prepare more assets, or name a split in reconstruction.splits."
        )
    training: TrainingAssets | None = None
    todo = [(split, i) for split in splits for i in range(min(config.max_assets, available[split]))]
    batches = [todo[i : i + config.batch_size] for i in range(0, len(todo), config.batch_size)]
    readers = {split: AssetShards(data, split) for split in splits}
    drawn = set(todo[:: max(1, len(todo) // max(1, config.pictures))][: config.pictures])
    records: list[Record] = []
    with progress(len(todo), "reconstructing held-out assets") as bar:
        for number, batch in enumerate(batches):
            path = folder / f"part_{number:03d}.json"
            if not path.is_file():
                if nearest and training is None and available.get("train"):
                    training = TrainingAssets(AssetShards(data, "train"))
                wanted = [(readers[split], i, (split, i) in drawn) for split, i in batch]
                write_atomic(path, json.dumps(_evaluate_batch(wanted, model, training, config, folder)))
            records += json.loads(path.read_text())
            bar.advance(len(batch))
    return summarize(records, config), records


def _evaluate_batch(
    batch: Sequence[tuple[AssetShards, int, bool]], model: AnyAutoencoder, training: TrainingAssets | None,
    config: ReconstructionConfig, folder: Path,
) -> list[Record]:  # fmt: skip
    """Encodes and renders a batch at once, then scores asset by asset."""
    shards = batch[0][0]
    size = config.size or shards.resolution
    chosen = held_out_views(shards.num_views, model.encoder.config.num_views, config.views)
    samples = [read_for_encoding(reader, i, model.encoder.config) for reader, i, _ in batch]
    truths = [read_views(reader, i, chosen, size=size) for reader, i, _ in batch]
    with torch.no_grad():
        latents = model.encode(samples)
        weights = model.decoder.weights(latents)
    poses = _stacked([truth.cam_to_world for truth in truths]).to(latents.device)
    matrices = _stacked([truth.intrinsics for truth in truths]).to(latents.device)
    render = model.decoder.render(weights, poses, matrices, size, size, samples=config.samples)
    rgb, alpha = render.rgb.clamp(0, 1).cpu().numpy(), render.alpha.cpu().numpy()
    records = []
    for i, (sample, truth, (_, _, is_drawn)) in enumerate(zip(samples, truths, batch, strict=True)):
        row = sample.row
        mesh = _mesh(model, select(weights, i), config)
        mesh_rgb, mesh_alpha = render_mesh(mesh, truth.cam_to_world, truth.intrinsics, size=size)
        record: Record = {"key": row.key, "split": row.split, "category": row.category}
        record |= {"caption": row.captions[0] if row.captions else "", "faces": len(mesh.faces)}
        record |= picture_scores(rgb[i], alpha[i], truth) | mesh_scores(mesh, sample, config)
        record |= {f"mesh_{k}": v for k, v in picture_scores(mesh_rgb, mesh_alpha, truth).items()}
        record["blank"] = blank_scores(truth, sample, config)
        rows = [truth.rgb, rgb[i], mesh_rgb]
        if training is not None:
            record["nearest"], picture = nearest_scores(training, truth, sample, config)
            rows.append(picture)
        if is_drawn:
            record["picture"] = f"{row.split}_{row.key}.png"
            _save_picture(folder / record["picture"], rows)
        records.append(record)
    return records


def _stacked(arrays: Sequence[ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _mesh(model: AnyAutoencoder, weights: list[Tensor], config: ReconstructionConfig) -> Mesh:
    """The mesh that a user would get, with its unlit colours at the vertices."""
    decoder, device = model.decoder, weights[0].device
    mesh = field_to_mesh(
        lambda points: decoder.sdf(weights, points),
        lambda points: decoder.texture(weights, points),
        config.mesh,
        device=device,
    )
    return coloured_mesh(mesh.vertices, mesh.faces, mesh.colours, mesh.normals)


def picture_scores(
    rgb: Float[ndarray, "views height width 3"], alpha: Float[ndarray, "views height width"], truth: Views
) -> dict[str, float]:
    """Returns psnr (dB), ssim and iou, means over the views."""
    return {
        "psnr": float(psnr(rgb, truth.rgb).mean()),
        "ssim": float(np.mean([ssim(a, b) for a, b in zip(rgb, truth.rgb, strict=True)])),
        "iou": float(mask_iou(alpha, truth.alpha).mean()),
    }


def mesh_scores(mesh: Mesh, sample: AssetSample, config: ReconstructionConfig) -> dict[str, float]:
    """Returns chamfer, fscore and normal_consistency of a mesh against an asset's stored points.

    A mesh without faces counts as one point at the centre of the box.
    """
    if not len(mesh.faces):
        return _against_points(np.zeros((1, 3)), np.zeros((1, 3)), sample, config)
    rng = numpy_rng("mesh scores", sample.row.key)
    face, barycentric = sample_surface(mesh, config.surface_points, rng)
    triangles = mesh.triangles[face]
    points = np.einsum("nc,ncd->nd", barycentric, triangles)
    return _against_points(points, face_normals(triangles), sample, config)


def _against_points(
    points: ndarray, normals: ndarray, sample: AssetSample, config: ReconstructionConfig
) -> dict[str, float]:
    assert sample.points is not None and sample.points_normal is not None  # the encoder read them
    num = config.surface_points
    return surface_scores(points, normals, sample.points[:num], sample.points_normal[:num] / 127.0)


def blank_scores(truth: Views, sample: AssetSample, config: ReconstructionConfig) -> dict[str, float]:
    """Returns the scores of a white picture and of a surface that is one point at the centre."""
    pictures = picture_scores(np.ones_like(truth.rgb), np.zeros_like(truth.alpha), truth)
    return pictures | _against_points(np.zeros((1, 3)), np.zeros((1, 3)), sample, config)


def nearest_scores(
    training: TrainingAssets, truth: Views, sample: AssetSample, config: ReconstructionConfig
) -> tuple[Record, Float[ndarray, "views height width 3"]]:
    """Returns the scores of the nearest training asset in this one's place, and its pictures."""
    assert sample.points is not None
    found = training.read(training.nearest(sample.points))
    assert found.points is not None and found.points_normal is not None
    size, num = truth.rgb.shape[1], config.surface_points
    rgb, alpha = render_mesh(drawn_points(found), truth.cam_to_world, truth.intrinsics, size=size)
    surface = _against_points(found.points[:num], found.points_normal[:num] / 127.0, sample, config)
    return {"key": found.row.key, **picture_scores(rgb, alpha, truth), **surface}, rgb


def _save_picture(path: Path, rows: Sequence[Float[ndarray, "views height width 3"]]) -> None:
    """Rows: truth, NeRF, mesh and, where there is one, the nearest training asset; columns: views."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(to_uint8(grid)).save(path, optimize=True)


# ---------------------------------------------------------------- summary


def summarize(records: Sequence[Record], config: ReconstructionConfig) -> Record:
    """Returns means over all assets, each split's own beside them, and 95% intervals of the main ones."""
    summary = _means(records)
    for name in ("psnr", "iou", "chamfer", "fscore"):
        values = np.array([record[name] for record in records])
        summary[f"{name}_interval"] = [round(end, 5) for end in bootstrap_interval(values)]
    splits = sorted({record["split"] for record in records})
    summary["splits"] = {s: _means([r for r in records if r["split"] == s]) for s in splits}
    summary["fscore_threshold"] = FSCORE_THRESHOLD
    summary["mesh_resolution"] = config.mesh.resolution
    return summary


def _means(records: Sequence[Record]) -> Record:
    scores = (*PICTURE_SCORES, *SURFACE_SCORES)
    means: Record = {name: _mean(records, name) for name in (*scores, *(f"mesh_{s}" for s in PICTURE_SCORES))}
    for baseline in ("blank", "nearest"):
        beside = [record[baseline] for record in records if baseline in record]
        means[baseline] = {name: _mean(beside, name) for name in scores} if beside else None
    means["num_assets"] = len(records)
    means["num_empty_meshes"] = sum(record["faces"] == 0 for record in records)
    return means


def _mean(records: Sequence[Record], name: str) -> float:
    return round(float(np.mean([record[name] for record in records])), 5)
