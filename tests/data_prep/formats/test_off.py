"""OFF as writers really have it: polygons, colours, comments, counts in any line."""

import numpy as np
import pytest

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh

BOX = (12, 22.0, [1, 2, 3])


def write(folder, rows, faces, *, head="OFF\n", between="\n", counts="{} {} 0\n"):
    lines = [" ".join(map(str, row)) for row in rows]
    faces = [" ".join(map(str, face)) for face in faces]
    text = head + counts.format(len(rows), len(faces)) + between.join(lines) + "\n" + "\n".join(faces) + "\n"
    (folder / "a.off").write_text(text)
    return load_mesh(folder / "a.off")


def with_three(box):
    return [[3, *face] for face in box.faces.tolist()]


@pytest.mark.parametrize("form", [
    {}, {"head": ""}, {"head": "OFF "}, {"head": "OFF"}, {"head": "# made by hand\nOFF # really\n\n"},
    {"head": "\ufeffOFF\n"}, {"counts": "{} {}\n"}, {"between": " "}, {"between": "\n# a comment\n\n"},
])  # fmt: skip
def test_headers_blanks_and_comments(tmp_path, sided_box, summary, form):
    mesh = write(tmp_path, sided_box.vertices.tolist(), with_three(sided_box), **form)
    assert summary(mesh) == (*BOX, 1)
    assert mesh.warnings == []


def test_faces_of_any_size_keep_their_notches(tmp_path, prism, summary):
    vertices, faces = prism
    assert summary(write(tmp_path, vertices.tolist(), [[len(f), *f] for f in faces]))[:2] == (20, 22.0)


@pytest.mark.parametrize("alpha", [[], [255]])
@pytest.mark.parametrize("keyword", ["COFF\n", "OFF\n"])
def test_colours_of_vertices(tmp_path, sided_box, summary, keyword, alpha):
    colors = sided_box.vertex_colors.tolist()
    rows = [[*v, *c, *alpha] for v, c in zip(sided_box.vertices.tolist(), colors, strict=True)]
    assert summary(write(tmp_path, rows, with_three(sided_box), head=keyword)) == (*BOX, 6)


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_colours_of_faces_which_not_all_must_have(tmp_path, sided_box, summary, scale):
    colors = (sided_box.face_colors * scale).tolist()
    faces = [[*face, *color] for face, color in zip(with_three(sided_box), colors, strict=True)]
    mesh = write(tmp_path, sided_box.vertices.tolist(), faces)
    assert summary(mesh) == (*BOX, 6)
    np.testing.assert_allclose(mesh.tint[0, 0], sided_box.colors[0] / 255, atol=1e-6)
    faces[0] = faces[0][:4]
    assert summary(write(tmp_path, sided_box.vertices.tolist(), faces)) == (*BOX, 7)


def test_normals_colours_and_texture_coordinates_stand_in_their_order(tmp_path, sided_box, summary):
    colors = sided_box.vertex_colors.tolist()
    rows = [
        [*v, 0, 0, 1, *c, 255, 0.5, 0.5] for v, c in zip(sided_box.vertices.tolist(), colors, strict=True)
    ]
    mesh = write(tmp_path, rows, with_three(sided_box), head="STCNOFF\n")
    assert summary(mesh) == (*BOX, 6)
    assert mesh.shading.reshape(-1, 3).tolist() == [[0, 0, 1]] * 36
    rows = [[*(2 * v), 2] for v in sided_box.vertices]
    assert summary(write(tmp_path, rows, with_three(sided_box), head="4OFF\n")) == (*BOX, 1)


def test_faces_with_vertices_that_are_not_there_cost_themselves(tmp_path, sided_box, summary):
    mesh = write(tmp_path, sided_box.vertices.tolist(), [*with_three(sided_box), [3, 0, 1, 24]])
    assert summary(mesh)[:3] == BOX
    assert mesh.warnings == ["left out 1 of 13 faces: they name vertices beyond the 24 there are"]


@pytest.mark.parametrize(("text", "reason", "message"), [
    ("OFF\n", "unreadable", "no counts"), ("OFF\n900 900 0\n0 0 0\n", "unreadable", "claims 900"),
    ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "unreadable", "cut short"), ("OFF\nno no\n", "unreadable", "numbers"),
    ("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "unreadable", "cut short"),
    ("OFF BINARY\n\0\0\0\3", "unsupported", "BINARY"),
    ("nOFF\n4 1 1 0\n", "unsupported", "3 dimensions"),
])  # fmt: skip
def test_damage_is_named(tmp_path, text, reason, message):
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(AssetError, match=message) as caught:
        load_mesh(tmp_path / "a.off")
    assert caught.value.reason == reason
