"""python -m benchmarks.experiments.bounds RUN: what limits a trained encoder's surfaces?

Bounds by the same measures: held-out assets, each fitted by itself from the encoder's answer, with ever more
of the model free:

    nearest training asset    what remembering alone would show
    encoder                   as it is
    latent free               the latent is fitted, the decoder held: better by what the encoder misses
    matrices free             the asset's own matrices are: better by what a latent can't say
    field free                the whole field is: better by what the shared layers can't
    exact distances           the mesh's own signed distance on the same grid: short of 1 by what extraction
                              can't

A fit sees distances in the box, most of them near the surface, and normals on it, which are the asset's own:
a bound says what a part could do, not what it would generalise to. RUN holds `data`, prepared with meshes,
and a finished `encoder`. Writes RUN/bounds.json, with 95% intervals over assets, and RUN/bounds.md.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float
from torch import Tensor

from data_prep.geometry.sdf import SignedDistance, sdf_samples, signed_distance
from data_prep.mesh import Mesh
from encoder.model import AnyAutoencoder, load_encoder, read_for_encoding
from eval.nearest import TrainingAssets
from shapeloom.config import UserError, run_main
from shapeloom.decoder import Decoder
from shapeloom.log import progress, start_logging
from shapeloom.metrics import bootstrap_interval
from shapeloom.noise import torch_generator
from shapeloom.seed import numpy_rng
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic
from shapeloom.surface_metrics import FIELD_SCORES, RESOLUTION, decoder_scores, field_surface, surface_scores
from shapeloom.surfaces import Surface, read_surface

SAMPLES = 32_768
"""Signed distances drawn of an asset for its fits."""
DISTANCES, NORMALS = 2048, 1024
"""Of them, and of its surface points, a step."""
SOFTNESS, NORMAL_WEIGHT = 0.03, 0.1
LATENT_RATE, MATRIX_RATE, SHARED_RATE = 0.03, 0.01, 0.003
"""Of Adam at the start; a cosine takes them to nothing."""
Fit = Literal["latent free", "matrices free", "field free"]
FITS: tuple[Fit, ...] = get_args(Fit)
BOUNDS = ("nearest training asset", "encoder", *FITS, "exact distances")

Scores = dict[str, float]


@dataclass(frozen=True)
class Truth:
    """What a fit is fitted to: float32 tensors on the model's device."""

    points: Float[Tensor, "samples 3"]
    sdf: Float[Tensor, " samples"]
    surface: Float[Tensor, "surface 3"]
    normals: Float[Tensor, "surface 3"]


# ---------------------------------------------------------------- fits


def fit_loss(
    decoder: Decoder, weights: Sequence[Tensor], truth: Truth, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Returns the loss of one asset's field at random points: distance, its sign, normals on the surface.

    Inside, where a hidden face may be the nearest, only too shallow a distance is an error.
    """
    weights = list(weights)
    near = torch.randint(len(truth.sdf), (DISTANCES,), generator=generator)
    on = torch.randint(len(truth.surface), (NORMALS,), generator=generator)
    points, expected, surface = truth.points[near], truth.sdf[near], truth.surface[on]
    sdf = decoder.geometry(weights, torch.cat([points, surface])[None]).sdf[0]
    sdf, at_surface = sdf.split([DISTANCES, NORMALS])
    inside = torch.sigmoid(-expected / SOFTNESS)
    sign = F.binary_cross_entropy_with_logits(-sdf / SOFTNESS, inside)
    bounded = torch.where(expected < 0, torch.maximum(sdf, expected), sdf)
    distance = (0.1 / (0.1 + expected.abs()) * (bounded - expected).abs()).mean()
    slopes = decoder.sdf_gradient(weights, surface[None])[0]
    normal = (slopes - truth.normals[on]).norm(dim=-1).mean()
    return 2 * (distance + at_surface.abs().mean()) + sign + NORMAL_WEIGHT * normal


def fit(
    decoder: Decoder, groups: Sequence[tuple[Sequence[Tensor], float]],
    weights: Callable[[], Sequence[Tensor]],
    truth: Truth, *, steps: int, after: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Fits tensors, each group at a rate of its own; `weights` makes the asset's matrices of them.

    after: called after each step.
    """
    parameters = [{"params": list(some), "lr": rate} for some, rate in groups]
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.99))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch_generator("bounds")
    for _ in range(steps):
        optimizer.zero_grad()
        fit_loss(decoder, weights(), truth, generator).backward()
        optimizer.step()
        cosine.step()
        with torch.no_grad():
            after()


def fitted(
    decoder: Decoder, latent: Float[Tensor, "1 tokens channels"], truth: Truth, bound: Fit, *, steps: int
) -> tuple[Decoder, list[Tensor]]:
    """Returns a decoder and one asset's matrices after a fit of what `bound` frees; the given one stays."""
    decoder = copy.deepcopy(decoder).requires_grad_(False)
    if bound == "latent free":
        free = latent.clone().requires_grad_()
        inside = partial(free.clamp_, -1, 1)
        groups = [([free], LATENT_RATE)]
        fit(decoder, groups, lambda: decoder.weights(free), truth, steps=steps, after=inside)
        with torch.no_grad():
            return decoder, list(decoder.weights(free))
    with torch.no_grad():
        own = [matrix.clone().requires_grad_() for matrix in decoder.weights(latent)]
    groups = [(own, MATRIX_RATE)]
    if bound == "field free":
        groups.append((list(decoder.get_submodule("field").requires_grad_().parameters()), SHARED_RATE))
    fit(decoder, groups, lambda: own, truth, steps=steps)
    return decoder.requires_grad_(False), [matrix.detach() for matrix in own]


# ---------------------------------------------------------------- assets


def plain_mesh(surface: Surface) -> Mesh:
    """A true surface as a mesh of data preparation, without colours."""
    num = len(surface.faces)
    return Mesh(
        vertices=surface.vertices, faces=surface.faces, tint=np.ones((num, 3, 3), np.float32),
        shading=np.zeros((num, 3, 3), np.float32), uv=np.zeros((num, 3, 2), np.float32),
        texture=np.full(num, -1), cutoff=np.zeros(num, np.float32),
    )  # fmt: skip


def sheet_thickness(shards: AssetShards) -> float:
    """What the data's preparation gave to open surfaces."""
    settings = yaml.safe_load((shards.folder / "config.yaml").read_text())
    return float(settings["sheet_thickness"])


def exact_distance(surface: Surface, thickness: float) -> tuple[Mesh, SignedDistance]:
    """The signed distance that the data was made from; open surfaces count as `thickness` thick."""
    mesh = plain_mesh(surface)
    return mesh, signed_distance(mesh, thickness=thickness)


def bounds_of_asset(
    model: AnyAutoencoder, shards: AssetShards, index: int, training: TrainingAssets, *, steps: int,
    resolution: int = RESOLUTION,
) -> dict[str, Scores]:  # fmt: skip
    """Returns the scores of one held-out asset under each of BOUNDS."""
    surface = read_surface(shards, index)
    key = shards.rows[index].key
    if not surface.is_exact:
        raise UserError(f"Asset {key} has no stored mesh. Prepare the data again: it stores them now.")
    mesh, distance = exact_distance(surface, sheet_thickness(shards))
    latent = model.encode([read_for_encoding(shards, index, model)])
    device = latent.device
    points, sdf = sdf_samples(mesh, distance, SAMPLES, numpy_rng("bounds", key))
    arrays = (points, sdf, surface.points, surface.normals)
    truth = Truth(*(torch.from_numpy(array).float().to(device) for array in arrays))
    scores = {"nearest training asset": training.surface_scores(surface)[1]}
    with torch.no_grad():
        own = model.decoder.weights(latent)
    scores["encoder"] = decoder_scores(model.decoder, own, surface, resolution=resolution)[1]
    for bound in FITS:
        decoder, own = fitted(model.decoder, latent, truth, bound, steps=steps)
        scores[bound] = decoder_scores(decoder, own, surface, resolution=resolution)[1]

    def exact(points: Tensor) -> Tensor:
        return torch.from_numpy(distance(points.double().cpu().numpy()))

    scores["exact distances"] = surface_scores(field_surface(exact, resolution=resolution), surface)
    return scores


def held_out(data: Path, num: int) -> list[tuple[AssetShards, int]]:
    """Returns `num` assets, evenly from the splits val and test; UserError if there are none."""
    available = AssetShards(data).header["splits"]
    readers = [AssetShards(data, split) for split in ("val", "test") if available.get(split)]
    assets = [(reader, i) for reader in readers for i in range(len(reader))]
    if not assets or not available.get("train"):
        raise UserError(f"{data} needs assets of the split train, and of val or test; it has {available}.")
    chosen = np.unique(np.linspace(0, len(assets) - 1, min(num, len(assets))).astype(int))
    return [assets[i] for i in chosen]


# ---------------------------------------------------------------- table

COLUMNS = {
    "fscore_0.01": "F@0.01", "fscore_0.02": "F@0.02", "fscore_0.05": "F@0.05", "chamfer": "Chamfer",
    "normal_consistency": "NC", "normals_off": ">30", "normal_psnr": "maps", "slope": "slope",
}  # fmt: skip


def summarize(assets: Sequence[Mapping[str, Scores]]) -> dict[str, dict[str, object]]:
    """Returns each bound's mean scores over assets, with 95% intervals."""
    summary: dict[str, dict[str, object]] = {}
    for bound in BOUNDS:
        summary[bound] = {}
        for name in FIELD_SCORES:
            values = [scores[bound][name] for scores in assets if name in scores[bound]]
            if values:
                interval = bootstrap_interval(np.array(values))
                summary[bound][name] = round(statistics.mean(values), 5)
                summary[bound][f"{name}_interval"] = [round(end, 5) for end in interval]
    return summary


def markdown(summary: Mapping[str, Mapping[str, object]], num: int) -> str:
    """Returns a row a bound, the measures as `benchmarks.experiments.ablate` names them."""
    rows = [[f"{num} held-out assets", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS))]
    for bound, scores in summary.items():
        cells = [scores.get(name) for name in COLUMNS]
        rows.append([bound, *(f"{c:.{1 if c > 2 else 3}f}" if isinstance(c, float) else "–" for c in cells)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Fits and measures, and writes RUN/bounds.json and RUN/bounds.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.bounds",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="another folder of prepared data than RUN/data")
    parser.add_argument("--assets", type=int, default=8)
    parser.add_argument("--steps", type=int, default=150, help="of each fit")
    parser.add_argument("--resolution", type=int, default=RESOLUTION, help="cells a side, of every surface")
    arguments = parser.parse_args(argv)
    start_logging()
    data = arguments.data or arguments.run / "data"
    model = load_encoder(arguments.run / "encoder")
    model.decoder.requires_grad_(False)
    training = TrainingAssets(AssetShards(data, "train"))
    chosen = held_out(data, arguments.assets)
    assets = []
    with progress(len(chosen), "fitting held-out assets") as bar:
        for shards, index in chosen:
            assets.append(
                bounds_of_asset(
                    model, shards, index, training, steps=arguments.steps, resolution=arguments.resolution
                )
            )
            bar.advance()
    summary = summarize(assets)
    table = markdown(summary, len(assets))
    facts = {"num_assets": len(assets), "steps": arguments.steps, "resolution": arguments.resolution}
    facts |= {"encoder": model.decoder.digest, "data": training.shards.digest}
    write_atomic(arguments.run / "bounds.json", json.dumps({**facts, "bounds": summary}, indent=1) + "\n")
    write_atomic(arguments.run / "bounds.md", table)
    sys.stdout.write(table)


if __name__ == "__main__":
    run_main(main)
