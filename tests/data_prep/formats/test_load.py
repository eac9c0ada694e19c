"""Files of every format come in upright, in their place and colour; bad ones say why."""

import base64
import json
import struct

import numpy as np
import pytest
import trimesh
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from data_prep.mesh import base_color
from shapeloom.color import linear_to_srgb

TALL = (1.0, 2.0, 3.0)
"""Extents x, y, z of the test box in its file's own frame."""


def extents(mesh) -> np.ndarray:
    return np.ptp(mesh.triangles.reshape(-1, 3), axis=0)


def tree_of(materials: list[dict], nodes: list[dict] | None = None, **more) -> dict:
    """A glTF of one triangle (0,0,0) (1,0,0) (0,2,0) with every material's primitive in a mesh of its own."""
    data = np.float32([[0, 0, 0], [1, 0, 0], [0, 2, 0]]).tobytes()
    return {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes or materials)))}],
        "nodes": nodes or [{"mesh": i, "name": f"n{i}"} for i in range(len(materials))],
        "meshes": [
            {"primitives": [{"attributes": {"POSITION": 0}, "material": i}]} for i in range(len(materials))
        ],
        "materials": materials,
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": len(data)}],
        "buffers": [{"byteLength": len(data), "uri": "data:a/b;base64," + base64.b64encode(data).decode()}],
        **more,
    }


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl"])
def test_y_up_formats_are_turned_and_z_up_formats_stay(tmp_path, make_box, suffix):
    mesh = load_mesh(make_box(tmp_path / f"box.{suffix}", extents=TALL))
    expected = (1, 3, 2) if suffix in ("glb", "obj") else TALL
    np.testing.assert_allclose(extents(mesh), expected, atol=1e-6)


def test_y_up_becomes_z_up_and_not_its_mirror(tmp_path):
    file = tmp_path / "a.gltf"
    file.write_text(json.dumps(tree_of([{}])))
    triangle = load_mesh(file).triangles[0]
    np.testing.assert_allclose(triangle, [[0, 0, 0], [1, 0, 0], [0, 0, 2]], atol=1e-12)


def test_up_axis_can_be_named(tmp_path, make_box):
    file = make_box(tmp_path / "box.ply", extents=TALL)
    np.testing.assert_allclose(extents(load_mesh(file, up="y")), (1, 3, 2), atol=1e-6)


@pytest.mark.parametrize("linear", [[0.5, 0.1, 0.002], [1.0, 0.0, 0.0003]])
def test_gltf_factor_is_linear_and_exact_in_the_dark(tmp_path, linear):
    file = tmp_path / "a.gltf"
    file.write_text(json.dumps(tree_of([{"pbrMetallicRoughness": {"baseColorFactor": [*linear, 1]}}])))
    np.testing.assert_allclose(load_mesh(file).tint[0, 0], linear, rtol=1e-6)


def test_gltf_materials_of_one_name_stay_apart(tmp_path):
    colors = [[1, 0, 0, 1], [0, 1, 0, 1]]
    file = tmp_path / "a.gltf"
    named = [{"name": "paint", "pbrMetallicRoughness": {"baseColorFactor": c}} for c in colors]
    file.write_text(json.dumps(tree_of(named)))
    assert load_mesh(file).tint[:, 0].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_node_transforms_apply_and_mirrors_keep_outsides_out(tmp_path):
    scene = trimesh.Scene()
    for x, mirror in ((0.0, 1.0), (10.0, -1.0)):
        scene.add_geometry(trimesh.creation.box(), transform=np.diag([mirror, 1, 1, 1]) + np.eye(4, k=3) * x)
    scene.export(tmp_path / "a.glb")
    mesh = load_mesh(tmp_path / "a.glb")
    assert extents(mesh)[0] == pytest.approx(11)
    corners = mesh.triangles
    volume = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(2, abs=1e-5)  # a box inside out would take its volume away


def test_hidden_nodes_and_colliders_are_dropped(tmp_path):
    hidden = {"KHR_node_visibility": {"visible": False}}
    nodes = [
        {"mesh": 0, "name": "Rock"},
        {"mesh": 1, "name": "rock_collider"},
        {"mesh": 2, "extensions": hidden},
    ]
    file = tmp_path / "a.gltf"
    file.write_text(json.dumps(tree_of([{}, {}, {}], nodes)))
    mesh = load_mesh(file)
    assert len(mesh.faces) == 1
    assert mesh.warnings == ["left out as hidden: node 2", "left out as colliders: rock_collider"]


def test_vertex_colours_are_srgb_in_ply_and_linear_in_gltf(tmp_path, make_box):
    for suffix, expected in (("ply", (200, 40, 40)), ("glb", None)):
        mesh = load_mesh(make_box(tmp_path / f"a.{suffix}", rgb=(200, 40, 40)))
        if expected:
            np.testing.assert_allclose(linear_to_srgb(mesh.tint[0, 0]) * 255, expected, atol=0.01)
        else:
            np.testing.assert_allclose(mesh.tint[0, 0] * 255, (200, 40, 40), atol=0.01)


def write_textured_obj(folder, texture_name="skin.png") -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0], image[1, 1] = (255, 0, 0), (0, 0, 255)  # top left red, bottom right blue
    Image.fromarray(image).save(folder / "skin.png")
    (folder / "a.mtl").write_text(f"newmtl m\nKd 0 0 0\nmap_Kd {texture_name}\n")
    (folder / "a.obj").write_text(
        "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0.25 0.75\nvt 0.75 0.25\nvt 0.25 0.25\n"
        "usemtl m\nf 1/1 2/2 3/3\n"
    )


def test_obj_texture_is_found_and_upright(tmp_path):
    write_textured_obj(tmp_path)
    mesh = load_mesh(tmp_path / "a.obj")
    color, _ = base_color(mesh, np.zeros(3, np.int64), np.eye(3))
    by_position = {tuple(np.rint(p)): c.tolist() for p, c in zip(mesh.triangles[0], color, strict=True)}
    assert by_position[(0, 0, 0)] == pytest.approx([1, 0, 0])
    assert by_position[(1, 0, 0)] == pytest.approx([0, 0, 1])


def test_missing_texture_is_a_warning(tmp_path):
    write_textured_obj(tmp_path, "lost.png")
    assert load_mesh(tmp_path / "a.obj").warnings == ["missing file lost.png"]


@pytest.mark.parametrize("place", ["/home/artist/{}", "C:\\\\art\\{}", "file:///art/{}"])
def test_place_on_the_authors_disk_is_looked_up_beside_the_asset(tmp_path, place):
    write_textured_obj(tmp_path, place.format("skin.png"))
    assert len(load_mesh(tmp_path / "a.obj").textures) == 1
    write_textured_obj(tmp_path, place.format("hostname"))
    mesh = load_mesh(tmp_path / "a.obj")
    assert (mesh.textures, len(mesh.warnings)) == ([], 1)


@pytest.mark.parametrize("name", ["../secret.bin", "%2e%2e/secret.bin"])
def test_gltf_buffers_outside_the_folder_are_refused(tmp_path, name):
    (tmp_path / "secret.bin").write_bytes(bytes(36))
    (tmp_path / "asset").mkdir()
    tree = tree_of([{}]) | {"buffers": [{"byteLength": 36, "uri": name}]}
    (tmp_path / "asset/a.gltf").write_text(json.dumps(tree))
    with pytest.raises(AssetError, match="outside the assets folder"):
        load_mesh(tmp_path / "asset/a.gltf")


def bad_files() -> dict[str, tuple[bytes, str]]:
    glb = struct.pack("<5I", 0x46546C67, 2, 20, 0, 0x4E4F534A)
    nan = b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    required = json.dumps(tree_of([{}], extensionsRequired=["EXT_holograms"])).encode()
    old = json.dumps({"asset": {"version": "1.0"}}).encode()
    return {
        "empty.glb": (b"", "unreadable"),
        "cut.glb": (glb[:15], "unreadable"),
        "no_json.glb": (glb, "unreadable"),
        "text.glb": (b"this is no model" * 10, "unreadable"),
        "noise.ply": (bytes(range(256)) * 4, "unreadable"),
        "noise.stl": (bytes(range(100)), "unreadable"),
        "empty.obj": (b"# nothing\n", "empty"),
        "points.obj": (b"v 0 0 0\nv 1 1 1\n", "empty"),
        "one_place.obj": (b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "empty"),
        "line.obj": (b"v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "empty"),
        "nan.obj": (nan, "not_finite"),
        "index.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "unreadable"),
        "holograms.gltf": (required, "unsupported"),
        "old.gltf": (old, "unsupported"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_file_is_an_asset_error_with_its_reason(tmp_path, name):
    data, reason = bad_files()[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AssetError) as caught:
        load_mesh(tmp_path / name)
    assert caught.value.reason == reason, caught.value.message


def test_damaged_draco_is_a_failure_and_not_an_empty_asset(tmp_path):
    trimesh.creation.icosphere().export(tmp_path / "a.glb", extension_draco=True)
    data = bytearray((tmp_path / "a.glb").read_bytes())
    data[-40:] = bytes(40)
    size = struct.unpack("<I", data[12:16])[0]
    data[28 + size : 60 + size] = bytes(32)
    (tmp_path / "a.glb").write_bytes(data)
    with pytest.raises(AssetError):
        load_mesh(tmp_path / "a.glb")


def test_draco_file_is_read(tmp_path):
    trimesh.creation.icosphere().export(tmp_path / "a.glb", extension_draco=True)
    np.testing.assert_allclose(extents(load_mesh(tmp_path / "a.glb")), 2, atol=0.01)  # Draco's quantisation


def test_limits_on_faces_and_bytes(tmp_path, make_box):
    file = make_box(tmp_path / "a.glb")
    for limits in ({"max_faces": 11}, {"max_bytes": 100}):
        with pytest.raises(AssetError) as caught:
            load_mesh(file, **limits)
        assert caught.value.reason == "too_large"


def test_large_textures_are_shrunk(tmp_path):
    write_textured_obj(tmp_path)
    Image.new("RGB", (64, 16), (10, 20, 30)).save(tmp_path / "skin.png")
    texture = load_mesh(tmp_path / "a.obj", max_texture=32).textures[0]
    assert texture.shape == (8, 32, 4)
    assert (texture == [10, 20, 30, 255]).all()
