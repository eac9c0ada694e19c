"""Small asset files in closed form."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data_prep.mesh import Mesh, base_color
from shapeloom.surfaces import face_normals


def soup(vertices: np.ndarray, faces: np.ndarray, rgb: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> Mesh:
    """A mesh of one linear base colour."""
    vertices, faces = np.asarray(vertices, float), np.asarray(faces, np.int64)
    flat = np.repeat(face_normals(vertices[faces])[:, None], 3, axis=1).astype(np.float32)
    num = len(faces)
    return Mesh(
        vertices=vertices, faces=faces, tint=np.broadcast_to(np.float32(rgb), (num, 3, 3)), shading=flat,
        uv=np.zeros((num, 3, 2), np.float32), texture=np.full(num, -1), cutoff=np.zeros(num, np.float32),
    )  # fmt: skip


@pytest.fixture
def make_soup() -> Callable[..., Mesh]:
    return soup


@pytest.fixture
def ball() -> Mesh:
    """Radius 0.8; its facets lie within 0.002 of the sphere."""
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.8)
    return soup(sphere.vertices, sphere.faces)


@pytest.fixture
def box() -> Mesh:
    """Half sizes 0.9, 0.6, 0.3."""
    mesh = trimesh.creation.box(extents=(1.8, 1.2, 0.6))
    return soup(mesh.vertices, mesh.faces)


def write_box(path: Path, *, rgb: tuple[int, int, int] = (200, 40, 40), extents=(1, 2, 3)) -> Path:
    """An asset file of a box with vertex colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = trimesh.creation.box(extents=extents)
    mesh.visual.vertex_colors = np.tile(np.uint8([*rgb, 255]), (len(mesh.vertices), 1))
    mesh.export(path)
    return path


@pytest.fixture
def make_box() -> Callable[..., Path]:
    return write_box


class SidedBox:
    """1 x 2 x 3, four vertices a side, a colour a side: 24 vertices, 12 faces, area 22."""

    colors = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])

    def __init__(self) -> None:
        square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        sides = []
        for axis in range(3):
            for sign in (-1, 1):
                side = np.full((4, 3), float(sign))
                side[:, [(axis + 1) % 3, (axis + 2) % 3]] = square if sign > 0 else square[::-1]
                sides.append(side)
        self.vertices = np.concatenate(sides) * [0.5, 1, 1.5]
        self.quads = np.arange(24).reshape(6, 4)
        self.faces = self.quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
        self.vertex_colors = np.repeat(self.colors, 4, axis=0)
        self.face_colors = np.repeat(self.colors, 2, axis=0)


@pytest.fixture
def sided_box() -> SidedBox:
    return SidedBox()


L_OUTLINE = [(3, 0), (3, 1), (1, 1), (1, 3), (0, 3), (0, 0)]
"""Corners of an L, whose fan from the first would fill the notch."""


def l_prism() -> tuple[np.ndarray, list[list[int]]]:
    """An L of height 1: 12 vertices, two faces of 6 corners and six of 4; 20 triangles, area 22."""
    vertices = np.array([(x, y, z) for z in (0, 1) for x, y in L_OUTLINE], float)
    walls = [[i, (i + 1) % 6, (i + 1) % 6 + 6, i + 6] for i in range(6)]
    return vertices, [[5, 4, 3, 2, 1, 0], [6, 7, 8, 9, 10, 11], *walls]


@pytest.fixture
def prism() -> tuple[np.ndarray, list[list[int]]]:
    return l_prism()


def describe(mesh: Mesh) -> tuple[int, float, list[float], int]:
    """Faces, area, extents, and how many colours the faces' middles have."""
    triangles = mesh.triangles
    crosses = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    count = len(triangles)
    color, _ = base_color(mesh, np.arange(count), np.full((count, 3), 1 / 3))
    return (
        count,
        round(float(np.linalg.norm(crosses, axis=1).sum() / 2), 3),
        np.round(np.ptp(triangles.reshape(-1, 3), axis=0), 3).tolist(),
        len(np.unique(color.round(2), axis=0)),
    )


@pytest.fixture
def summary() -> Callable[[Mesh], tuple[int, float, list[float], int]]:
    return describe
