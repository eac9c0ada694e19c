"""Watertight whatever simplification does, and nothing pinched."""

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from sampling.mesh import MeshConfig, clean_surface, field_to_mesh
from sampling.topology import (
    fill_cavities,
    is_watertight,
    joined_by_place,
    part_areas,
    separate_pinches,
    simplify,
    split_creases,
)


def waves(seed: int):
    """A field of crooked, pierced, fused walls: hard to simplify."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(12, 3, generator=generator) * 6
    phases, sizes = torch.rand(12, generator=generator) * 6.3, torch.randn(12, generator=generator) * 0.1
    return lambda p: (torch.sin(p @ directions.T + phases) * sizes).sum(-1) + 0.3 * (p.norm(dim=-1) - 0.7)


def boxes(*at: tuple[tuple[float, float, float], float]):
    """Closed boxes of these middles and sides as one mesh."""
    made = [trimesh.creation.box(extents=3 * [side]).apply_translation(middle) for middle, side in at]
    whole = trimesh.util.concatenate(made)
    return np.asarray(whole.vertices), np.asarray(whole.faces)


@pytest.mark.parametrize(
    ("middle", "side", "stays"),
    [(0.0, 0.2, False), (0.49, 0.2, True), (0.41, 0.2, True), (-0.41, 0.2, True), (2.0, 0.2, True)],
)
def test_what_lies_within_another_part_goes_and_what_reaches_into_it_stays(middle, side, stays):
    vertices, faces = boxes(((0, 0, 0), 1.0), ((middle, 0, 0), side))
    assert len(fill_cavities(vertices, faces)[1]) == (24 if stays else 12)


def test_of_parts_within_each_other_the_outermost_stay():
    nested = [((0, 0, 0), 1.0), ((0, 0, 0), 0.6), ((0.1, 0, 0), 0.2)]
    beside = [((0.9, 0, 0), 0.7), ((0.9, 0, 0), 0.1)]
    vertices, faces = fill_cavities(*boxes(*nested, *beside))
    assert len(faces) == 24 and np.ptp(vertices[:, 0]) == pytest.approx(0.5 + 0.9 + 0.35)


def grey(p: Tensor) -> Tensor:
    return torch.full_like(p, 0.5)


@pytest.mark.parametrize("seed", range(6))
def test_hard_fields_come_out_watertight_within_their_budget(seed: int):
    mesh = field_to_mesh(waves(seed), grey, MeshConfig(resolution=32, max_faces=600))
    assert 300 < len(mesh.faces) <= 600
    assert mesh.watertight and is_watertight(mesh.faces)
    assert fill_cavities(mesh.vertices, mesh.faces)[1].shape == mesh.faces.shape
    assert mesh.num_parts == len(part_areas(mesh.vertices, mesh.faces))
    # Joined by place, as slicers do, it is watertight too.
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).is_watertight


def two_cubes(apart: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    cubes = [trimesh.creation.box(), trimesh.creation.box().apply_translation(apart)]
    both = trimesh.util.concatenate(cubes)
    both.merge_vertices()
    return both.vertices, both.faces


@pytest.mark.parametrize(("apart", "shared"), [((1, 1, 0), 2), ((1, 1, 1), 1)])
def test_cubes_that_touch_at_an_edge_or_a_corner_come_apart(apart, shared):
    vertices, faces = two_cubes(apart)
    assert len(vertices) == 16 - shared
    vertices, faces = separate_pinches(vertices, faces)
    assert is_watertight(faces) and len(vertices) == 16
    assert trimesh.Trimesh(vertices, faces).is_watertight  # they don't touch any more
    assert trimesh.Trimesh(vertices, faces).volume == pytest.approx(2, rel=0.05)


def test_vertices_at_the_same_place_come_apart():
    # As sharpening leaves them where it clips two neighbours to the same edge of the box.
    ball = trimesh.creation.icosphere(subdivisions=2)
    vertices = ball.vertices.copy()
    one, other = ball.edges_unique[0]
    vertices[one] = vertices[other]
    assert not is_watertight(joined_by_place(vertices, ball.faces))
    apart, faces = separate_pinches(vertices, ball.faces)
    assert is_watertight(joined_by_place(apart, faces)) and trimesh.Trimesh(apart, faces).is_watertight


def test_faces_back_to_back_vanish_and_open_meshes_are_refused():
    cube = trimesh.creation.box()
    sheet = np.array([[0, 1, 2], [0, 2, 1]])
    _, faces = separate_pinches(cube.vertices, np.concatenate([cube.faces, sheet]))
    assert len(faces) == 12 and is_watertight(faces)
    assert len(separate_pinches(cube.vertices, sheet)[1]) == 0
    for function in (separate_pinches, lambda v, f: split_creases(v, f, degrees=40.0)):
        with pytest.raises(ValueError, match="expected a closed mesh"):
            function(cube.vertices, cube.faces[1:])
    assert not is_watertight(cube.faces[1:]) and not is_watertight(cube.faces[:0])


def test_simplification_reaches_its_number_on_flat_sides():
    # Marching cubes' slivers stop it short of the number there; sharpened vertices don't.
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]

    def box(p: Tensor) -> Tensor:
        outside = (p @ turn).abs() - torch.tensor([0.6, 0.4, 0.3])
        return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)

    vertices, faces, _ = clean_surface(box, MeshConfig(resolution=64))
    assert len(simplify(vertices, faces, max_faces=1000)[1]) <= 1000
