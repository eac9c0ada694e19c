"""Surfaces against shapes whose distance, area and volume are known in closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from shapeloom.rendering.isosurface import (
    _local_slope,
    extract_surface,
    grid_values,
    may_hold_zero,
    surface_cells,
)


def sphere(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)):
    return lambda p: (p - torch.tensor(centre)).norm(dim=-1) - radius


def torus(p: Tensor) -> Tensor:
    ring = p[:, :2].norm(dim=-1) - 0.6
    return torch.stack([ring, p[:, 2]], dim=-1).norm(dim=-1) - 0.25


def box(p: Tensor) -> Tensor:
    outside = p.abs() - torch.tensor([0.5, 0.7, 0.3])
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(dim=-1).clamp(max=0)


def as_mesh(surface: tuple[np.ndarray, np.ndarray]) -> trimesh.Trimesh:
    return trimesh.Trimesh(*surface, process=False)


@pytest.mark.parametrize("radius", [0.3, 0.95])
def test_a_sphere_comes_back_with_its_radius_and_place(radius):
    centre = (0.0, 0.0, 0.0) if radius > 0.5 else (0.4, -0.2, 0.1)
    vertices, _ = extract_surface(sphere(radius, centre), resolution=64)
    distance = np.linalg.norm(vertices - np.array(centre), axis=1)
    # Linear interpolation along an edge of length h errs by h^2 / (8 r) at most.
    assert np.abs(distance - radius).max() < (2 / 64) ** 2 / (8 * radius) + 1e-5


@pytest.mark.parametrize(
    ("field", "volume", "genus"),
    [(sphere(0.7), 4 / 3 * math.pi * 0.7**3, 0), (torus, 2 * math.pi**2 * 0.6 * 0.25**2, 1), (box, 0.84, 0)],
)
def test_meshes_are_closed_outward_and_have_the_volume_and_genus(field, volume, genus):
    mesh = as_mesh(extract_surface(field, resolution=64))
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2 - 2 * genus
    # Positive volume means outward faces; chords cut off O(h^2), a box's edges O(h) of their cross-section.
    assert mesh.volume == pytest.approx(volume, rel=0.01)


@pytest.mark.parametrize("field", [sphere(0.7, (0.05, 0.1, -0.1)), torus, box])
@pytest.mark.parametrize("scale", [1.0, 0.05, 20.0])
def test_sparse_equals_dense(field, scale):
    scaled = lambda p: scale * field(p)  # noqa: E731
    sparse = extract_surface(scaled, resolution=64, coarsest=8)
    dense = extract_surface(scaled, resolution=64, coarsest=64)
    # A vectorised sqrt rounds its remainder otherwise, so equal points differ by a float32 step or two.
    np.testing.assert_allclose(sparse[0], dense[0], atol=5e-6)
    np.testing.assert_array_equal(sparse[1], dense[1])


def test_sparse_finds_a_plate_thinner_than_a_coarse_cell():
    plate = lambda p: p[:, 2].sub(0.061).abs() - 0.02  # noqa: E731
    mesh = as_mesh(extract_surface(lambda p: torch.maximum(plate(p), p.abs().amax(-1) - 0.8), resolution=128))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1.6 * 1.6 * 0.04, rel=0.01)


def test_sparse_evaluates_a_small_part_of_the_grid():
    counted = 0

    def field(p: Tensor) -> Tensor:
        nonlocal counted
        counted += len(p)
        return sphere(0.7)(p)

    extract_surface(field, resolution=128)
    # The coarse grid alone has 33^3 nodes; 42,008 are ends of edges that the sphere crosses.
    assert counted < 1.1 * (33**3 + 42_008)


def test_a_surface_is_followed_from_where_a_coarse_grid_saw_it():
    """A needle, thinner than a coarse cell, that only its thick end betrays."""

    def needle(p: Tensor) -> Tensor:
        beyond = torch.stack([p[:, 0].abs() - 0.8, p[:, 1].sub(0.02).abs() - 0.03, p[:, 2].abs() - 0.03], -1)
        rod = beyond.clamp(min=0).norm(dim=-1) + beyond.amax(dim=-1).clamp(max=0)
        return torch.minimum(rod, sphere(0.2, (0.8, 0.0, 0.0))(p))

    sparse = extract_surface(needle, resolution=128, coarsest=8)
    dense = extract_surface(needle, resolution=128, coarsest=128)
    assert len(sparse[1]) == len(dense[1])


def random_network(seed: int, *, sharpness: float) -> Callable[[Tensor], Tensor]:
    """A ball whose surface a random network of sines makes rough: no distance, of many slopes."""
    generator = torch.Generator().manual_seed(seed)
    hidden = sharpness * torch.randn(3, 64, generator=generator)
    out = torch.randn(64, generator=generator) / 8
    return lambda p: (p.norm(dim=-1) - 0.6) * (1 + p[:, 0] ** 2) + 0.1 * ((p @ hidden).sin() @ out)


@pytest.mark.parametrize("sharpness", [2.0, 6.0])
def test_sparse_misses_no_more_than_a_thousandth_of_a_rough_fields_cells(sharpness):
    missed = cells = 0
    for seed in range(4):
        field = random_network(seed, sharpness=sharpness)
        dense = surface_cells(grid_values(field, resolution=64, coarsest=64))
        sparse = surface_cells(grid_values(field, resolution=64))
        assert not (sparse & ~dense).any()  # interpolation makes no surface of its own
        missed += int((dense & ~sparse).sum())
        cells += int(dense.sum())
    assert cells > 20_000
    assert missed <= 0.001 * cells


def test_a_shape_that_leaves_the_box_gets_a_wall():
    mesh = as_mesh(extract_surface(lambda p: p[:, 0] - 0.3, resolution=32))
    assert mesh.is_watertight
    # The walls lie a thousandth of a cell (2/32) inside the box.
    np.testing.assert_allclose(mesh.bounds, [[-1, -1, -1], [0.3, 1, 1]], atol=1e-4)


@pytest.mark.parametrize("value", [0.3, -0.3, 0.0])
def test_fields_without_a_sign_change_give_an_empty_mesh(value):
    vertices, faces = extract_surface(lambda p: torch.full((len(p),), value), resolution=32, coarsest=8)
    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)


def test_a_field_that_is_inside_only_at_the_faces_of_the_box_gives_an_empty_mesh():
    vertices, faces = extract_surface(lambda x: 0.99 - x[:, 0].abs(), resolution=16)
    assert len(vertices) == len(faces) == 0


def test_bad_fields_and_sizes_are_refused():
    with pytest.raises(ValueError, match="not finite at 729 of 729"):
        extract_surface(lambda p: p[:, 0] / 0, resolution=8)
    with pytest.raises(ValueError, match=r"must return \[729\] values"):
        extract_surface(lambda p: p[:, :1], resolution=8)
    with pytest.raises(ValueError, match="at least 2"):
        extract_surface(sphere(0.5), resolution=1)


@pytest.mark.parametrize("axis", range(3))
def test_a_plane_has_the_same_slope_in_a_grid_whichever_way_it_faces(axis):
    position = torch.linspace(-1, 1, 9)
    values = (0.7 * position).reshape([-1 if i == axis else 1 for i in range(3)]).expand(9, 9, 9)
    torch.testing.assert_close(_local_slope(values), torch.full((8, 8, 8), 0.7))


def test_the_smallest_grid_of_two_cells_a_side_shows_a_ball_as_an_octahedron():
    vertices, faces = extract_surface(sphere(0.5), resolution=2)
    assert (len(vertices), len(faces)) == (6, 8)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), np.full(6, 0.5), atol=1e-6)


def test_a_surface_through_nodes_is_closed_and_has_no_faces_without_area():
    mesh = as_mesh(extract_surface(lambda p: p.abs().sum(dim=-1) - 0.5, resolution=16))  # an octahedron
    assert mesh.is_watertight and mesh.area_faces.min() > 0
    assert mesh.volume == pytest.approx(4 / 3 * 0.5**3, rel=1e-3)


def test_a_plane_through_nodes_passes_through_the_cells_on_one_side_of_it():
    cells = surface_cells(grid_values(lambda points: points[:, 2], resolution=8))
    assert cells[:, :, 3].all() and cells.sum() == 64


@pytest.mark.parametrize("field", [sphere(0.7, (0.05, 0.1, -0.1)), torus, box])
def test_every_cell_with_a_zero_may_hold_one(field):
    fine = surface_cells(grid_values(field, resolution=96, coarsest=96))
    truth = fine.reshape(12, 8, 12, 8, 12, 8).any(5).any(3).any(1)
    found = may_hold_zero(grid_values(field, resolution=12, coarsest=12))
    assert truth.any() and not (truth & ~found).any()


def test_of_a_plane_no_cell_further_than_six_hundredths_of_a_side_may_hold_a_zero():
    nodes = torch.linspace(-1, 1, 17, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(nodes, nodes, nodes, indexing="ij"), dim=-1)
    middles, side = places[:-1, :-1, :-1] + 1 / 16, 1 / 8
    normals = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for normal in torch.nn.functional.normalize(normals, dim=-1):
        beyond = (middles @ normal - 0.1).abs() - 0.5 * side * normal.abs().sum()  # 0: it touches the cell
        found = may_hold_zero(places @ normal - 0.1)
        assert found[beyond <= 0].all() and not found[beyond > 0.06 * side].any()
