"""STL as writers really have it: both forms, their counts and trailers, both conventions of colour."""

import numpy as np
import pytest

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from shapeloom.color import linear_to_srgb

BOX = (12, 22.0, [1, 2, 3])


def binary(box, *, header=b"", count=12, attributes=None, trailer=b"") -> bytes:
    rows = np.zeros(12, [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    rows["corners"] = box.vertices[box.faces]
    rows["attribute"] = 0 if attributes is None else attributes
    return header.ljust(80, b" ") + np.uint32(count).tobytes() + rows.tobytes() + trailer


def text(box, *, name="box", end="endsolid box\n") -> bytes:
    facets = []
    for corners in box.vertices[box.faces]:
        lines = "".join(
            "   vertex " + " ".join(f"{value:e}" for value in corner) + "\n" for corner in corners
        )
        facets.append(f" facet normal 0 0 0\n  outer loop\n{lines}  endloop\n endfacet\n")
    return (f"solid {name}\n" + "".join(facets) + end).encode()


def load(folder, data: bytes):
    (folder / "a.stl").write_bytes(data)
    return load_mesh(folder / "a.stl")


@pytest.mark.parametrize("trailer", [b"", b"\0", b"goodbye"])
@pytest.mark.parametrize("header", [b"binary", b"solid binary"])
def test_binary_with_any_header_and_trailer(tmp_path, sided_box, summary, header, trailer):
    mesh = load(tmp_path, binary(sided_box, header=header, trailer=trailer))
    assert summary(mesh) == (*BOX, 1)
    assert mesh.warnings == []


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_that_is_too_low_is_corrected_with_a_warning(tmp_path, sided_box, summary, count):
    mesh = load(tmp_path, binary(sided_box, count=count))
    assert summary(mesh)[:3] == BOX
    assert mesh.warnings == [f"claims {count} faces and holds 12: those were read"]


def test_a_count_that_is_too_high_is_a_file_cut_short(tmp_path, sided_box):
    with pytest.raises(AssetError, match="claims 13 triangles"):
        load(tmp_path, binary(sided_box, count=13))


@pytest.mark.parametrize("change", [
    lambda data: b"\xef\xbb\xbf" + data, lambda data: b"\n\n " + data, lambda data: data + b"\n\n",
    lambda data: data.replace(b"solid", b"SOLID").replace(b"vertex", b"VERTEX"),
    lambda data: data.replace(b"\n", b"\r"), lambda data: data.replace(b"\n", b" "),
])  # fmt: skip
@pytest.mark.parametrize(
    "form", [{}, {"end": ""}, {"end": "endsolid box\n\n"}, {"name": "Vertex normal part"}]
)
def test_text_as_it_is_found(tmp_path, sided_box, summary, form, change):
    mesh = load(tmp_path, change(text(sided_box, **form)))
    assert summary(mesh) == (*BOX, 1)
    assert mesh.warnings == []


def test_facets_of_four_corners_are_two_faces_and_of_two_are_none(tmp_path, sided_box, summary):
    box = sided_box
    box.faces = box.quads
    data = text(box)
    assert summary(load(tmp_path, data))[:3] == BOX
    mesh = load(
        tmp_path, data.replace(b"endsolid", b"facet normal 0 0 1\nvertex 0 0 0\nvertex 1 1 1\nendfacet\nend")
    )
    assert mesh.warnings == ["left out 1 of 7 faces: they have fewer than three corners"]


def five_bits(colors: np.ndarray, *, red_lowest: bool) -> np.ndarray:
    channels = (colors[:, :: 1 if red_lowest else -1] >> 3).astype(np.uint16)
    return channels[:, 0] | channels[:, 1] << 5 | channels[:, 2] << 10


def test_colours_of_viscam_have_bit_15_and_blue_lowest(tmp_path, sided_box, summary):
    attributes = five_bits(sided_box.face_colors, red_lowest=False) | 1 << 15
    mesh = load(tmp_path, binary(sided_box, attributes=attributes))
    assert summary(mesh) == (*BOX, 6)
    np.testing.assert_allclose(mesh.tint[0, 0], sided_box.face_colors[0] / 255)
    attributes[0] = 0  # a face without a colour is grey, and numbers without the bit are no colours
    mesh = load(tmp_path, binary(sided_box, attributes=attributes))
    assert linear_to_srgb(mesh.tint[0, 0]) == pytest.approx([0.8] * 3)
    assert summary(load(tmp_path, binary(sided_box, attributes=attributes & 0x7FFF)))[3] == 1


def test_colours_of_magics_lack_bit_15_and_have_red_lowest(tmp_path, sided_box, summary):
    header = b"COLOR=\x0a\x14\x1e\xff,MATERIAL="
    attributes = five_bits(sided_box.face_colors, red_lowest=True)
    mesh = load(tmp_path, binary(sided_box, header=header, attributes=attributes))
    assert summary(mesh) == (*BOX, 6)
    np.testing.assert_allclose(mesh.tint[0, 0], sided_box.face_colors[0] / 255)
    attributes[0] |= 1 << 15  # this one is of the whole's colour, and so are all if nobody filled them in
    for given in (attributes, None):
        mesh = load(tmp_path, binary(sided_box, header=header, attributes=given))
        assert linear_to_srgb(mesh.tint[0, 0]) * 255 == pytest.approx([10, 20, 30])
