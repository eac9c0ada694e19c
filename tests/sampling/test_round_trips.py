"""Out and in: what is written here or by a peer comes back from our reader in its place and colours."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from data_prep.formats.load import load_mesh
from data_prep.mesh import base_color
from sampling.export import Z_UP_TO_Y_UP, TexturedMesh
from sampling.formats import MESH_FORMATS
from sampling.mesh import Mesh
from sampling.texture import Atlas
from shapeloom.color import linear_to_srgb

COLOURS = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 30], [30, 200, 120], [120, 30, 200]])


def slab(*, textured: bool) -> TexturedMesh:
    """A box of 0.4 x 0.8 x 1.6 off the middle, a colour for each side: no turn leaves it as it is."""
    box = trimesh.creation.box(extents=(0.4, 0.8, 1.6))
    box.apply_translation((0.3, -0.1, 0.05))
    corners = box.triangles.reshape(12, 3, 3)
    sides = np.unique(np.round(box.face_normals, 3), axis=0, return_inverse=True)[1].ravel()
    mesh = Mesh(
        corners.reshape(-1, 3),
        np.arange(36).reshape(12, 3),
        normals=np.repeat(box.face_normals, 3, axis=0),
        colours=np.repeat(COLOURS[sides], 3, axis=0),
    )
    if not textured:
        return TexturedMesh(mesh)
    # The colours stand in a row of six, and each face looks up the middle of its own.
    texture = np.repeat(np.repeat(COLOURS[None], 10, axis=1), 60, axis=0)
    uv = np.stack([(np.repeat(sides, 3) + 0.5) / 6, np.full(36, 0.5)], axis=1)
    return TexturedMesh(mesh, Atlas(np.arange(36), mesh.faces, uv), texture)


def colours_of(mesh) -> np.ndarray:
    """sRGB at the middle of each face."""
    count = len(mesh.faces)
    linear, _ = base_color(mesh, np.arange(count), np.full((count, 3), 1 / 3))
    return 255 * linear_to_srgb(linear)


def read_usdz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A package's triangles, turned to +Z up, and its faces' colours if they are the vertices'."""
    pytest.importorskip("pxr")
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.Open(str(path))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/object/mesh"))
    points = np.array(mesh.GetPointsAttr().Get()) @ Z_UP_TO_Y_UP
    faces = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    linear = mesh.GetDisplayColorPrimvar().Get()
    colours = None if linear is None else 255 * linear_to_srgb(np.array(linear)[faces[:, 0]])
    return points[faces], colours


@pytest.mark.parametrize("textured", [True, False])
@pytest.mark.parametrize("suffix", [f".{kind}" for kind in MESH_FORMATS])
def test_what_we_write_we_read_back_in_place_and_colour(tmp_path, suffix, textured):
    shape = slab(textured=textured)
    path = tmp_path / f"slab{suffix}"
    shape.save(path)
    if suffix == ".usdz":
        triangles, colours = read_usdz(path)
    else:
        back = load_mesh(path)
        assert back.warnings == []
        triangles, colours = back.triangles, None if suffix == ".stl" else colours_of(back)
    np.testing.assert_allclose(triangles, shape.mesh.vertices[shape.mesh.faces], atol=1e-6)
    if colours is not None:  # 8 bits of linear light, as GLB has them, are coarse where it is dark
        np.testing.assert_allclose(colours, shape.mesh.colours[::3], atol=3)


@pytest.mark.parametrize("suffix", ["gltf", "dae", "ply", "off"])
def test_what_a_peer_writes_we_read_in_place_and_colour(tmp_path, suffix):
    shape = slab(textured=False)
    turn = Z_UP_TO_Y_UP if suffix in ("gltf", "dae") else np.eye(3)
    mesh = shape._plain(turn, linear_colours=suffix == "gltf")
    if suffix == "gltf":
        files = trimesh.Scene(mesh).export(file_type="gltf")
    else:
        files = {f"slab.{suffix}": mesh.export(file_type=suffix)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    (path,) = tmp_path.glob(f"*.{suffix}")
    back = load_mesh(path)
    assert back.warnings == []
    np.testing.assert_allclose(back.triangles, shape.mesh.vertices[shape.mesh.faces], atol=1e-6)
    # trimesh writes no colours into OFF.
    expected = [204] * 3 if suffix == "off" else shape.mesh.colours[::3]
    np.testing.assert_allclose(colours_of(back), np.broadcast_to(expected, (12, 3)), atol=3)
