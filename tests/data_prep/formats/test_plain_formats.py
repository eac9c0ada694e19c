"""What OBJ's material options, DAE's up axis and OFF mean, and that no other format's tricks get through."""

import numpy as np
import pytest
import trimesh
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from data_prep.formats.mtl import map_options
from data_prep.mesh import BLEND, Sampler, base_color

OBJ = "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3\n"


def write(folder, mtl: str, picture: np.ndarray | None = None):
    (folder / "a.obj").write_text(OBJ)
    (folder / "a.mtl").write_text("newmtl m\n" + mtl)
    if picture is not None:
        Image.fromarray(picture).save(folder / "skin.png")
    return load_mesh(folder / "a.obj")


@pytest.mark.parametrize(
    ("mtl", "alpha"), [("Kd 1 0 0\nd 0.25", 0.25), ("Kd 1 0 0\nTr 0.25", 0.75), ("Kd 1 0 0", 1)]
)
def test_dissolve_is_coverage(tmp_path, mtl, alpha):
    mesh = write(tmp_path, mtl)
    color, opacity = base_color(mesh, np.array([0]), np.array([[1.0, 0, 0]]))
    assert color[0].tolist() == [1, 0, 0]
    assert opacity[0] == pytest.approx(alpha)
    assert mesh.cutoff[0] == (BLEND if alpha < 1 else 0)


def test_texture_alpha_and_alpha_map_are_coverage(tmp_path):
    picture = np.full((2, 2, 4), 255, np.uint8)
    assert not write(tmp_path, "map_Kd skin.png", picture).cutoff.any()
    picture[..., 3] = 51
    mesh = write(tmp_path, "map_Kd skin.png", picture)
    assert base_color(mesh, np.array([0]), np.array([[1.0, 0, 0]]))[1][0] == pytest.approx(0.2)
    Image.new("L", (8, 8), 102).save(tmp_path / "mask.png")
    picture[..., 3] = 255
    mesh = write(tmp_path, "map_Kd skin.png\nmap_d mask.png", picture)
    assert base_color(mesh, np.array([0]), np.array([[1.0, 0, 0]]))[1][0] == pytest.approx(0.4, abs=1e-3)


def test_map_options_are_no_part_of_the_name(tmp_path):
    mesh = write(tmp_path, "map_Kd -clamp on -s 2 3 1 -o 0.5 skin.png", np.zeros((2, 2, 3), np.uint8))
    assert mesh.samplers == [Sampler("clamp", "clamp")]
    np.testing.assert_allclose(mesh.uv[0], [[0.5, 0.5], [2.5, 0.5], [0.5, 3.5]])
    assert map_options("my skin - red.png")[0] == "my skin - red.png"
    assert map_options("-bm 0.5 -imfchan r oak.png")[0].endswith("oak.png")


@pytest.mark.parametrize(("axis", "extents"), [("X_UP", (2, 3, 1)), ("Y_UP", (1, 3, 2)), ("Z_UP", (1, 2, 3))])
def test_dae_says_which_axis_is_up(tmp_path, axis, extents):
    text = trimesh.creation.box(extents=(1, 2, 3)).export(file_type="dae").decode()
    (tmp_path / "a.dae").write_text(text.replace("Y_UP", axis))
    mesh = load_mesh(tmp_path / "a.dae")
    np.testing.assert_allclose(np.sort(np.ptp(mesh.vertices, axis=0)[:2]), np.sort(extents[:2]), atol=1e-6)
    assert np.ptp(mesh.vertices[:, 2]) == pytest.approx(extents[2])
    triangles = mesh.triangles
    assert np.einsum("fi,fi->", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])) > 0  # no mirror


def test_off_is_read(tmp_path):
    trimesh.creation.icosphere(subdivisions=1).export(tmp_path / "a.off")
    assert len(load_mesh(tmp_path / "a.off").faces) == 80


def test_dae_with_entities_is_refused(tmp_path):
    (tmp_path / "a.dae").write_text(
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><COLLADA>&a;</COLLADA>'
    )
    with pytest.raises(AssetError, match="entities"):
        load_mesh(tmp_path / "a.dae")


def test_picture_formats_that_start_programs_are_not_tried(tmp_path):
    mesh = write(tmp_path, "map_Kd skin.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "skin.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    mesh = load_mesh(tmp_path / "a.obj")
    assert mesh.textures == []
    assert "unreadable texture skin.png" in mesh.warnings[0]
