"""python -m benchmarks.experiments.sdf_error [FOLDER]: signed distances of damaged and of intact meshes.

Watertight procedural assets are damaged in the ways real ones are; sign and distance of the damaged mesh are
compared with the intact mesh's, at points near the surface and in the whole box. With a folder of real
assets: which share of them is flagged as not watertight.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import trimesh

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from data_prep.geometry.normalize import normalize
from data_prep.geometry.sdf import SignedDistance, sdf_samples, signed_distance
from data_prep.mesh import Mesh
from data_prep.procedural.dataset import make_asset
from data_prep.sources.find import SplitFractions, find_sources
from shapeloom.box import ASSET_HALF_SIZE

THICKNESS = 0.02
FAMILIES = ("chair", "mug", "car", "house", "tree", "table", "lamp", "bottle")
CLEAR = 0.02
"""Points farther than this from the intact surface should get their sign right whatever the damage."""

Rng = np.random.Generator
Damage = Callable[[Mesh, Rng], Mesh]


def plain(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """A grey mesh."""
    num = len(faces)
    return Mesh(
        vertices=np.asarray(vertices, np.float64), faces=np.asarray(faces, np.int64),
        tint=np.ones((num, 3, 3), np.float32), shading=np.ones((num, 3, 3), np.float32),
        uv=np.zeros((num, 3, 2), np.float32), texture=np.full(num, -1), cutoff=np.zeros(num, np.float32),
    )  # fmt: skip


def intact(family: str) -> Mesh:
    """A procedural asset of small faces, in the cube."""
    scene, _, _ = make_asset(family, "red", np.random.default_rng(1))
    whole = scene.to_mesh()
    whole.merge_vertices(merge_tex=True, merge_norm=True)
    vertices, faces = trimesh.remesh.subdivide_to_size(
        whole.vertices, whole.faces, max_edge=0.06 * float(whole.extents.max()), max_iter=20
    )
    return normalize(plain(vertices, faces))[0]


def patches(mesh: Mesh, share: float, rng: Rng) -> np.ndarray:
    """Mask of about a share of the faces, in round patches."""
    middle = mesh.triangles.mean(axis=1)
    chosen = np.zeros(len(middle), bool)
    while chosen.mean() < share:
        centre = middle[rng.integers(len(middle))]
        chosen |= np.linalg.norm(middle - centre, axis=1) < 0.08 * ASSET_HALF_SIZE
    return chosen


def doubled(mesh: Mesh, rng: Rng) -> Mesh:
    """A third of the faces is there twice, half of those turned."""
    again = mesh.select(np.flatnonzero(rng.random(len(mesh.faces)) < 1 / 3))
    again = again.flip(rng.random(len(again.faces)) < 0.5)
    return plain(mesh.vertices, np.concatenate([mesh.faces, again.faces]))


def shaken(mesh: Mesh, rng: Rng) -> Mesh:
    """Positions off by 0.2%, no two faces sharing any: cracks everywhere."""
    corners = mesh.triangles.reshape(-1, 3) + 0.002 * rng.standard_normal((3 * len(mesh.faces), 3))
    return plain(corners, np.arange(len(corners)).reshape(-1, 3))


DAMAGES: dict[str, Damage] = {
    "none": lambda mesh, rng: mesh,
    "vertices split at every face": lambda mesh, rng: plain(
        mesh.triangles.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3)
    ),
    "all inside out": lambda mesh, rng: mesh.flip(np.ones(len(mesh.faces), bool)),
    "1% of the surface missing": lambda mesh, rng: mesh.select(~patches(mesh, 0.01, rng)),
    "5% missing": lambda mesh, rng: mesh.select(~patches(mesh, 0.05, rng)),
    "20% missing": lambda mesh, rng: mesh.select(~patches(mesh, 0.20, rng)),
    "5% of the faces turned": lambda mesh, rng: mesh.flip(rng.random(len(mesh.faces)) < 0.05),
    "30% turned": lambda mesh, rng: mesh.flip(rng.random(len(mesh.faces)) < 0.30),
    "a third twice, half of it turned": doubled,
    "shaken apart": shaken,
}


def compare(truth: SignedDistance, mesh: Mesh, damaged: Mesh, num: int) -> tuple[float, float, float, bool]:
    """Share of clear points whose sign is right; mean and 95th percentile of the error; whether flagged."""
    distance = signed_distance(damaged, thickness=THICKNESS)
    points, expected = sdf_samples(mesh, truth, num, np.random.default_rng(2))
    found = distance(points.astype(np.float64))
    clear = np.abs(expected) > CLEAR
    error = np.abs(found - expected)
    right = float((np.sign(found) == np.sign(expected))[clear].mean())
    return right, float(error.mean()), float(np.percentile(error, 95)), not distance.watertight


def flagged_share(folder: Path, every: int) -> str:
    """How many real assets are flagged."""
    sources, _ = find_sources(folder, SplitFractions())
    flags, seconds = [], 0.0
    for source in sources[::every]:
        try:
            mesh, _ = normalize(load_mesh(folder / source.path))
        except AssetError:
            continue
        start = time.process_time()
        flags.append(not signed_distance(mesh, thickness=THICKNESS).watertight)
        seconds += time.process_time() - start
    each = seconds / len(flags)
    return f"{folder.name}: {np.mean(flags):.0%} of {len(flags)} assets flagged, {each:.3f} CPU-s each"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.sdf_error", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--every", type=int, default=1, help="of the folder's assets")
    parser.add_argument("--points", type=int, default=16384)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    arguments = parser.parse_args(argv)
    rows: dict[str, list[tuple[float, float, float, bool]]] = {name: [] for name in DAMAGES}
    for family in arguments.families:
        mesh = intact(family)
        truth = signed_distance(mesh, thickness=THICKNESS)
        for name, damage in DAMAGES.items():
            damaged = damage(mesh, np.random.default_rng(3))
            rows[name].append(compare(truth, mesh, damaged, arguments.points))
    lines = [f"{'damage':34} sign right  mean error  95%     flagged"]
    for name, results in rows.items():
        right, mean, high, flagged = np.mean(results, axis=0)
        lines.append(f"{name:34} {right:9.2%}  {mean:.4f}      {high:.4f}  {flagged:.0%}")
    if arguments.folder is not None:
        lines.append(flagged_share(arguments.folder, arguments.every))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
