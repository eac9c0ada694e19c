"""What the glTF standard says of accessors, primitives, nodes, skins and materials, in closed form."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import DracoPy
import meshopt
import numpy as np
import pytest
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from data_prep.mesh import BLEND, Mesh, Sampler, base_color

SQUARE = np.float32([[0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 2, 0]])
UV = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])
KTX2 = (
    "q0tUWCAyMLsNChoKAAAAAAEAAAAEAAAABAAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAaAAAACwAAACUAAAALAAAAAAAAAAAAAAAAAAAAAAAAADAAAAA"
    "AAAAABAAAAAAAAAAEAAAAAAAAAAsAAAAAAAAAAIAKACmAQIAAwMAABAAAAAAAAAAAAB/AAAAAAAAAAAA/////x8AAABLVFh3cml0ZXIAQmFzaXMg"
    "VW5pdmVyc2FsIDIuMTAAAAQAAAB/fwAA+xYLABAAACAAAAAA/////w=="
)
"""4 x 4 texels in UASTC: red above blue."""
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
_COMPONENTS = {"f4": 5126, "u1": 5121, "i1": 5120, "u2": 5123, "i2": 5122, "u4": 5125}


class Builder:
    """A glTF with one mesh of one primitive, put together by hand."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
            "accessors": [], "bufferViews": [], "buffers": [],
        }  # fmt: skip
        self.primitive: dict[str, Any] = {"attributes": {}}
        self.tree["meshes"] = [{"primitives": [self.primitive]}]

    def view(self, data: bytes, **more: Any) -> int:
        uri = "data:;base64," + base64.b64encode(data).decode()
        self.tree["buffers"].append({"byteLength": len(data), "uri": uri})
        self.tree["bufferViews"].append(
            {"buffer": len(self.tree["buffers"]) - 1, "byteLength": len(data), **more}
        )
        return len(self.tree["bufferViews"]) - 1

    def rows(self, rows: np.ndarray, **more: Any) -> int:
        rows = np.atleast_2d(rows) if rows.ndim > 1 else rows.reshape(-1, 1)
        accessor = {
            "componentType": _COMPONENTS[rows.dtype.str[1:]],
            "count": len(rows),
            "type": _TYPES[rows.shape[1]],
        }
        self.tree["accessors"].append(accessor | {"bufferView": self.view(rows.tobytes())} | more)
        return len(self.tree["accessors"]) - 1

    def square(self) -> "Builder":
        self.primitive["attributes"] = {"POSITION": self.rows(SQUARE), "TEXCOORD_0": self.rows(UV)}
        self.primitive["indices"] = self.rows(np.array([0, 1, 2, 0, 2, 3], np.uint16))
        return self

    def picture(self, pixels: np.ndarray, kind: str = "PNG") -> "Builder":
        buffer = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(pixels).save(buffer, kind, **options)
        self.tree["images"] = [{"bufferView": self.view(buffer.getvalue())}]
        self.tree["textures"] = [{"source": 0}]
        return self.material({"baseColorTexture": {"index": 0}})

    def material(self, base: dict[str, Any], **more: Any) -> "Builder":
        self.tree["materials"] = [{"pbrMetallicRoughness": base, **more}]
        self.primitive["material"] = 0
        return self

    def load(self, folder: Path) -> Mesh:
        (folder / "a.gltf").write_text(json.dumps(self.tree))
        return load_mesh(folder / "a.gltf", up="z")


@pytest.fixture
def square() -> Builder:
    return Builder().square()


def color_at(mesh: Mesh, corner: int) -> list[float]:
    """Colour and alpha just inside the first face's corner."""
    weights = np.full((1, 3), 0.05)
    weights[0, corner] = 0.9
    color, alpha = base_color(mesh, np.array([0]), weights)
    return [*np.round(color[0], 3).tolist(), round(float(alpha[0]), 3)]


def test_integer_accessors_are_normalised_where_they_say_so(tmp_path):
    builder = Builder()
    positions = np.array([[0, 0, 0], [127, 0, 0], [0, -127, 0]], np.int8)
    builder.primitive["attributes"] = {"POSITION": builder.rows(positions, normalized=True)}
    np.testing.assert_allclose(builder.load(tmp_path).triangles[0], positions / 127, atol=1e-6)
    builder.tree["accessors"][0]["normalized"] = False
    np.testing.assert_allclose(builder.load(tmp_path).triangles[0], positions)


def test_sparse_accessor_replaces_rows(tmp_path, square):
    indices, values = (
        square.view(np.array([2], np.uint8).tobytes()),
        square.view(np.float32([5, 6, 7]).tobytes()),
    )
    square.tree["accessors"][0]["sparse"] = {
        "count": 1, "indices": {"bufferView": indices, "componentType": 5121},
        "values": {"bufferView": values},
    }  # fmt: skip
    assert square.load(tmp_path).vertices[2].tolist() == [5, 6, 7]


def test_interleaved_attributes_are_read_by_their_stride(tmp_path):
    builder = Builder()
    both = np.concatenate([SQUARE[:3], SQUARE[:3] + 10], axis=1)
    view = builder.view(both.tobytes(), byteStride=24)
    for offset in (0, 12):
        builder.tree["accessors"].append(
            {"bufferView": view, "byteOffset": offset, "componentType": 5126, "count": 3, "type": "VEC3"}
        )
    builder.primitive["attributes"] = {"POSITION": 1}
    np.testing.assert_array_equal(builder.load(tmp_path).vertices, SQUARE[:3] + 10)


@pytest.mark.parametrize(("mode", "order"), [(4, [0, 1, 2, 0, 2, 3]), (5, [1, 2, 0, 3]), (6, [0, 1, 2, 3])])
def test_lists_strips_and_fans_give_the_same_square_facing_the_same_way(tmp_path, square, mode, order):
    square.primitive |= {"mode": mode, "indices": square.rows(np.array(order, np.uint8))}
    triangles = square.load(tmp_path).triangles
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    np.testing.assert_allclose(normals, [[0, 0, 2]] * 2)


def test_points_and_lines_are_no_surface(tmp_path, square):
    square.primitive["mode"] = 1
    with pytest.raises(AssetError, match="no triangles"):
        square.load(tmp_path)


def test_instancing_is_expanded(tmp_path, square):
    where = square.rows(np.float32([[0, 0, 0], [10, 0, 0], [0, 10, 0]]))
    turn = square.rows(np.float32([[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]))
    attributes = {"TRANSLATION": where, "ROTATION": turn}
    square.tree["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    square.tree["nodes"][0]["translation"] = [0, 0, 3]
    mesh = square.load(tmp_path)
    assert len(mesh.faces) == 6
    np.testing.assert_allclose(mesh.triangles[2], SQUARE[[0, 1, 2]] * [-1, -1, 1] + [10, 0, 3], atol=1e-6)


def test_node_transforms_multiply_from_the_root(tmp_path, square):
    half = math.sqrt(0.5)
    square.tree["nodes"] = [
        {"translation": [1, 2, 3], "rotation": [0, 0, half, half], "children": [1]},
        {"mesh": 0, "scale": [2, 2, 2]},
    ]
    np.testing.assert_allclose(square.load(tmp_path).vertices[1], [1, 4, 3], atol=1e-6)


@pytest.mark.parametrize("nodes", [
    [{"mesh": 0, "children": [0]}], [{"children": [1, 1]}, {"mesh": 0}],
    [{"children": [1]}, {"children": [0]}],
])  # fmt: skip
def test_nodes_that_form_no_tree_are_an_error(tmp_path, square, nodes):
    square.tree["nodes"] = nodes
    with pytest.raises(AssetError, match="reached twice"):
        square.load(tmp_path)


def test_skinned_mesh_follows_its_joints_and_not_its_node(tmp_path, square):
    attributes = square.primitive["attributes"]
    attributes["JOINTS_0"] = square.rows(np.array([[0, 1, 0, 0]] * 4, np.uint8))
    attributes["WEIGHTS_0"] = square.rows(np.float32([[0.5, 0.5, 0, 0]] * 4))
    square.tree["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [99, 0, 0]}, {"translation": [2, 0, 0]},
        {"translation": [0, 4, 0]},
    ]  # fmt: skip
    square.tree["scenes"][0]["nodes"] = [0, 1, 2]
    square.tree["skins"] = [{"joints": [1, 2]}]
    np.testing.assert_allclose(square.load(tmp_path).vertices, SQUARE + np.array([1, 2, 0]), atol=1e-6)


def test_morph_targets_count_by_their_weights(tmp_path, square):
    square.primitive["targets"] = [{"POSITION": square.rows(np.float32([[0, 0, 8]] * 4))}]
    square.tree["meshes"][0]["weights"] = [0.25]
    np.testing.assert_allclose(square.load(tmp_path).vertices, SQUARE + np.array([0, 0, 2]))


def test_texture_is_upright_and_its_sampler_and_transform_hold(tmp_path, square):
    corners = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]])  # red at the top left
    square.picture(corners)
    square.tree["samplers"] = [{"magFilter": 9728, "wrapS": 33071, "wrapT": 33648}]
    square.tree["textures"][0]["sampler"] = 0
    mesh = square.load(tmp_path)
    assert mesh.samplers == [Sampler("clamp", "mirror", nearest=True)]
    assert [color_at(mesh, c) for c in range(3)] == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1]]
    reference = square.tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    reference["extensions"] = {"KHR_texture_transform": {"offset": [0.5, 0], "scale": [0.5, 1]}}
    assert color_at(square.load(tmp_path), 0) == [1, 1, 1, 1]
    # A quarter turn about the texture's top left takes (1, 0) to (0, -1): with `offset` [0, 1] to (0, 0).
    reference["extensions"] = {"KHR_texture_transform": {"rotation": math.pi / 2, "offset": [0, 1]}}
    np.testing.assert_allclose(square.load(tmp_path).uv[0, 2], [0, 1], atol=1e-6)


@pytest.mark.parametrize(("channel", "expected"), [(0, [0, 0, 1, 1]), (1, [1, 0, 0, 1])])
def test_texture_uses_its_own_coordinates(tmp_path, square, channel, expected):
    square.picture(np.uint8([[[255, 0, 0]], [[0, 0, 255]]]))
    square.tree["samplers"], square.tree["textures"][0]["sampler"] = [{"magFilter": 9728}], 0
    square.primitive["attributes"]["TEXCOORD_1"] = square.rows(np.float32([[0, 0.25]] * 4))
    square.tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["texCoord"] = channel
    assert color_at(square.load(tmp_path), 0) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("kind", ["WEBP", "KTX2"])
def test_compressed_pictures_come_before_the_plain_one(tmp_path, square, kind):
    red_blue = np.uint8([[[255, 0, 0]] * 4] * 2 + [[[0, 0, 255]] * 4] * 2)
    square.picture(red_blue, "WEBP")
    if kind == "KTX2":
        square.tree["images"] = [{"bufferView": square.view(base64.b64decode(KTX2))}]
    name = {"WEBP": "EXT_texture_webp", "KTX2": "KHR_texture_basisu"}[kind]
    square.tree["images"].append({"uri": "lost.png"})
    square.tree["textures"] = [{"source": 1, "extensions": {name: {"source": 0}}}]
    square.tree["extensionsRequired"] = [name]
    mesh = square.load(tmp_path)
    np.testing.assert_array_equal(mesh.textures[0][..., :3], red_blue)
    assert mesh.warnings == []


def test_alpha_modes(tmp_path, square):
    square.primitive["attributes"]["COLOR_0"] = square.rows(np.float32([[1, 1, 1, 0.5]] * 4))
    expected = {"OPAQUE": 1.0, "BLEND": 0.4, "MASK": 0.0}
    for mode, alpha in expected.items():
        square.material({"baseColorFactor": [1, 0.5, 0.25, 0.8]}, alphaMode=mode)
        mesh = square.load(tmp_path)
        assert color_at(mesh, 0) == [1, 0.5, 0.25, alpha]
        assert mesh.cutoff.any() == (mode != "OPAQUE")
    square.material({"baseColorFactor": [1, 0.5, 0.25, 0.8]}, alphaMode="MASK", alphaCutoff=0.3)
    assert color_at(square.load(tmp_path), 0)[3] == 1


def test_blended_material_that_covers_everything_is_opaque(tmp_path, square):
    square.picture(np.full((2, 2, 4), 255, np.uint8)).tree["materials"][0]["alphaMode"] = "BLEND"
    assert not square.load(tmp_path).cutoff.any()
    square.tree["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = [1, 1, 1, 0.5]
    assert square.load(tmp_path).cutoff.tolist() == [BLEND, BLEND]


def test_unlit_materials_are_marked(tmp_path, square):
    assert square.load(tmp_path).unlit is None
    square.material({}, extensions={"KHR_materials_unlit": {}})
    assert square.load(tmp_path).unlit.all()


def test_meshopt_buffers_are_unpacked(tmp_path, square):
    plain = square.load(tmp_path)
    for index, (rows, mode) in enumerate(
        [(SQUARE, "ATTRIBUTES"), (UV, "ATTRIBUTES"), (np.array([0, 1, 2, 0, 2, 3], np.uint16), "TRIANGLES")]
    ):
        data = meshopt.encode_gltf_buffer(rows, mode)
        packed = square.tree["bufferViews"][square.view(data)] | {
            "byteStride": rows.nbytes // len(rows), "count": len(rows), "mode": mode,
        }  # fmt: skip
        square.tree["bufferViews"][index] = {
            "buffer": 99, "byteLength": rows.nbytes, "extensions": {"EXT_meshopt_compression": packed},
        }  # fmt: skip
    square.tree["extensionsRequired"] = ["EXT_meshopt_compression"]
    np.testing.assert_allclose(square.load(tmp_path).triangles, plain.triangles)


def test_draco_keeps_texture_coordinates_and_drops_nothing(tmp_path, square):
    plain = square.load(tmp_path)
    data = DracoPy.encode(
        SQUARE, np.uint32([[0, 1, 2], [0, 2, 3]]), tex_coord=UV.astype(float), quantization_bits=20
    )
    width = {a["unique_id"]: a["num_components"] for a in DracoPy.decode(data).attributes}
    ids = {
        "POSITION": next(i for i in width if width[i] == 3),
        "TEXCOORD_0": next(i for i in width if width[i] == 2),
    }
    packed = {"bufferView": square.view(data), "attributes": ids}
    square.primitive["extensions"] = {"KHR_draco_mesh_compression": packed}
    mesh = square.picture(np.zeros((2, 2, 3), np.uint8)).load(tmp_path)
    assert len(mesh.faces) == 2
    assert sorted(map(tuple, np.rint(mesh.triangles.reshape(-1, 3)))) == sorted(
        map(tuple, plain.triangles.reshape(-1, 3))
    )
    np.testing.assert_allclose(
        mesh.uv.reshape(-1, 2) * [1, 2], mesh.triangles.reshape(-1, 3)[:, :2], atol=1e-3
    )


def test_same_file_gives_the_same_order_of_primitives_each_time(tmp_path, square):
    square.tree["meshes"][0]["primitives"] *= 5
    square.tree["meshes"][0]["primitives"][3] = {
        "attributes": {"POSITION": square.rows(SQUARE + 5)},
        "mode": 6,
    }
    first, second = square.load(tmp_path), square.load(tmp_path)
    np.testing.assert_array_equal(first.triangles, second.triangles)
    assert first.triangles[6].max() == 7
