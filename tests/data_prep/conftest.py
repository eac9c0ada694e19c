"""Small asset files in closed form."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data_prep.mesh import Mesh
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
