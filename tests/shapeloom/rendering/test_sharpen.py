"""Boxes get their edges and corners back, balls their roundness, and closed surfaces stay closed."""

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from shapeloom.rendering.isosurface import extract_surface
from shapeloom.rendering.sharpen import sharpen

RESOLUTION = 40
CELL = 2 / RESOLUTION
TURN = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
HALF = torch.tensor([0.6, 0.45, 0.3])


def box(p: Tensor) -> Tensor:
    outside = (p @ TURN).abs() - HALF
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)


def ball(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - 0.7


def slope_of(field):
    def gradient(p: Tensor) -> Tensor:
        p = p.detach().requires_grad_()
        return torch.autograd.grad(field(p).sum(), p)[0]

    return gradient


def sharpened(field, rounds: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vertices, faces = extract_surface(field, resolution=RESOLUTION)
    places = sharpen(field, slope_of(field), vertices, faces, resolution=RESOLUTION, rounds=rounds)
    return vertices, places, faces


@pytest.mark.parametrize("slope", [0.4, 1.0])
def test_a_box_gets_its_corners_and_sides_back(slope: float):
    cut, places, faces = sharpened(lambda p: slope * box(p))
    signs = np.stack(np.meshgrid(*[(-1, 1)] * 3), -1).reshape(-1, 3)
    corners = signs * HALF.numpy() @ TURN.numpy().T

    def furthest(vertices: np.ndarray) -> float:
        return float(np.linalg.norm(vertices[:, None] - corners, axis=-1).min(axis=0).max())

    assert furthest(cut) > 0.3 * CELL and furthest(places) < 0.03 * CELL
    before, after = (trimesh.Trimesh(v, faces, process=False) for v in (cut, places))
    exact = float(8 * HALF.prod())
    assert abs(after.volume / exact - 1) < 1e-3 < abs(before.volume / exact - 1)
    assert after.is_watertight and after.is_winding_consistent
    # Faces lie on the six sides: marching cubes leaves a rim of bevels.
    along = np.abs(after.face_normals @ TURN.numpy()).max(axis=1)
    assert after.area_faces[along < 0.99].sum() < 0.01 * after.area
    assert (
        before.area_faces[np.abs(before.face_normals @ TURN.numpy()).max(axis=1) < 0.99].sum()
        > 0.04 * before.area
    )


def test_a_ball_stays_round():
    cut, places, faces = sharpened(ball)

    def error(vertices: np.ndarray) -> float:
        """Of the faces' middles, where chords are furthest inside."""
        return float(np.abs(np.linalg.norm(vertices[faces].mean(axis=1), axis=1) - 0.7).mean())

    assert error(places) < 1.1 * error(cut)
    assert np.abs(np.linalg.norm(places, axis=1) - 0.7).max() < 0.06 * CELL


def test_surfaces_cut_off_by_the_box_keep_their_walls():
    vertices, faces = extract_surface(lambda p: p[:, 2] - 0.31, resolution=16)
    places = sharpen(
        lambda p: p[:, 2] - 0.31, slope_of(lambda p: p[:, 2] - 0.31), vertices, faces, resolution=16
    )
    mesh = trimesh.Trimesh(places, faces, process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(2 * 2 * 1.31, rel=1e-3)
    assert np.abs(places).max() <= 1


@pytest.mark.parametrize("side", [1, -1])
def test_no_vertex_leaves_the_box_where_two_planes_do_at_a_slant(side: int):
    normals = side * torch.tensor([[-0.7514, 0.4989, 0.4319], [0.0954, 0.3743, 0.9224]])
    offsets = torch.tensor([0.4264, 0.6053])

    def wedge(p: Tensor) -> Tensor:
        return (p @ normals.T - offsets).amax(dim=-1)

    vertices, faces = extract_surface(wedge, resolution=16)
    assert np.abs(sharpen(wedge, slope_of(wedge), vertices, faces, resolution=16)).max() <= 1


def test_nothing_stays_nothing():
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    assert sharpen(ball, slope_of(ball), *nothing, resolution=16).shape == (0, 3)
