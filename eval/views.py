"""Measures the view model on held-out assets: from one stored view to others, by how far they are around.

    python -m eval.views --model RUN/views --data RUN/data --out RUN/views_eval
    ... --set prior=RUN/prior encoder=RUN/encoder clip=RUN/clip     beside picture -> latent -> render

Of each asset one view is given, and those nearest to each azimuth gap are made from it, together. Beside the
model stand the given picture itself; the training asset that looks most like it (by the model's CLIP, among
a few views of each) and that of the nearest surface (chosen knowing the true one), drawn from their points;
and, where a prior is named, the object that it makes of the picture. PSNR and SSIM are
of pictures on white, all pixels counted; IoU is of alpha > 0.5; the perceptual distance is 1 - cosine of a
named backbone's features. Views agree as far as the visual hull of the given and the made masks fills these
(`eval.hull`). A pose is recovered if the made view is nearer (PSNR) to the true one than to any
other stored view. views.json holds the figures, views.html and views.png show them.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from pydantic import Field as Key
from torch import Tensor

from eval.backbones import BackboneConfig, load_backbone
from eval.hull import hull_agreement
from eval.nearest import LookAlikes, TrainingAssets, drawn_points
from eval.pictures import render_mesh
from prior.views import read_pictures
from sampling.pipeline import ShapePipeline
from shapeloom import page
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.metrics import bootstrap_interval, mask_iou, psnr, ssim
from shapeloom.pictures import to_uint8
from shapeloom.rendering.cameras import Cameras
from shapeloom.runs import Run
from shapeloom.seed import derive_seed
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath, Location, parse_path, write_atomic
from shapeloom.view_diffusion import References, ViewModel, load_view_model
from shapeloom.view_network import azimuths

log = get_logger("views")
RESULTS, PAGE, SHEET = "views.json", "views.html", "views.png"
TOLERANCE = 20.0
"""Degrees by which a stored pair's azimuths may differ from a gap to count for it."""
SYSTEMS = {
    "model": "View model", "copy": "The given picture", "alike": "Training asset that looks most alike",
    "nearest": "Training asset nearest to the truth", "latent": "Picture to latent to render",
    "truth": "True views",
}  # fmt: skip
Record = dict[str, Any]
Pictures = Float[ndarray, "_ 4 size size"]
"""As the view model has them, but in [0, 1]."""


class ViewEvalConfig(Config):
    """What is measured, and how views are sampled."""

    model: Path | None = Key(None, description="a finished prior.train_views")
    data: Location | None = Key(None, description="a data_prep run: a folder or a URL")
    vae: Path | None = Key(None, description="folder of the VAE whose latents the model diffuses, if it does")
    prior: Path | None = Key(
        None, description="folder of prior.train, to compare with; with encoder and clip"
    )
    encoder: Path | None = Key(None, description="folder of encoder.train")
    clip: Path | None = Key(None, description="folder of prior.train_clip")
    splits: list[str] = Key(["val", "test"], min_length=1, description="held-out splits")
    max_assets: int = Key(64, ge=1, description="of each split")
    gaps: list[float] = Key([30.0, 60.0, 90.0, 180.0], min_length=1, description="azimuth gaps, degrees")
    steps: int = Key(18, ge=1, description="of the sampler")
    guidance: float = Key(1.0, ge=0, description="scale of classifier-free guidance; 1: none")
    joint: bool = Key(True, description="make an asset's views together; false: each for itself")
    backbone: BackboneConfig | None = Key(None, description="for a perceptual distance; none: left out")
    pictures: int = Key(16, ge=0, description="assets on the sheet")


@dataclass(frozen=True)
class Question:
    """A held-out asset's given view and the views to make: true pictures of all its views, and cameras."""

    given: int
    asked: dict[float, int]
    """Gap in degrees -> view."""
    pictures: Float[Tensor, "views 4 size size"]
    poses: Float[Tensor, "views 4 4"]
    matrices: Float[Tensor, "views 3 3"]

    def cameras(self, views: Sequence[int]) -> Cameras:
        """Returns those views' cameras, as one object's."""
        rows, size = list(views), self.pictures.shape[-1]
        return Cameras(self.poses[None, rows], self.matrices[None, rows], size, size)


def choose_views(azimuth: Float[ndarray, " views"], gaps: Sequence[float]) -> tuple[int, dict[float, int]]:
    """Returns the view to give, and which views lie nearest to each gap from it, within TOLERANCE.

    azimuth: radians. Of all views that one is given from which most gaps are found, and most exactly.
    """
    best: tuple[float, int, dict[float, int]] = (np.inf, 0, {})
    for given in range(len(azimuth)):
        apart = np.degrees(np.abs(np.angle(np.exp(1j * (azimuth - azimuth[given])))))
        apart[given] = np.inf
        nearest = {gap: int(np.abs(apart - gap).argmin()) for gap in gaps}
        found = {gap: view for gap, view in nearest.items() if abs(apart[view] - gap) <= TOLERANCE}
        off = sum(abs(apart[view] - gap) for gap, view in found.items())
        cost = off + 1000 * (len(gaps) - len(found))
        if cost < best[0]:
            best = (cost, given, found)
    return best[1], best[2]


def read_question(shards: AssetShards, index: int, gaps: Sequence[float], *, size: int) -> Question:
    """Returns an asset's question."""
    pictures, poses, matrices = read_pictures(shards, index, range(shards.num_views), size=size)
    given, asked = choose_views(azimuths(poses).double().numpy(), gaps)
    return Question(given, asked, pictures, poses, matrices)


def make_views(model: ViewModel, question: Question, config: ViewEvalConfig, *, key: str) -> Pictures:
    """Returns the model's pictures of the views asked for."""
    asked = list(question.asked.values())
    shown = References(question.pictures[None, [question.given]], question.cameras([question.given]))
    condition = model.condition(cameras=question.cameras(asked), references=shown)
    seeds = torch.tensor([derive_seed("eval views", key, view) for view in asked])
    made = model.sample(
        condition if config.joint else condition.alone(),
        seeds=seeds,
        steps=config.steps,
        scale=config.guidance,
    )
    return _unit(made)


def _unit(pictures: Tensor) -> Pictures:
    return (pictures.float().cpu().numpy() + 1) / 2


def _stacked(rgb: ndarray, alpha: ndarray) -> Pictures:
    return np.concatenate([np.moveaxis(rgb, -1, 1), alpha[:, None]], axis=1)


def scores(
    made: Float[ndarray, "4 size size"], truth: Float[ndarray, "4 size size"],
    distance: Callable[[ndarray, ndarray], float] | None,
) -> dict[str, float]:  # fmt: skip
    """Returns psnr (dB), ssim, iou and, with a backbone, perceptual."""
    rgb, true_rgb = (np.moveaxis(each[:3], 0, -1) for each in (made, truth))
    found = {
        "psnr": float(psnr(rgb, true_rgb)), "ssim": ssim(rgb, true_rgb),
        "iou": float(mask_iou(made[3], truth[3])),
    }  # fmt: skip
    return found | ({} if distance is None else {"perceptual": distance(rgb, true_rgb)})


def perceptual(config: BackboneConfig | None) -> tuple[str, Callable[[ndarray, ndarray], float] | None]:
    """Returns the backbone's name, and 1 - cosine of its features of two pictures [size, size, 3]."""
    if config is None or not config.is_given:
        return "", None
    backbone = load_backbone(config)
    if backbone.num_points:
        raise UserError(f"backbone: {config.kind} sees points, and a perceptual distance is of pictures.")

    def distance(first: ndarray, second: ndarray) -> float:
        a, b = backbone(to_uint8(np.stack([first, second])))
        return float(1 - a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9))

    return backbone.name, distance


def _rgb(pictures: Pictures) -> ndarray:
    return to_uint8(np.moveaxis(pictures[:, :3], 1, -1))


class Beside:
    """What the model is compared with."""

    def __init__(self, config: ViewEvalConfig, data: AnyPath, model: ViewModel) -> None:
        training = AssetShards(data, "train")
        self.training = TrainingAssets(training)
        self.looks = None if model.clip is None else LookAlikes(training, model.clip, size=model.size)
        self.pipeline: ShapePipeline | None = None
        if config.prior is not None:
            if config.encoder is None or config.clip is None:
                raise UserError(
                    "Comparing with prior=... needs encoder=... and clip=... of the same run too."
                )
            self.pipeline = ShapePipeline.load(prior=config.prior, encoder=config.encoder, clip=config.clip)

    def views(self, shards: AssetShards, index: int, question: Question) -> dict[str, Pictures]:
        """Returns each system's pictures of the views asked for."""
        asked = list(question.asked.values())
        size, poses = question.pictures.shape[-1], question.poses[asked]
        matrices = question.matrices[asked]
        points = shards.read(index, points=True).points
        assert points is not None  # asked for
        given = _unit(question.pictures[[question.given]])
        chosen = {"nearest": self.training.nearest(points)}
        if self.looks is not None:
            chosen = {"alike": self.looks.nearest(_rgb(given))} | chosen
        found = {"copy": np.repeat(given, len(asked), axis=0)}
        for name, neighbour in chosen.items():
            mesh = drawn_points(self.training.read(neighbour))
            found[name] = _stacked(*render_mesh(mesh, poses.numpy(), matrices.numpy(), size=size))
        if self.pipeline is not None:
            (shown,) = _rgb(given)
            (shape,) = self.pipeline("", image=shown)
            rendering = self.pipeline.decoder.render(
                [each[None] for each in shape.weights], poses[None], matrices[None], size, size
            )
            pair = rendering.rgb[0].clamp(0, 1).cpu().numpy(), rendering.alpha[0].cpu().numpy()
            found["latent"] = _stacked(*pair)
        return found


def agreements(question: Question, systems: Mapping[str, Pictures]) -> dict[str, float]:
    """Returns `hull_agreement` of the given view with each system's others, and with the true ones."""
    rows = [question.given, *question.asked.values()]
    true = _unit(question.pictures[rows])[:, 3]
    masks = {"truth": true[1:]} | {name: made[:, 3] for name, made in systems.items()}
    poses, matrices = question.poses[rows], question.matrices[rows]
    return {
        name: hull_agreement(np.concatenate([true[:1], others]), poses, matrices)
        for name, others in masks.items()
    }


def recovered(made: Pictures, question: Question) -> list[bool]:
    """Returns of each view asked for whether the made one is nearest to it among all but the given."""
    truth = np.moveaxis(_unit(question.pictures)[:, :3], 1, -1)
    others = [view for view in range(len(truth)) if view != question.given]
    found = []
    for picture, view in zip(np.moveaxis(made[:, :3], 1, -1), question.asked.values(), strict=True):
        near = [float(psnr(picture, truth[other])) for other in others]
        found.append(others[int(np.argmax(near))] == view)
    return found


def summarise(records: Sequence[Record], gaps: Sequence[float]) -> Record:
    """Returns means and 95% intervals over assets, by gap: each system's, and the model's over others'."""
    out: Record = {}
    for gap in gaps:
        rows = [record for record in records if record["gap"] == gap]
        if not rows:
            continue
        own = rows[0]["systems"]
        part: Record = {"num_assets": len(rows), "systems": {}, "model_over": {}}
        for name in own:
            part["systems"][name] = {
                score: _mean([row["systems"][name][score] for row in rows]) for score in own[name]
            }
        for name in (name for name in own if name != "model"):
            part["model_over"][name] = {
                score: _mean([row["systems"]["model"][score] - row["systems"][name][score] for row in rows])
                for score in own[name]
            }
        part["poses_recovered"] = _mean([float(row["recovered"]) for row in rows])
        out[f"{gap:g}"] = part
    return out


def _mean(values: Sequence[float]) -> dict[str, Any]:
    ends = bootstrap_interval(np.array(values, np.float64))
    return {"mean": round(float(np.mean(values)), 5), "interval": [round(end, 5) for end in ends]}


# ---------------------------------------------------------------- page


def section(results: Mapping[str, Any], sheet: Path) -> str:
    """Returns the part of a page that shows the results."""
    head = ["Gap", "Pictures", "PSNR, dB", "SSIM", "IoU", "Perceptual", "PSNR of the model over it, dB"]
    rows = []
    for gap, part in results["gaps"].items():
        for name, found in part["systems"].items():
            cells = [_cell(found.get(score)) for score in ("psnr", "ssim", "iou", "perceptual")]
            rows.append(
                [f"{gap}°", SYSTEMS[name], *cells, _cell(part["model_over"].get(name, {}).get("psnr"))]
            )
    poses = ", ".join(
        f"{100 * part['poses_recovered']['mean']:.0f}% at {gap}°" for gap, part in results["gaps"].items()
    )
    backbone = results["backbone"] or "none was named"
    agreement = ", ".join(
        f"{SYSTEMS[name].lower()} {each['mean']:.2f}" for name, each in results["agreement"].items()
    )
    shown = "" if not sheet.is_file() else page.figure(
        page.file_uri(sheet),
        "Rows: the given view; true views and, beneath, the model's, at each gap.",
        alt="new views of held-out assets", pixels=True,
    )  # fmt: skip
    return (
        "<h2>New views of held-out assets</h2><p class='soft'>From one picture, "
        f"{results['size']} x {results['size']} pixels; means over assets with 95% intervals. Poses "
        f"recovered: {page.text(poses)}. Perceptual distance: {page.text(backbone)}. Views agree: "
        f"{page.text(agreement)}.</p>"
        + page.table(head, rows)
        + page.tiles([shown] if shown else [], "large")
    )


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return (
        f"{page.number(found['mean'])}<br><span class='soft small'>{page.interval(found['interval'])}</span>"
    )


def save_sheet(path: Path, columns: Sequence[tuple[Pictures, Pictures, Pictures]]) -> None:
    """Writes a column an asset: given, then true and made views of each gap in turn."""
    drawn = []
    most = max((len(truth) for _, truth, _ in columns), default=0)
    for given, truth, made in columns:
        pairs = [each for pair in zip(truth, made, strict=True) for each in pair]
        blank = [np.ones_like(given[0])] * (2 * (most - len(truth)))
        tiles = [np.moveaxis(each[:3], 0, -1) for each in [given[0], *pairs, *blank]]
        drawn.append(np.concatenate(tiles))
    if drawn:
        Image.fromarray(to_uint8(np.concatenate(drawn, axis=1))).save(path, optimize=True)


# ---------------------------------------------------------------- command


def evaluate(model: ViewModel, config: ViewEvalConfig, data: AnyPath, folder: Path) -> Record:
    """Returns the results, writes them and the pictures; raises UserError if there is nothing held out."""
    available = AssetShards(data).header["splits"]
    splits = [split for split in config.splits if available.get(split)]
    if not splits:
        raise UserError(f"{data} has no assets of {', '.join(config.splits)}; it has {', '.join(available)}.")
    beside, (backbone, distance) = Beside(config, data, model), perceptual(config.backbone)
    todo = [(AssetShards(data, split), split) for split in splits]
    todo_rows = [(s, split, i) for s, split in todo for i in range(min(config.max_assets, len(s)))]
    drawn = {id(row) for row in todo_rows[:: max(1, len(todo_rows) // max(1, config.pictures))]}
    records: list[Record] = []
    agreement: list[dict[str, float]] = []
    columns: list[tuple[Pictures, Pictures, Pictures]] = []
    with progress(len(todo_rows), "making views of held-out assets") as bar:
        for row in todo_rows:
            shards, split, index = row
            question = read_question(shards, index, config.gaps, size=model.size)
            bar.advance()
            if not question.asked:
                continue
            key, truth = shards.rows[index].key, _unit(question.pictures[list(question.asked.values())])
            made = make_views(model, question, config, key=key)
            systems = {"model": made} | beside.views(shards, index, question)
            agreement.append(agreements(question, systems))
            right = recovered(made, question)
            for number, gap in enumerate(question.asked):
                found = {
                    name: scores(each[number], truth[number], distance) for name, each in systems.items()
                }
                record = {"key": key, "split": split, "gap": gap, "recovered": right[number]}
                records.append(record | {"systems": found})
            if id(row) in drawn and len(columns) < config.pictures:
                columns.append((_unit(question.pictures[[question.given]]), truth, made))
    results = {
        "size": model.size, "backbone": backbone, "joint": config.joint,
        "gaps": summarise(records, config.gaps), "records": records,
        "agreement": {
            name: _mean([each[name] for each in agreement]) for name in (agreement[0] if agreement else ())
        },
    }  # fmt: skip
    write_atomic(folder / RESULTS, json.dumps(results, indent=1))
    save_sheet(folder / SHEET, columns)
    write_atomic(folder / PAGE, page.document("New views", [section(results, folder / SHEET)]))
    return results


def shortcuts(arguments: argparse.Namespace) -> list[str]:
    """Returns them as overrides."""
    given = {"model": arguments.model, "data": arguments.data}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, _ = parse_stage(
        ViewEvalConfig, stage="eval.views", description=__doc__ or "", argv=argv,
        shortcuts=shortcuts,
    )  # fmt: skip
    start_logging()
    if config.model is None or config.data is None:
        raise UserError("eval.views needs --model RUN/views and --data RUN/data.")
    model = load_view_model(config.model, vae=config.vae)
    data = parse_path(config.data)
    inputs = {"model": model.digest, "data": AssetShards(data).digest}
    places = ("vae", "prior", "encoder", "clip")
    with Run.open(out, config, stage="eval.views", inputs=inputs, places=places) as run:
        if run.done:
            log.info("%s already holds these figures; see %s", out, out / PAGE)
            return
        results = evaluate(model, config, data, run.folder)
        run.finish()
    for gap, part in results["gaps"].items():
        told = ", ".join(f"{name} {each['psnr']['mean']:.2f}" for name, each in part["systems"].items())
        log.info("%s degrees: PSNR %s; IoU %.3f", gap, told, part["systems"]["model"]["iou"]["mean"])


if __name__ == "__main__":
    run_main(main)
