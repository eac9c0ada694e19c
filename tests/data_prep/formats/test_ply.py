"""PLY as writers really have it: headers, list lengths, strips, colours by any name, textures."""

import numpy as np
import pytest
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from data_prep.mesh import base_color

BOX = (12, 22.0, [1, 2, 3])
XYZ = "property float x\nproperty float y\nproperty float z\n"
FACES = "property list uchar int vertex_indices\n"


def text_ply(path, rows, faces, *, more="", face_more="", head="ply\nformat ascii 1.0\n"):
    """A text file; rows and faces are lists of numbers, faces with their lengths."""
    lines = [
        f"element vertex {len(rows)}\n{XYZ}{more}element face {len(faces)}\n{FACES}{face_more}end_header"
    ]
    lines += [" ".join(map(str, row)) for row in (*rows, *faces)]
    path.write_bytes((head + "\n".join(lines) + "\n").encode("latin-1"))
    return load_mesh(path)


def with_three(box):
    return [[3, *face] for face in box.faces.tolist()]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("polygons", ["quads", "mixed", "pentagons", "concave"])
def test_binary_faces_of_any_size(tmp_path, sided_box, prism, summary, polygons, order):
    vertices, expected = sided_box.vertices, (12, 22.0)
    match polygons:
        case "quads":
            faces = sided_box.quads.tolist()
        case "mixed":
            faces = [*sided_box.quads[:3].tolist(), *sided_box.faces[6:].tolist()]
        case "pentagons":
            turn = np.arange(5) * 2 * np.pi / 5
            rim = np.stack([np.cos(turn), np.sin(turn)], axis=1)
            vertices = np.concatenate([np.insert(rim, 2, z, axis=1) for z in (0, 1)])
            faces = [
                [4, 3, 2, 1, 0],
                [5, 6, 7, 8, 9],
                *([i, (i + 1) % 5, (i + 1) % 5 + 5, i + 5] for i in range(5)),
            ]
            expected = (16, 10.633)
        case "concave":
            (vertices, faces), expected = prism, (20, 22.0)
    kind = {"<": "little", ">": "big"}[order]
    head = f"ply\nformat binary_{kind}_endian 1.0\nelement vertex {len(vertices)}\n{XYZ}"
    head += f"element face {len(faces)}\nproperty uchar flags\n{FACES}property float quality\nend_header\n"
    body = vertices.astype(order + "f4").tobytes()
    for face in faces:
        body += (
            bytes([0, len(face)])
            + np.array(face, order + "i4").tobytes()
            + np.array(1, order + "f4").tobytes()
        )
    (tmp_path / "a.ply").write_bytes(head.encode() + body)
    mesh = load_mesh(tmp_path / "a.ply")
    assert summary(mesh)[:2] == expected
    assert mesh.warnings == []
    (tmp_path / "a.ply").write_bytes(head.encode() + body[:-6])
    count = len(faces)
    assert load_mesh(tmp_path / "a.ply").warnings == [f"left out 1 of {count} faces: the file is cut short"]
    (tmp_path / "a.ply").write_bytes(head.encode() + body[:70])
    with pytest.raises(AssetError, match="vertex elements aren't there"):
        load_mesh(tmp_path / "a.ply")


def test_triangle_strips_with_breaks(tmp_path, sided_box, summary):
    strip = np.concatenate([[*quad[[0, 1, 3, 2]], -1] for quad in sided_box.quads]).astype("<i4")
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 24\n{XYZ}"
    head += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    body = sided_box.vertices.astype("<f4").tobytes() + np.int32(len(strip)).tobytes() + strip.tobytes()
    (tmp_path / "a.ply").write_bytes(head.encode() + body)
    mesh = load_mesh(tmp_path / "a.ply")
    assert summary(mesh)[:3] == BOX
    t = mesh.triangles
    assert np.einsum("fi,fi->", t[:, 0], np.cross(t[:, 1], t[:, 2])) == pytest.approx(
        36
    )  # all turned outward


@pytest.mark.parametrize(("names", "kind", "scale"), [
    ("red green blue", "uchar", 1), ("r g b", "uchar", 1),
    ("diffuse_red diffuse_green diffuse_blue", "uchar", 1),
    ("red green blue", "float", 1 / 255), ("red green blue", "ushort", 257), ("red green blue", "int", 1),
])  # fmt: skip
@pytest.mark.parametrize("owner", ["vertex", "face"])
def test_colours_by_any_name_and_type(tmp_path, sided_box, summary, names, kind, scale, owner):
    more = "".join(f"property {kind} {name}\n" for name in names.split())
    number = float if kind == "float" else int
    colors = [[number(v * scale) for v in row] for row in getattr(sided_box, f"{owner}_colors").tolist()]
    rows, faces = sided_box.vertices.tolist(), with_three(sided_box)
    if owner == "vertex":
        rows = [[*row, *color] for row, color in zip(rows, colors, strict=True)]
        mesh = text_ply(tmp_path / "a.ply", rows, faces, more=more)
    else:
        faces = [[*face, *color] for face, color in zip(faces, colors, strict=True)]
        mesh = text_ply(tmp_path / "a.ply", rows, faces, face_more=more)
    assert summary(mesh) == (*BOX, 6)
    np.testing.assert_allclose(mesh.tint[0, 0], sided_box.colors[0] / 255, atol=1e-6)


@pytest.mark.parametrize("uv", ["corners", "vertices"])
@pytest.mark.parametrize(("comment", "warnings"), [("", 0), ("comment TextureFile lost.png\n", 1)])
def test_colours_count_where_texture_coordinates_have_no_picture(
    tmp_path, sided_box, summary, uv, comment, warnings
):
    more = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    rows = [
        [*v, *c] for v, c in zip(sided_box.vertices.tolist(), sided_box.vertex_colors.tolist(), strict=True)
    ]
    faces, face_more = with_three(sided_box), ""
    if uv == "corners":
        faces, face_more = [[*face, 6, *[0.5] * 6] for face in faces], "property list uchar float texcoord\n"
    else:
        rows, more = [[*row, 0.5, 0.5] for row in rows], more + "property float s\nproperty float t\n"
    head = "ply\nformat ascii 1.0\n" + comment
    mesh = text_ply(tmp_path / "a.ply", rows, faces, more=more, face_more=face_more, head=head)
    assert summary(mesh) == (*BOX, 6)
    assert mesh.warnings == ["missing file lost.png"] * warnings


def test_each_texture_colours_its_own_faces_upright(tmp_path, sided_box):
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0] = 255  # white above black
    Image.fromarray(picture).save(tmp_path / "one.png")
    Image.new("RGB", (2, 2), (0, 0, 255)).save(tmp_path / "two.png")
    faces = [[*face, 6, *[0.5, 0.75] * 3, index % 2] for index, face in enumerate(with_three(sided_box))]
    head = "ply\nformat ascii 1.0\ncomment TextureFile one.png\ncomment TextureFile two.png\n"
    face_more = "property list uchar float texcoord\nproperty int texnumber\n"
    mesh = text_ply(tmp_path / "a.ply", sided_box.vertices.tolist(), faces, face_more=face_more, head=head)
    color, _ = base_color(mesh, np.arange(12), np.full((12, 3), 1 / 3))
    assert color.sum(axis=0).tolist() == pytest.approx([6, 6, 12], abs=1e-3)


@pytest.mark.parametrize("head", [
    "ply\ncomment early\nformat ascii 1.0\n", "ply\n\nformat ascii 1.0\n\n", "ply\r\nformat ascii 1.0\r\n",
    "ply\nformat ascii 1.0\ncomment by M\xfcller\nobj_info made 1\n",
])  # fmt: skip
def test_headers_as_they_are_found(tmp_path, sided_box, summary, head):
    mesh = text_ply(tmp_path / "a.ply", sided_box.vertices.tolist(), with_three(sided_box), head=head)
    assert summary(mesh)[:3] == BOX
    assert mesh.warnings == []


def test_faces_that_are_left_out_are_counted(tmp_path, sided_box, summary):
    faces = [*with_three(sided_box), [3, 0, 1, 99], [2, 0, 1], [3, 0, -1, 2]]
    mesh = text_ply(tmp_path / "a.ply", sided_box.vertices.tolist(), faces)
    assert summary(mesh)[:3] == BOX
    assert mesh.warnings == [
        "left out 1 of 15 faces: they have fewer than three corners",
        "left out 2 of 15 faces: they name vertices beyond the 24 there are",
    ]


def test_text_is_read_by_lines_where_they_are_as_many_as_rows_and_else_by_numbers(
    tmp_path, sided_box, summary
):
    rows, faces = sided_box.vertices.tolist(), with_three(sided_box)
    longer = [[*face, 9, 1, 1] for face in faces]  # than the header says
    assert summary(text_ply(tmp_path / "a.ply", rows, longer))[:3] == BOX
    wrapped = text_ply(tmp_path / "a.ply", rows, faces)
    text = (tmp_path / "a.ply").read_text()
    head, _, body = text.partition("end_header\n")
    (tmp_path / "a.ply").write_text(head + "end_header\n" + body.replace("\n", " "))
    np.testing.assert_array_equal(load_mesh(tmp_path / "a.ply").triangles, wrapped.triangles)
    (tmp_path / "a.ply").write_text(text[: text.rindex("3 ")])
    assert load_mesh(tmp_path / "a.ply").warnings == ["left out 1 of 12 faces: the file is cut short"]


def test_what_is_no_surface_is_named(tmp_path, sided_box):
    path = tmp_path / "a.ply"
    text_ply(path, sided_box.vertices.tolist(), with_three(sided_box))
    text = path.read_text().replace("end_header", "element edge 1\nproperty int vertex1\nend_header")
    path.write_text(text + "7\n")
    assert load_mesh(path).warnings == ["left out 1 elements 'edge': they are no surface"]


@pytest.mark.parametrize(("change", "message"), [
    (("property float x", "property quad x"), "unknown type quad"), (("ascii", "morse"), "header"),
    (("element vertex 24", "element vertex 99999"), "claims 99999"), (("vertex_indices", "z9"), "no list"),
    (("property float z", "property float w"), "x, y and z"), (("end_header", "end"), "header"),
    (("3 0 1 2", "3 0 1 two"), "numbers"),
])  # fmt: skip
def test_damage_is_named(tmp_path, sided_box, change, message):
    text_ply(tmp_path / "a.ply", sided_box.vertices.tolist(), with_three(sided_box))
    text = (tmp_path / "a.ply").read_text()
    assert change[0] in text
    (tmp_path / "a.ply").write_text(text.replace(*change))
    with pytest.raises(AssetError, match=message):
        load_mesh(tmp_path / "a.ply")
