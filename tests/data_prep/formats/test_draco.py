"""Draco against plain: every attribute in every type comes out as its accessor says."""

import json

import DracoPy
import numpy as np
import pytest

from data_prep.formats.files import Files
from data_prep.formats.gltf import open_gltf
from data_prep.formats.gltf_primitives import Columns

_COMPONENTS = {"u1": 5121, "u2": 5123, "u4": 5125, "f4": 5126}
_TYPES = {2: "VEC2", 3: "VEC3", 4: "VEC4"}
ATTRIBUTES = [
    *(("COLOR_0", width, kind, kind != "f4") for width in (3, 4) for kind in ("u1", "u2", "f4")),
    *(("TEXCOORD_0", 2, kind, kind != "f4") for kind in ("u1", "u2", "f4")),
    *(("WEIGHTS_0", 4, kind, kind != "f4") for kind in ("u1", "u2", "f4")),
    *(("JOINTS_0", 4, kind, False) for kind in ("u1", "u2")),
    ("NORMAL", 3, "f4", False), ("_ID", 2, "u4", False), ("_RAW", 3, "u2", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "width", "kind", "normalized"), ATTRIBUTES)
def test_packed_attributes_equal_plain_ones(tmp_path, name, width, kind, normalized):
    random = np.random.default_rng(0)
    points = random.random((4, 3), np.float32)
    if kind == "f4":
        rows = random.random((4, width), np.float32)
    else:
        top = np.iinfo(kind).max if kind != "u4" else 1 << 20  # it can't encode 0 beside 2^31 - 1
        rows = random.integers(0, top, (4, width), kind, endpoint=True)
        rows[0], rows[1] = 0, top
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
    packed = DracoPy.encode(points, faces, preserve_order=True, generic_attributes={7: rows})
    (place,) = [a["unique_id"] for a in DracoPy.decode(packed).attributes if a["attribute_type"] == 0]
    views = [points.tobytes(), rows.tobytes(), packed]
    (tmp_path / "a.bin").write_bytes(b"".join(view.ljust(-(-len(view) // 4) * 4, b"\0") for view in views))
    starts = np.cumsum([0, *(-(-len(view) // 4) * 4 for view in views)]).tolist()
    plain = {"attributes": {"POSITION": 0, name: 1}}
    draco = {"bufferView": 2, "attributes": {"POSITION": place, name: 7}}
    accessor = {"bufferView": 1, "componentType": _COMPONENTS[kind], "count": 4, "type": _TYPES[width]}
    tree = {
        "asset": {"version": "2.0"}, "buffers": [{"uri": "a.bin", "byteLength": starts[-1]}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": at, "byteLength": len(view)}
            for at, view in zip(starts, views, strict=False)
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            accessor | {"normalized": normalized},
        ],
    }  # fmt: skip
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    gltf = open_gltf(Files(tmp_path / "a.gltf", 1 << 20), [], max_items=100)
    bare = Columns(gltf, plain).get(name)
    found = Columns(gltf, plain | {"extensions": {"KHR_draco_mesh_compression": draco}})
    assert found.get(name).dtype == bare.dtype
    np.testing.assert_array_equal(found.get(name), bare)
    np.testing.assert_array_equal(found.faces, faces)
    np.testing.assert_allclose(found.get("POSITION"), points, atol=1e-4)  # 14 bits
