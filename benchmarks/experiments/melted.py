"""Does the judge see what people see? True objects, spoilt step by step, must score worse step by step.

    python -m benchmarks.experiments.melted RUN/data --out OUT [--judge RUN/eval/judge] [--num 40]

Training assets of a data set are written as folders of an imaginary system's outputs: as they are, smoothed
by 10 and 100 rounds (Laplacian), melted (Gaussian blur of the signed distance, 1 and 3 cells of 40),
recoloured, and with the upper half of another one. `python -m eval judge` judges them against held-out
assets, each with its truth too. Prints every claim of CLAIMS with the difference and its interval, and fails
if one doesn't hold.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from numpy import ndarray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from data_prep.formats.load import load_mesh
from data_prep.geometry.normalize import normalize
from data_prep.geometry.points import sample_surface
from data_prep.geometry.sdf import signed_distance
from data_prep.mesh import Mesh, base_color
from eval.compare import compare, read_results
from eval.distributions import percentile_interval
from eval.folders import Item, read_references
from eval.judging import TRAINING, JudgingConfig, judge
from shapeloom.color import linear_to_srgb
from shapeloom.config import run_main
from shapeloom.log import start_logging
from shapeloom.rendering.isosurface import triangulate
from shapeloom.seed import numpy_rng
from shapeloom.storage import parse_path

CELLS = 40
Spoil = Callable[[Mesh, Mesh], bytes]
"""A mesh and another one -> a PLY file."""
Shape = tuple[Float[ndarray, "vertices 3"], Float[ndarray, "faces 3"]]

CLAIMS = (
    ("normals_off", ("true", "smoothed_10", "smoothed_100")),
    ("normal_consistency", ("true", "smoothed_10", "smoothed_100")),
    ("fscore_0.01", ("true", "smoothed_10", "smoothed_100")),
    ("frechet/normals", ("true", "smoothed_10", "smoothed_100")),
    ("normals_off", ("true", "melted_1", "melted_3")),
    ("fscore_0.02", ("true", "melted_1", "melted_3")),
    ("chamfer", ("true", "melted_1", "melted_3")),
    ("frechet/normals", ("true", "melted_1", "melted_3")),
    ("frechet/shaded", ("true", "recoloured")),
    ("kernel/shaded", ("true", "recoloured")),
    ("fscore_0.05", ("true", "swapped")),
    ("mmd_cd", ("true", "swapped")),
    ("r_at_1", ("true", "recoloured")),
    ("r_at_1", ("true", "swapped")),
)
"""Measure, and folders from best to worst."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.melted", description=__doc__)
    parser.add_argument("data", type=Path, help="of data_prep, with its asset files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judge", help="a CLIP, for claims about prompts")
    parser.add_argument("--num", type=int, default=40, help="objects")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, pixels")
    parser.add_argument("--views", type=int, default=8)
    arguments = parser.parse_args(argv)
    start_logging()
    config = JudgingConfig(reference=arguments.data, max_reference=arguments.num, judge=arguments.judge)
    look = config.look.model_copy(update={"size": arguments.size, "views": arguments.views})
    config = config.model_copy(update={"look": look, "cache": arguments.out / "cache"})
    if failures := check(spoil_and_judge(config, arguments.out)):
        sys.exit(f"{failures} claims don't hold")


def spoil_and_judge(config: JudgingConfig, out: Path) -> Path:
    """Writes the folders and judges them; returns the folder of the results."""
    assert config.reference is not None
    references = read_references(
        parse_path(config.reference),
        config.reference_splits,
        most=config.max_reference,
        seed=config.measures.seed,
    )
    folders = write_folders(references.training, out / "outputs", WAYS)
    judge(folders, out / "judged", config)
    shuffled = out / "outputs" / "shuffled"
    write_list(shuffled, references.training, shuffle=True)
    for path in sorted(folders[0].glob("*.ply")):
        (shuffled / path.name).write_bytes(path.read_bytes())
    judge([shuffled], out / "judged_shuffled", config)
    return out


def check(out: Path) -> int:
    """Prints each claim, and returns how many don't hold."""
    results = read_results(out / "judged").content
    systems, failures = results["systems"], 0
    for measure, order in CLAIMS:
        keys = [key for key in systems["true"]["measures"] if key.startswith(measure) and "CLIP" not in key]
        for key in keys:
            for better, worse in pairwise(order):
                cell = compare({name: systems[name] for name in (better, worse)})[key][worse]
                failures += _say(
                    cell.verdict == "worse",
                    f"{key}: {worse} is worse than {better}",
                    cell.difference,
                    cell.difference_interval,
                )
    nna = systems[TRAINING]["measures"]["one_nna_cd"]
    failures += _say(
        nna["interval"][0] <= 0.5 <= nna["interval"][1],
        "1-NNA of training assets is near 0.5",
        nna["value"],
        nna["interval"],
    )
    shuffled = read_results(out / "judged_shuffled").content["systems"]["shuffled"]["measures"].get("r_at_1")
    if shuffled is not None:
        chance = 1 / len({each["prompt"] for each in systems["true"]["pictures"]})
        low, high = percentile_interval(np.array(shuffled["draws"]))
        failures += _say(
            low <= 2 * chance,
            f"R@1 of shuffled prompts falls to chance ({chance:.3f})",
            shuffled["value"],
            (low, high),
        )
    return failures


def _say(holds: bool, claim: str, value: float | None, interval: Sequence[float] | None) -> bool:
    ends = "" if interval is None else f" [{interval[0]:+.4g}, {interval[1]:+.4g}]"
    print(f"{'yes' if holds else 'NO '}  {claim}: {value:+.4g}{ends}")
    return not holds


# ---------------------------------------------------------------- spoiling


def write_folders(items: Sequence[Item], out: Path, ways: dict[str, Spoil]) -> list[Path]:
    """Writes a folder of PLY files and a list with prompts and truths for each way to spoil; returns them."""
    meshes = [normalize(load_mesh(item.mesh, root=item.root))[0] for item in items if item.mesh is not None]
    folders = [out / name for name in ways]
    for number, mesh in enumerate(meshes):
        other = meshes[(number + 1) % len(meshes)]
        for name, spoil in ways.items():
            path = out / name / f"{number:03d}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                path.write_bytes(spoil(mesh, other))
    for folder in folders:
        write_list(folder, items)
    return folders


def write_list(folder: Path, items: Sequence[Item], *, shuffle: bool = False) -> None:
    """Writes prompts.csv; shuffle: each has the next but one's prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "prompt", "truth"])
        for number, item in enumerate(items):
            prompt = items[(number + 2 * shuffle) % len(items)].prompt
            writer.writerow([f"{number:03d}.ply", prompt, item.name])


def _ply(shape: Shape, colours: Callable[[ndarray], ndarray]) -> bytes:
    vertices, faces = shape
    mesh = trimesh.Trimesh(vertices, faces, vertex_colors=colours(np.asarray(vertices)), process=False)
    return trimesh.exchange.ply.export_ply(mesh)


def _colours(mesh: Mesh) -> Callable[[ndarray], ndarray]:
    """Returns what gives places the colour of the nearest point on a mesh's surface, 8-bit sRGB."""
    face, weights = sample_surface(mesh, 20_000, numpy_rng("colours"))
    points = np.einsum("nc,ncd->nd", weights, mesh.triangles[face])
    srgb = np.rint(255 * np.clip(linear_to_srgb(base_color(mesh, face, weights)[0]), 0, 1)).astype(np.uint8)
    tree = cKDTree(points)
    return lambda places: srgb[tree.query(places)[1]]


def fine(mesh: Mesh) -> trimesh.Trimesh:
    """Triangles small enough to be smoothed and coloured at their corners."""
    vertices, faces = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, max_edge=0.1)[:2]
    return trimesh.Trimesh(vertices, faces)


def _true(mesh: Mesh, other: Mesh) -> bytes:
    own = fine(mesh)
    return _ply((own.vertices, own.faces), _colours(mesh))


def _smoothed(rounds: int) -> Spoil:
    def spoil(mesh: Mesh, other: Mesh) -> bytes:
        own = trimesh.smoothing.filter_laplacian(
            fine(mesh), lamb=0.5, iterations=rounds, volume_constraint=False
        )
        return _ply((own.vertices, own.faces), _colours(mesh))

    return spoil


def _melted(width: float) -> Spoil:
    def spoil(mesh: Mesh, other: Mesh) -> bytes:
        line = np.linspace(-1, 1, CELLS + 1)
        nodes = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
        values = signed_distance(mesh, thickness=0.02)(nodes).reshape((CELLS + 1,) * 3)
        return _ply(triangulate(torch.from_numpy(gaussian_filter(values, width))), _colours(mesh))

    return spoil


def _recoloured(mesh: Mesh, other: Mesh) -> bytes:
    own, colours = fine(mesh), _colours(mesh)
    return _ply((own.vertices, own.faces), lambda places: colours(places)[:, [1, 2, 0]])


def _swapped(mesh: Mesh, other: Mesh) -> bytes:
    """The lower half of the one and the upper half of the other, each with its own colours."""
    parts = []
    for each, sign in ((mesh, -1), (other, 1)):
        own = fine(each)
        half = own.submesh(
            [np.flatnonzero(sign * own.triangles_center[:, 2] >= 0)], append=True, repair=False
        )
        if isinstance(half, trimesh.Trimesh):  # there are faces in it
            half.visual = trimesh.visual.ColorVisuals(half, vertex_colors=_colours(each)(half.vertices))
            parts.append(half)
    return trimesh.exchange.ply.export_ply(trimesh.util.concatenate(parts))


WAYS: dict[str, Spoil] = {
    "true": _true, "smoothed_10": _smoothed(10), "smoothed_100": _smoothed(100), "melted_1": _melted(1),
    "melted_3": _melted(3), "recoloured": _recoloured, "swapped": _swapped,
}  # fmt: skip
"""Name of a folder -> what spoils its objects."""


if __name__ == "__main__":
    run_main(main)
