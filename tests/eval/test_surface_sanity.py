"""What people see as worse, the surface measures call worse: true meshes smoothed, melted, or exchanged."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import gaussian_filter

from data_prep.formats.load import load_mesh
from data_prep.geometry.normalize import normalize
from data_prep.geometry.sdf import signed_distance
from data_prep.mesh import Mesh
from data_prep.procedural.dataset import ProceduralConfig, generate
from shapeloom.metrics import bootstrap_interval
from shapeloom.rendering.isosurface import triangulate
from shapeloom.surface_metrics import LOWER_IS_BETTER, surface_scores
from shapeloom.surfaces import Surface

NUM, CELLS = 6, 40


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Mesh]:
    """Objects of several families, normalised."""
    folder = tmp_path_factory.mktemp("made") / "objects"
    generate(ProceduralConfig(num_train=NUM, num_val=0, num_test=0, num_judge=0), folder)
    return [normalize(load_mesh(path))[0] for path in sorted(folder.rglob("*.glb"))]


@pytest.fixture(scope="module")
def truths(objects: list[Mesh]) -> list[Surface]:
    return [of(mesh.vertices, mesh.faces) for mesh in objects]


def of(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    return Surface.of_mesh(vertices, faces, num=3000)


def scored(candidates: list[Surface], truths: list[Surface]) -> dict[str, np.ndarray]:
    scores = [surface_scores(ours, truth) for ours, truth in zip(candidates, truths, strict=True)]
    return {name: np.array([each[name] for each in scores]) for name in scores[0]}


def assert_falls(steps: list[dict[str, np.ndarray]], name: str) -> None:
    """Each step is worse than the one before it, by more than the 95% interval of the paired difference."""
    sign = -1 if name in LOWER_IS_BETTER else 1
    for better, worse in pairwise(steps):
        low, _ = bootstrap_interval(sign * (better[name] - worse[name]))
        assert low > 0, (name, better[name], worse[name])


def smoothed(mesh: Mesh, rounds: int) -> Surface:
    """Laplacian smoothing, of triangles small enough to have something to smooth."""
    fine = trimesh.Trimesh(mesh.vertices, mesh.faces).subdivide_to_size(0.12)
    smooth = trimesh.smoothing.filter_laplacian(fine, lamb=0.5, iterations=rounds, volume_constraint=False)
    return of(smooth.vertices, smooth.faces)


def melted(mesh: Mesh) -> list[Surface]:
    """The zero level of a grid of signed distances after Gaussian blurs of 1 and 3 cells."""
    line = np.linspace(-1, 1, CELLS + 1)
    nodes = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    values = signed_distance(mesh, thickness=0.02)(nodes).reshape((CELLS + 1,) * 3)
    return [of(*triangulate(torch.from_numpy(gaussian_filter(values, width)))) for width in (1, 3)]


@pytest.mark.parametrize("name", ["normal_consistency", "normals_off", "normal_psnr", "fscore_0.01"])
def test_smoothing_10_and_100_rounds_is_worse_and_worse(
    name: str, smoothing: list[dict[str, np.ndarray]]
) -> None:
    assert_falls(smoothing, name)


@pytest.fixture(scope="module")
def smoothing(objects: list[Mesh], truths: list[Surface]) -> list[dict[str, np.ndarray]]:
    rounds = ([smoothed(mesh, num) for mesh in objects] for num in (10, 100))
    return [scored(truths, truths), *(scored(surfaces, truths) for surfaces in rounds)]


@pytest.fixture(scope="module")
def melting(objects: list[Mesh], truths: list[Surface]) -> list[dict[str, np.ndarray]]:
    widths = zip(*map(melted, objects), strict=True)
    return [scored(truths, truths), *(scored(list(surfaces), truths) for surfaces in widths)]


@pytest.mark.parametrize("name", ["normal_consistency", "normals_off", "chamfer", "fscore_0.02"])
def test_melting_is_worse_the_wider_it_is(name: str, melting: list[dict[str, np.ndarray]]) -> None:
    assert_falls(melting, name)


def test_another_objects_surface_is_worse_than_a_melted_one(
    truths: list[Surface], melting: list[dict[str, np.ndarray]]
) -> None:
    others = scored([*truths[1:], truths[0]], truths)
    for name in ("chamfer", "fscore_0.02", "fscore_0.05", "normal_consistency"):
        assert_falls([melting[1], others], name)
