"""Held-out assets through the encoder and back, from views that the encoder was not given.

NeRF pictures are rendered without knowing depth, on white, all pixels counted; mesh pictures are of the mesh
that a user would get. Surfaces (`shapeloom.surface_metrics`) are the field's zero level by marching cubes
alone. Beside each score stands that of a blank (a white picture; a surface of one point at the centre) and
that of the nearest training asset. Batches are cached, so that a killed evaluation goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
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
from encoder.model import AnyAutoencoder, load_encoder, read_for_encoding
from eval.nearest import TrainingAssets, drawn_points
from eval.perceptual import Distance, LpipsConfig, load_lpips
from eval.pictures import coloured_mesh, render_mesh
from eval.sheet import save_sheet, save_tile
from sampling.mesh import MeshConfig, field_to_mesh
from shapeloom.config import Config, UserError
from shapeloom.decoder import Decoder, RenderConfig, select
from shapeloom.executors import check_written, everywhere, run_tasks
from shapeloom.log import progress
from shapeloom.metrics import bootstrap_interval, mask_iou, psnr, ssim
from shapeloom.pictures import Views, read_views, to_uint8
from shapeloom.shards import AssetSample, AssetShards
from shapeloom.storage import AnyPath, write_atomic
from shapeloom.surface_metrics import (
    COLOR_SCORES,
    FIELD_SCORES,
    LOWER_IS_BETTER,
    RESOLUTION,
    SURFACE_SCORES,
    color_scores,
    decoder_scores,
    surface_scores,
)
from shapeloom.surfaces import NUM_POINTS, Surface, read_surface

PICTURE_SCORES = ("psnr", "ssim", "iou", "lpips")
"""The last one where its weights are given."""
SHEET = "shapes.png"
"""In the evaluation's folder: held-out shapes, truth above ours."""
Record = dict[str, Any]


class ReconstructionConfig(Config):
    """What is reconstructed, and how finely it is measured."""

    splits: list[str] = Field(["val", "test"], min_length=1, description="held-out splits")
    max_assets: int = Field(64, ge=1, description="of each split")
    views: int = Field(4, ge=1, description="held-out views of each asset, evenly chosen")
    size: int | None = Field(None, ge=11, description="side of the pictures in pixels; none: as stored")
    samples: RenderConfig = RenderConfig()
    lpips: LpipsConfig | None = Field(None, description="adds the perceptual distance; none: not computed")
    mesh: MeshConfig = MeshConfig(resolution=96, max_faces=20_000)
    surface_points: int = Field(NUM_POINTS, ge=100, description="sampled on each surface to measure it")
    surface_resolution: int = Field(RESOLUTION, ge=16, le=512, description="cells a side of its grid")
    batch_size: int = Field(16, ge=1, description="assets encoded at once")
    pictures: int = Field(12, ge=0, description="assets that the report shows")
    sheet: int = Field(24, ge=0, description="assets on the sheet of shapes")


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
    data: AnyPath, model: AnyAutoencoder, config: ReconstructionConfig, folder: Path, *, nearest: bool = True,
    on_ray: Path | None = None,
) -> tuple[Record, list[Record]]:  # fmt: skip
    """Returns the summary and each asset's record; records and pictures are kept in `folder`.

    nearest: whether to find and score the nearest training assets too, a good part of the cost.
    on_ray: the model's folder, for workers of a Ray cluster; none: all is done here.
    Raises UserError if the data has none of the splits.
    """
    available = AssetShards(data).header["splits"]
    splits = [split for split in config.splits if available.get(split)]
    if not splits:
        raise UserError(
            f"{data} has no assets of {', '.join(config.splits)} to measure reconstruction on; it has: "
            f"{', '.join(sorted(available))}. Prepare more assets, or name a split in reconstruction.splits."
        )
    todo = [(split, i) for split in splits for i in range(min(config.max_assets, available[split]))]
    drawn, shown = _spread(todo, config.pictures), _spread(todo, config.sheet)
    nearest = nearest and bool(available.get("train"))
    wanted = [_Wanted(*each, each in drawn, each in shown) for each in todo]
    size = config.batch_size
    tasks = [
        _Batch(
            tuple(wanted[i : i + size]), folder.absolute() / f"part_{i // size:03d}.json",
            data.absolute(), on_ray and on_ray.absolute(), everywhere(config, "file", "heads"), nearest,
        )
        for i in range(0, len(todo), size)
    ]  # fmt: skip
    missing = [task for task in tasks if not task.path.is_file()]
    with progress(len(todo), "reconstructing held-out assets") as bar:
        bar.advance(len(todo) - sum(len(task.assets) for task in missing))
        for task, _ in run_tasks(
            _evaluate_batch if on_ray else partial(_evaluate_batch, model=model), missing, workers=0,
            on_report=lambda *_: None, executor="ray" if on_ray else "processes",
            preload=["eval.reconstruction"], on_gpu=True,
        ):  # fmt: skip
            check_written(task.path)
            bar.advance(len(task.assets))
    records = [record for task in tasks for record in json.loads(task.path.read_text())]
    save_sheet(folder.parent / SHEET, [folder / r["tile"] for r in records if "tile" in r])
    return summarize(records, config), records


@dataclass(frozen=True)
class _Wanted:
    """An asset of a split, and whether it is among the pictures and on the sheet."""

    split: str
    index: int
    is_drawn: bool
    is_shown: bool


@dataclass(frozen=True)
class _Batch:
    """Assets that are encoded at once, and the file of their records."""

    assets: tuple[_Wanted, ...]
    path: Path
    data: AnyPath
    model: Path | None
    config: ReconstructionConfig
    nearest: bool


@lru_cache(1)
def _loaded(folder: Path) -> AnyAutoencoder:
    """What a worker keeps from one batch to the next."""
    return load_encoder(folder, "cuda" if torch.cuda.is_available() else "cpu")


def _spread(todo: Sequence[tuple[str, int]], num: int) -> set[tuple[str, int]]:
    """Returns up to `num` of them, evenly."""
    return set(todo[:: max(1, len(todo) // max(1, num))][:num])


def _evaluate_batch(task: _Batch, report: object, model: AnyAutoencoder | None = None) -> None:
    """Encodes and renders a batch at once, then scores asset by asset, and writes the records."""
    if model is None:
        assert task.model is not None  # where no model is given, there is a folder of it
        model = _loaded(task.model)
    training = _training(task.data) if task.nearest else None
    readers = {each.split: AssetShards(task.data, each.split) for each in task.assets}
    records = _records(task, readers, model, training, task.path.parent)
    write_atomic(task.path, json.dumps(records))


@lru_cache(1)
def _training(data: AnyPath) -> TrainingAssets:
    return TrainingAssets(AssetShards(data, "train"))


def _records(
    task: _Batch, readers: Mapping[str, AssetShards], model: AnyAutoencoder,
    training: TrainingAssets | None, folder: Path,
) -> list[Record]:  # fmt: skip
    config = task.config
    batch = [(readers[each.split], each) for each in task.assets]
    shards = batch[0][0]
    size = config.size or shards.resolution
    chosen = held_out_views(shards.num_views, model.num_views, config.views)
    perceptual = None if config.lpips is None else load_lpips(config.lpips)
    samples = [read_for_encoding(reader, each.index, model) for reader, each in batch]
    truths = [read_views(reader, each.index, chosen, size=size) for reader, each in batch]
    with torch.no_grad():
        latents = model.encode(samples)
        weights = model.decoder.weights(latents)
    poses = _stacked([truth.cam_to_world for truth in truths]).to(latents.device)
    matrices = _stacked([truth.intrinsics for truth in truths]).to(latents.device)
    render = model.decoder.render(weights, poses, matrices, size, size, samples=config.samples)
    rgb, alpha = render.rgb.clamp(0, 1).cpu().numpy(), render.alpha.cpu().numpy()
    records = []
    for i, ((reader, each), sample, truth) in enumerate(zip(batch, samples, truths, strict=True)):
        row, own = sample.row, select(weights, i)
        surface = read_surface(reader, each.index)
        mesh = _mesh(model, own, config)
        mesh_rgb, mesh_alpha = render_mesh(mesh, truth.cam_to_world, truth.intrinsics, size=size)
        found, scores = decoder_scores(
            model.decoder, own, surface, resolution=config.surface_resolution, num=config.surface_points
        )
        record: Record = {"key": row.key, "split": row.split, "category": row.category}
        record |= {"caption": row.captions[0] if row.captions else "", "empty": found.is_empty}
        record |= {
            "true_mesh": surface.is_exact,
            **picture_scores(rgb[i], alpha[i], truth, perceptual),
            **scores,
        }
        of_mesh = picture_scores(mesh_rgb, mesh_alpha, truth, perceptual)
        record |= {f"mesh_{k}": v for k, v in of_mesh.items()}
        record |= texture_scores(model.decoder, own, sample)
        record["blank"] = blank_scores(truth, surface, perceptual)
        rows = [truth.rgb, rgb[i], mesh_rgb]
        if training is not None:
            record["nearest"], picture = nearest_scores(training, truth, surface, perceptual)
            rows.append(picture)
        if each.is_drawn:
            record["picture"] = f"{row.split}_{row.key}.png"
            _save_picture(folder / record["picture"], rows)
        if each.is_shown:
            record["tile"] = f"tile_{row.split}_{row.key}.png"
            save_tile(folder / record["tile"], surface, found, truth, mesh)
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
        gradient=lambda points: decoder.gradient(weights, points),
        device=device,
    )
    return coloured_mesh(mesh.vertices, mesh.faces, mesh.colours, mesh.normals)


def picture_scores(
    rgb: Float[ndarray, "views height width 3"], alpha: Float[ndarray, "views height width"], truth: Views,
    perceptual: Distance | None = None,
) -> dict[str, float]:  # fmt: skip
    """Returns psnr (dB), ssim, iou and, where a distance is given, lpips: means over the views."""
    scores = {
        "psnr": float(psnr(rgb, truth.rgb).mean()),
        "ssim": float(np.mean([ssim(a, b) for a, b in zip(rgb, truth.rgb, strict=True)])),
        "iou": float(mask_iou(alpha, truth.alpha).mean()),
    }
    if perceptual is not None:
        scores["lpips"] = float(perceptual(rgb, truth.rgb).mean())
    return scores


def texture_scores(decoder: Decoder, weights: list[Tensor], sample: AssetSample) -> dict[str, float]:
    """Returns COLOR_SCORES of a field's texture at the asset's stored points."""
    assert sample.points is not None and sample.points_rgb is not None
    points = torch.from_numpy(sample.points.astype(np.float32)).to(weights[0].device)
    with torch.no_grad():
        found = decoder.texture(weights, points).float().cpu().numpy()
    return color_scores(found, sample.points_rgb / 255, sample.points)


def blank_scores(truth: Views, surface: Surface, perceptual: Distance | None = None) -> dict[str, float]:
    """Returns the scores of a white picture and of a surface that is one point at the centre."""
    pictures = picture_scores(np.ones_like(truth.rgb), np.zeros_like(truth.alpha), truth, perceptual)
    nothing = Surface.of_mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    return pictures | surface_scores(nothing, surface)


def nearest_scores(
    training: TrainingAssets, truth: Views, surface: Surface, perceptual: Distance | None = None
) -> tuple[Record, Float[ndarray, "views height width 3"]]:
    """Returns the scores of the nearest training asset in this one's place, and its pictures."""
    index, scores = training.surface_scores(surface)
    found = training.read(index)
    rgb, alpha = render_mesh(
        drawn_points(found), truth.cam_to_world, truth.intrinsics, size=truth.rgb.shape[1]
    )
    return {"key": found.row.key, **picture_scores(rgb, alpha, truth, perceptual), **scores}, rgb


def _save_picture(path: Path, rows: Sequence[Float[ndarray, "views height width 3"]]) -> None:
    """Rows: truth, NeRF, mesh and, where there is one, the nearest training asset; columns: views."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(to_uint8(grid)).save(path, optimize=True)


# ---------------------------------------------------------------- summary


def summarize(records: Sequence[Record], config: ReconstructionConfig) -> Record:
    """Returns means over all assets and each split's own beside them, with 95% intervals."""
    summary = _means(records)
    splits = sorted({record["split"] for record in records})
    summary["splits"] = {s: _means([r for r in records if r["split"] == s]) for s in splits}
    summary["mesh_resolution"] = config.mesh.resolution
    summary["surface_resolution"] = config.surface_resolution
    return summary


def _means(records: Sequence[Record]) -> Record:
    """Means, with intervals over assets; the nearest training asset's and a blank's; and by how much it is
    better than the nearest training asset, paired: above 0 where it is, whichever way the measure counts."""
    own = (*PICTURE_SCORES, *FIELD_SCORES, *COLOR_SCORES, *(f"mesh_{score}" for score in PICTURE_SCORES))
    means = _with_intervals(records, own)
    for baseline in ("blank", "nearest"):
        beside = [record[baseline] for record in records if baseline in record]
        means[baseline] = _with_intervals(beside, (*PICTURE_SCORES, *SURFACE_SCORES)) if beside else None
    shared = (*PICTURE_SCORES, *SURFACE_SCORES)
    gains = [
        {name: _gain(name, record[name], record["nearest"][name]) for name in shared if name in record}
        for record in records
        if "nearest" in record
    ]
    means["over_nearest"] = _with_intervals(gains, shared) if gains else None
    means["num_assets"] = len(records)
    means["num_empty"] = sum(record["empty"] for record in records)
    means["num_true_meshes"] = sum(record["true_mesh"] for record in records)
    return means


def _gain(name: str, ours: float, theirs: float) -> float:
    return theirs - ours if name in LOWER_IS_BETTER | {"lpips"} else ours - theirs


def _with_intervals(records: Sequence[Record], names: Sequence[str]) -> Record:
    """Of the records that have a score; without those that none has."""
    means: Record = {}
    for name in names:
        values = np.array([record[name] for record in records if name in record], np.float64)
        if not len(values):
            continue
        means[name] = round(float(values.mean()), 5)
        means[f"{name}_interval"] = [round(end, 5) for end in bootstrap_interval(values)]
    return means
