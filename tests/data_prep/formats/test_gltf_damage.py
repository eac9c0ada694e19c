"""glTF that is damaged, old or odd costs its part and a warning; looks that files don't call base colour."""

import base64
import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.gltf_materials import metal_base_color
from data_prep.formats.load import load_mesh
from data_prep.mesh import Mesh, base_color

GREEN = (0, 128, 0)
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
_COMPONENTS = {"f4": 5126, "u1": 5121, "u2": 5123}


def png(color=GREEN, kind="PNG", size=8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, kind)
    return buffer.getvalue()


class Box:
    """The sided box as glTF, its texture coordinates all in the middle of a green picture."""

    def __init__(self, box) -> None:
        self.data = bytearray()
        self.tree: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
            "accessors": [], "bufferViews": [],
        }  # fmt: skip
        self.primitive: dict[str, Any] = {
            "attributes": {
                "POSITION": self.rows(box.vertices.astype("f4")),
                "TEXCOORD_0": self.rows(np.full((24, 2), 0.5, "f4")),
            },
            "indices": self.rows(box.faces.reshape(-1, 1).astype("u2")),
            "material": 0,
        }
        self.tree["meshes"] = [{"primitives": [self.primitive]}]
        self.tree["images"] = [{"bufferView": self.view(png()), "mimeType": "image/png"}]
        self.tree["textures"] = [{"source": 0}]
        self.tree["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]

    def view(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) % 4)
        self.tree["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)})
        self.data += data
        return len(self.tree["bufferViews"]) - 1

    def rows(self, rows: np.ndarray, **more: Any) -> int:
        self.tree["accessors"].append(
            {
                "bufferView": self.view(rows.tobytes()), "componentType": _COMPONENTS[rows.dtype.str[1:]],
                "count": len(rows), "type": _TYPES[rows.shape[1]], **more,
            }
        )  # fmt: skip
        if rows.shape[1] == 3:
            self.tree["accessors"][-1] |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        return len(self.tree["accessors"]) - 1

    def load(self, folder, *, pad: bytes = b" ", version: int = 2) -> Mesh:
        tree = self.tree | {"buffers": [{"byteLength": len(self.data)}]}
        text = json.dumps(tree).encode()
        text += pad * (-len(text) % 4 + 4)
        data = bytes(self.data) + bytes(-len(self.data) % 4)
        chunks = (
            struct.pack("<2I", len(text), 0x4E4F534A) + text + struct.pack("<2I", len(data), 0x4E4942) + data
        )
        head = struct.pack("<3I", 0x46546C67, version, 12 + len(chunks))
        (folder / "a.glb").write_bytes(head + chunks)
        return load_mesh(folder / "a.glb", up="z")


@pytest.fixture
def gltf(sided_box) -> Box:
    return Box(sided_box)


def shown(mesh: Mesh) -> list[float]:
    """Linear colour of the middle of the first face."""
    color, _ = base_color(mesh, np.array([0]), np.full((1, 3), 1 / 3))
    return color[0].astype(float).round(3).tolist()


GREEN_SEEN, WHITE = [0, 0.216, 0], [1, 1, 1]


def short_uri() -> str:
    """Without its padding."""
    text = base64.b64encode(png() + b"\0" * (1 - len(png()) % 3)).decode()
    return "data:image/png;base64," + text.rstrip("=")


DAMAGE = {
    "texture index": (
        lambda t: t["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"].update(index=4),
        WHITE,
    ),
    "no source": (lambda t: t.update(textures=[{"extensions": {"EXT_texture_astc": {"source": 0}}}]), WHITE),
    "empty texture": (lambda t: t.update(textures=[{}]), WHITE),
    "sampler index": (lambda t: t["textures"][0].update(sampler=3), GREEN_SEEN),
    "image index": (lambda t: t["textures"][0].update(source=7), WHITE),
    "image view": (lambda t: t["bufferViews"][3].update(byteLength=10**6), WHITE),
    "image buffer": (lambda t: t["bufferViews"][3].update(buffer=9), WHITE),
    "image file": (lambda t: t.update(images=[{"uri": "lost.png"}]), WHITE),
    "image data": (lambda t: t.update(images=[{"uri": "data:image/png;base64,A"}]), WHITE),
    "image nothing": (lambda t: t.update(images=[{}]), WHITE),
    "material index": (lambda t: t["meshes"][0]["primitives"][0].update(material=8), WHITE),
    "material factor": (
        lambda t: t.update(materials=[{"pbrMetallicRoughness": {"baseColorFactor": [1]}}]),
        WHITE,
    ),
    "material is no object": (lambda t: t.update(materials=["paint"]), WHITE),
    "uv beyond": (lambda t: t["accessors"][1].update(count=10**4), WHITE),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_costs_itself_and_a_warning(tmp_path, gltf, summary, name):
    damage, expected = DAMAGE[name]
    damage(gltf.tree)
    mesh = gltf.load(tmp_path)
    assert summary(mesh)[:3] == (12, 22.0, [1, 2, 3])
    assert shown(mesh) == pytest.approx(expected, abs=1e-3)
    assert len(mesh.warnings) == 1, mesh.warnings


@pytest.mark.parametrize("uri", [
    short_uri(), "data:image/png;base64," + base64.urlsafe_b64encode(png()).decode(),
    "data:image/png," + "".join(f"%{byte:02x}" for byte in png()),
])  # fmt: skip
def test_data_uris_as_they_are_found(tmp_path, gltf, uri):
    gltf.tree["images"] = [{"uri": uri}]
    mesh = gltf.load(tmp_path)
    assert shown(mesh) == GREEN_SEEN
    assert mesh.warnings == []


def test_the_plain_picture_stands_in_for_a_broken_compressed_one(tmp_path, gltf):
    gltf.tree["images"].append({"bufferView": gltf.view(b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(80))})
    gltf.tree["textures"] = [{"source": 0, "extensions": {"KHR_texture_basisu": {"source": 1}}}]
    mesh = gltf.load(tmp_path)
    assert shown(mesh) == GREEN_SEEN
    assert mesh.warnings[0].startswith("unreadable texture 1")


def test_avif_is_read(tmp_path, gltf):
    gltf.tree["images"] = [{"bufferView": gltf.view(png(kind="AVIF"))}]
    gltf.tree["textures"] = [{"extensions": {"EXT_texture_avif": {"source": 0}}}]
    gltf.tree["extensionsRequired"] = ["EXT_texture_avif"]
    mesh = gltf.load(tmp_path)
    assert shown(mesh) == pytest.approx(GREEN_SEEN, abs=0.02)
    assert mesh.warnings == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_keeps_its_rows(tmp_path, gltf, kind):
    noise = np.random.default_rng(0).integers(100, 156, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    whole = np.asarray(Image.open(buffer).convert("RGB"))
    gltf.tree["images"] = [{"bufferView": gltf.view(buffer.getvalue()[: int(0.8 * buffer.tell())])}]
    mesh = gltf.load(tmp_path)
    np.testing.assert_array_equal(mesh.textures[0][:24, :, :3], whole[:24])
    assert "last rows may be missing" in mesh.warnings[0]


def test_json_padded_with_zeros_is_read(tmp_path, gltf):
    assert gltf.load(tmp_path, pad=b"\0").warnings == []


def test_binary_gltf_of_version_1_is_called_so(tmp_path, gltf):
    with pytest.raises(AssetError, match="version 1; version 2") as caught:
        gltf.load(tmp_path, version=1)
    assert caught.value.reason == "unsupported"


def test_black_that_glows_is_seen_as_it_glows_and_other_colours_as_they_are(tmp_path, gltf):
    material = gltf.tree["materials"][0]
    material |= {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]}, "emissiveFactor": [1, 0.5, 0]}
    gltf.primitive["attributes"]["COLOR_0"] = gltf.rows(np.zeros((24, 3), "f4"))
    mesh = gltf.load(tmp_path)
    assert shown(mesh) == [1, 0.5, 0]
    assert mesh.unlit.all()
    material |= {"emissiveFactor": [1, 1, 1], "emissiveTexture": {"index": 0}}
    assert shown(gltf.load(tmp_path)) == GREEN_SEEN
    del gltf.primitive["attributes"]["COLOR_0"]
    material |= {"pbrMetallicRoughness": {"baseColorFactor": [0.5, 0, 0, 1]}}
    assert shown(gltf.load(tmp_path)) == [0.5, 0, 0]


def specular(gltf: Box, **old: Any) -> None:
    gltf.tree["materials"] = [{"extensions": {"KHR_materials_pbrSpecularGlossiness": old}}]


def test_metals_of_specular_glossiness_keep_their_colour(tmp_path, gltf):
    gold = [1, 0.77, 0.34]
    specular(gltf, diffuseFactor=[0, 0, 0, 1], specularFactor=gold)
    assert shown(gltf.load(tmp_path)) == pytest.approx(gold, abs=2e-3)
    gltf.tree["images"].append({"bufferView": gltf.view(png((255, 200, 0)))})
    gltf.tree["textures"].append({"source": 1})
    specular(gltf, diffuseFactor=[0, 0, 0, 1], specularGlossinessTexture={"index": 1})
    assert shown(gltf.load(tmp_path)) == pytest.approx([1, 0.578, 0], abs=0.01)
    specular(
        gltf, diffuseFactor=[0, 0, 0, 1], diffuseTexture={"index": 0}, specularGlossinessTexture={"index": 1}
    )
    assert shown(gltf.load(tmp_path)) == pytest.approx([1, 0.578, 0], abs=0.01)


@pytest.mark.parametrize("shine", [{}, {"specularFactor": [0.04, 0.04, 0.04]}, {"specularFactor": [0, 0, 0]}])
def test_what_is_no_metal_keeps_its_diffuse_colour(tmp_path, gltf, shine):
    specular(gltf, diffuseFactor=[0.5, 0.25, 0, 1], **shine)
    assert shown(gltf.load(tmp_path)) == [0.5, 0.25, 0]
    specular(gltf, diffuseTexture={"index": 0}, **shine)
    assert shown(gltf.load(tmp_path)) == GREEN_SEEN


def test_the_conversion_inverts_a_metals_reflection():
    metallic = np.array([1.0, 0.0])[:, None]
    base = np.array([[0.9, 0.6, 0.2], [0.3, 0.5, 0.1]])
    diffuse, shine = base * (1 - metallic), 0.04 + (base - 0.04) * metallic
    np.testing.assert_allclose(metal_base_color(diffuse, shine), base, atol=1e-6)


def skinned(gltf: Box, *, joint: int = 0, roots=(1, 2)) -> None:
    """All vertices on joint 0, which doubles the size; a second joint's index has no weight."""
    joints = np.tile(np.uint8([0, joint, 0, 0]), (24, 1))
    weights = np.tile(np.float32([1, 0, 0, 0]), (24, 1))
    gltf.primitive["attributes"] |= {"JOINTS_0": gltf.rows(joints), "WEIGHTS_0": gltf.rows(weights)}
    gltf.tree["nodes"] = [
        {"scale": [2, 2, 2]}, {"children": [0]}, {"mesh": 0, "skin": 0, "scale": [100, 100, 100]}
    ]  # fmt: skip
    gltf.tree["skins"] = [{"joints": [0]}]
    gltf.tree["scenes"] = [{"nodes": list(roots)}]


def test_a_joint_without_weight_may_be_any(tmp_path, gltf, summary):
    skinned(gltf, joint=7)
    assert summary(gltf.load(tmp_path))[2] == [2, 4, 6]


def test_joints_count_outside_the_scene_and_where_they_are_hidden(tmp_path, gltf, summary):
    skinned(gltf, roots=[2])
    assert summary(gltf.load(tmp_path))[2] == [2, 4, 6]
    gltf.tree["nodes"][1]["extensions"] = {"KHR_node_visibility": {"visible": False}}
    gltf.tree["scenes"] = [{"nodes": [1, 2]}]
    assert summary(gltf.load(tmp_path))[2] == [2, 4, 6]


def test_faces_with_vertices_that_are_not_there_cost_themselves(tmp_path, gltf, sided_box, summary):
    faces = np.concatenate([sided_box.faces.reshape(-1), [0, 1, 99], [5]]).astype("u2")
    gltf.primitive["indices"] = gltf.rows(faces[:, None])
    mesh = gltf.load(tmp_path)
    assert summary(mesh)[:3] == (12, 22.0, [1, 2, 3])
    assert mesh.warnings == [
        "left out 1 of 40 indices: they make no triangle",
        "left out 1 of 13 faces: they name vertices beyond the 24 that are there",
    ]


def test_what_is_no_surface_is_named(tmp_path, gltf):
    positions = gltf.primitive["attributes"]["POSITION"]
    gltf.tree["meshes"][0]["primitives"] += [
        {"mode": 1, "attributes": {"POSITION": positions}},
        {"attributes": {}},
    ]
    assert gltf.load(tmp_path).warnings == [
        "left out lines and points: they are no surface", "left out a primitive without positions"
    ]  # fmt: skip
