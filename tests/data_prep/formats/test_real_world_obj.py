"""OBJ and MTL files as programs and people really write them: every face, every colour, or a warning."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from data_prep.mesh import Mesh, base_color
from data_prep.sources.content import content_digest
from shapeloom.color import linear_to_srgb
from shapeloom.surfaces import face_crosses

CORNERS = [(x, y, z) for z in (0, 3) for y in (0, 2) for x in (0, 1)]
SIDES = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
RGB = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)]
RED, GREEN, GREY, WHITE = (255, 0, 0), (0, 128, 0), (204, 204, 204), (255, 255, 255)
BOX_AREA = 22.0


def vertices(blank: str = " ", tail: str = "", shift: float = 0) -> str:
    return "".join(f"v{blank}{x + shift}{blank}{y}{blank}{z}{tail}\n" for x, y, z in CORNERS)


def faces(blank: str = " ", tail: str = "", first: int = 1) -> str:
    return "".join(f"f{blank}{blank.join(str(n + first) for n in side)}{tail}\n" for side in SIDES)


BOX = vertices() + faces()
"""1 x 2 x 3, of six quads."""
UV_BOX = vertices() + "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n" + "".join(
    "f " + " ".join(f"{n + 1}/{i}" for i, n in enumerate(side, 1)) + "\n" for side in SIDES
)  # fmt: skip


def painted(scale: int) -> str:
    """The box with a colour for each side, whose white is `scale`."""
    rows = [(*CORNERS[n], *(scale * c for c in RGB[i])) for i, side in enumerate(SIDES) for n in side]
    text = "".join("v {} {} {} {} {} {}\n".format(*row) for row in rows)
    return text + "".join("f {} {} {} {}\n".format(*range(n, n + 4)) for n in range(1, 25, 4))


PAINTED = painted(1)
SIX = {tuple(255 * c for c in rgb): 2 for rgb in RGB}


def picture(rgb=GREEN) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), rgb).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """Files below a root; returns the first."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return root / next(iter(files))


def colors(mesh: Mesh) -> dict[tuple[int, ...], int]:
    """How many faces have which colour in their middle."""
    middle = np.full((len(mesh.faces), 3), 1 / 3)
    linear, _ = base_color(mesh, np.arange(len(mesh.faces)), middle)
    return dict(Counter(map(tuple, np.rint(linear_to_srgb(linear) * 255).astype(int).tolist())))


def area(mesh: Mesh) -> float:
    return float(np.linalg.norm(face_crosses(mesh.triangles), axis=1).sum() / 2)


# ---------------------------------------------------------------- text

TEXTS = {
    "tabs": vertices("\t") + faces("\t"),
    "runs of blanks": vertices("   ") + faces("  ", "  "),
    "indents": "".join(f"\t {line}\n" for line in BOX.splitlines()),
    "comments at the ends of lines": vertices(tail=" # a corner") + faces(tail="\t# a side"),
    "old Mac line ends": BOX.replace("\n", "\r"),
    "Windows line ends": BOX.replace("\n", "\r\n"),
    "a byte-order mark": "\ufeff" + BOX,
    "no newline at the end": BOX.rstrip("\n"),
    "continued lines": BOX.replace(" 3 ", " \\\n 3 ").replace("v 0", "v\\\n  0"),
    "negative references": vertices() + faces(first=-8),
    "negative references between": "".join(
        "".join("v {} {} {}\n".format(*CORNERS[n]) for n in side) + "f -4 -3 -2 -1\n" for side in SIDES
    ),
    "references that don't need each other": BOX.replace("f 1 3 4 2", "f 1// 3/ 4// 2"),
    "faces before their vertices": faces() + vertices(),
    "objects, groups and smoothing": "o thing\ng a b\ns 1\n" + BOX + "s off\n",
    "lines and points": BOX + "l 1 2\np 1\nf 1 2\n",
    "weights and colours of some rows": BOX.replace("v 0 0 0", "v 0 0 0 1.0"),
    "decimal commas": vertices().replace("3\n", "3,0\n") + faces(),
    "signs and exponents": vertices().replace("v 1", "v +10.0E-1") + faces(),
    "the name of a gun": "o USP\n" + BOX,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_box_is_a_box_however_it_is_written(tmp_path, text):
    mesh = load_mesh(write(tmp_path, {"a.obj": text.encode()}))
    assert (len(mesh.faces), area(mesh), mesh.warnings) == (12, pytest.approx(BOX_AREA), [])
    np.testing.assert_allclose(np.ptp(mesh.triangles.reshape(-1, 3), axis=0), [1, 3, 2])
    assert colors(mesh) == {GREY: 12}


def test_text_in_utf16_is_read(tmp_path):
    (tmp_path / "a.obj").write_bytes(BOX.encode("utf-16"))
    assert len(load_mesh(tmp_path / "a.obj").faces) == 12


def test_blocks_that_count_back_stand_where_they_are(tmp_path):
    blocks = "".join(vertices(shift=shift) + faces(first=-8) for shift in (0, 5, 10))
    mesh = load_mesh(write(tmp_path, {"a.obj": blocks}))
    assert (len(mesh.faces), area(mesh)) == (36, pytest.approx(3 * BOX_AREA))
    assert np.ptp(mesh.triangles[..., 0]) == 11


def prism(ring: list[tuple[float, float]]) -> str:
    """A plane figure (counter-clockwise) made 1 high: two polygons of all its corners, and quads around."""
    num = len(ring)
    text = "".join(f"v {x} {y} {z}\n" for z in (0, 1) for x, y in ring)
    text += f"f {' '.join(str(n) for n in range(num, 0, -1))}\n"
    text += f"f {' '.join(str(n + num) for n in range(1, num + 1))}\n"
    for a in range(1, num + 1):
        b = a % num + 1
        text += f"f {a} {b} {b + num} {a + num}\n"
    return text


@pytest.mark.parametrize(("ring", "expected"), [
    ([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], 2 * 3 + 8),
    ([(0, 0), (1, 0.5), (2, 0), (1, 2)], 2 * 1.5 + 2 * (1.25**0.5 + 5**0.5)),
])  # fmt: skip
def test_notches_stay_open_whichever_corner_comes_first(tmp_path, ring, expected):
    for first in range(len(ring)):
        mesh = load_mesh(write(tmp_path, {"a.obj": prism(ring[first:] + ring[:first])}))
        assert len(mesh.faces) == 2 * (len(ring) - 2) + 2 * len(ring)
        assert area(mesh) == pytest.approx(expected)


def test_polygons_of_one_width_in_words_are_told_apart(tmp_path):
    # A quad with texture coordinates and an octagon without have eight numbers each.
    angles = np.arange(8) * np.pi / 4
    octagon = "".join(f"v {np.cos(a):.6f} {np.sin(a):.6f} 9\n" for a in angles)
    text = UV_BOX + octagon + "f " + " ".join(str(n) for n in range(9, 17)) + "\n"
    mesh = load_mesh(write(tmp_path, {"a.obj": text}))
    assert (len(mesh.faces), area(mesh)) == (18, pytest.approx(BOX_AREA + 8**0.5, abs=1e-4))


@pytest.mark.parametrize(("bad", "warning"), [
    ("f 1 2 99\n", "left out 1 of 7 faces: they name vertices beyond the 8"),
    ("f 1 2 -99\nf 0 1 2\n", "left out 2 of 8 faces: they name vertices"),
    ("f 1.0 2.0 3.0\n", "left out 1 of 7 faces: they are no references"),
    ("f one two three\nf 1 2 -\n", "left out 2 of 8 faces: they are no references"),
    ("f\nf 1\n", "left out 2 of 8 faces: they have fewer than two corners"),
    ("f 1/9 2/9 3/9\n", "1 of 7 faces name texture coordinates that are not there"),
    ("f 1//9 2//9 3//9\n", "1 of 7 faces name normals that are not there"),
    ("curv 0 1 1 2\nsurf 0 1 0 1 1 2 3 4\n", "left out 1 free-form surfaces"),
])  # fmt: skip
def test_what_is_wrong_costs_itself_and_a_warning(tmp_path, bad, warning):
    mesh = load_mesh(write(tmp_path, {"a.obj": BOX + bad}))
    assert len(mesh.faces) == (13 if "/" in bad else 12)
    assert len(mesh.warnings) == 1
    assert mesh.warnings[0].startswith(warning)


def test_a_file_of_bad_faces_alone_says_so(tmp_path):
    with pytest.raises(AssetError, match="left out 6 of 6 faces") as caught:
        load_mesh(write(tmp_path, {"a.obj": vertices() + faces(first=99)}))
    assert caught.value.reason == "unreadable"
    with pytest.raises(AssetError, match="more than 11 faces"):
        load_mesh(write(tmp_path, {"a.obj": BOX}), max_faces=11)


def test_normals_are_those_of_each_corner(tmp_path):
    text = vertices() + "vn 0 0 2\nvn 1 0 0\nf 1//1 2//2 3\nf 1//2 3//2 4//2\n"
    shading = load_mesh(write(tmp_path, {"a.obj": text}), up="z").shading
    np.testing.assert_allclose(
        shading[0], [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    )  # the face's where none is given
    np.testing.assert_allclose(shading[1], [[1, 0, 0]] * 3)


# ---------------------------------------------------------------- colours

USE = "mtllib a.mtl\nusemtl m\n"


@pytest.mark.parametrize(("text", "mtl", "expected"), [
    (PAINTED, "", SIX),
    (painted(255), "", SIX),
    (PAINTED + "v 9 0 0\n", "", SIX),
    (USE + PAINTED, "Kd 0.8 0.8 0.8", {tuple(204 * c for c in rgb): 2 for rgb in RGB}),
    (USE + BOX, "Kd 1 0 0", {RED: 12}),
    (USE + BOX, "Kd\t1\t0\t0 # red", {RED: 12}),
    (USE + BOX, "Ka 1 1 1\nKd 0 0 0\nKe 1 0 0", {RED: 12}),
    (USE + BOX, "Kd 1 0 0\nKe 0 1 0", {RED: 12}),
    (USE + BOX, "Ns 10", {GREY: 12}),
    (USE + UV_BOX, "map_Kd s.png", {GREEN: 12}),
    (USE + UV_BOX, "map_Ka s.png", {GREEN: 12}),
    (USE + UV_BOX, "Kd 0 0 0\nKe 1 1 1\nmap_Ke s.png", {GREEN: 12}),
    (USE + UV_BOX + "f 1 2 3\n", "Kd 1 0 0\nmap_Kd s.png", {GREEN: 12, RED: 1}),
    (USE + BOX, "Kd 1 0 0\nmap_Kd s.png", {RED: 12}),
    (USE.replace(" m", "  m ") + UV_BOX, "map_Kd s.png", {GREEN: 12}),
    (UV_BOX, "Kd 1 0 0", {GREY: 12}),
    ("mtllib a.mtl\nusemtl None\n" + BOX, "Kd 1 0 0", {GREY: 12}),
])  # fmt: skip
def test_colours_are_those_that_are_seen(tmp_path, text, mtl, expected):
    files = {"a.obj": text, "a.mtl": f"# a library\nnewmtl m\n{mtl}\n", "s.png": picture()}
    mesh = load_mesh(write(tmp_path, files))
    assert mesh.warnings == []
    if expected is not None:
        assert colors(mesh) == expected


def test_zbrush_comments_are_vertex_colours(tmp_path):
    words = "".join(
        "ff{:02x}{:02x}{:02x}".format(*(255 * c for c in RGB[i])) for i in range(6) for _ in "1234"
    )
    plain = "".join(" ".join(line.split()[:4]) + "\n" for line in PAINTED.splitlines() if line[0] == "v")
    rest = "".join(line + "\n" for line in PAINTED.splitlines() if line[0] == "f")
    text = plain + f"#MRGB {words[:64]}\n#MRGB {words[64:]}\n" + rest
    assert colors(load_mesh(write(tmp_path, {"a.obj": text}))) == SIX
    assert len(load_mesh(write(tmp_path, {"a.obj": text.replace("ff", "no")})).faces) == 12


def test_a_material_that_no_library_has_is_told(tmp_path):
    mesh = load_mesh(write(tmp_path, {"a.obj": USE + BOX, "a.mtl": "newmtl n\nKd 1 0 0\n"}))
    assert (colors(mesh), mesh.warnings) == ({GREY: 12}, ["has no material m in its libraries"])


def test_colliders_need_more_than_a_name_and_materials_hide_nothing(tmp_path):
    two = vertices() + "usemtl Collision Red\n" + faces() + vertices(shift=5) + "usemtl b\n" + faces(first=9)
    files = {"a.obj": "mtllib a.mtl\n" + two, "a.mtl": "newmtl Collision Red\nKd 1 0 0\nnewmtl b\nKd 1 1 1\n"}
    mesh = load_mesh(write(tmp_path, files))
    assert (colors(mesh), mesh.warnings) == ({RED: 12, WHITE: 12}, [])
    hidden = "o rock\n" + BOX + "o UCX_rock_01\n" + vertices() + faces(first=9)
    mesh = load_mesh(write(tmp_path, {"a.obj": hidden}))
    assert (len(mesh.faces), mesh.warnings) == (12, ["left out as colliders: UCX_rock_01"])


@pytest.mark.parametrize("options", [
    "-s 1.0e+00 1.0E+00 1", "-o +0.0 0 0", "-t 0 0 0", "-imfchan l", "-type cube_top", "-colorspace sRGB",
    "-mm 0 1", "-blendu on -blendv off", "-cc off", "-texres 512", "-bm 1.0", "-boost 2", "-clamp on -s 1",
])  # fmt: skip
@pytest.mark.parametrize("name", ["s.png", '"s.png"', "s.png # wood", "my wood.png"])
def test_options_of_maps_are_no_part_of_the_name(tmp_path, options, name):
    files = {"a.obj": USE + UV_BOX, "a.mtl": f"newmtl m\nmap_Kd {options} {name}\n"}
    files |= {"s.png": picture(), "my wood.png": picture()}
    mesh = load_mesh(write(tmp_path, files))
    assert (colors(mesh), mesh.warnings) == ({GREEN: 12}, [])


def test_an_alpha_map_alone_cuts_the_plain_colour(tmp_path):
    files = {"a.obj": USE + UV_BOX, "a.mtl": "newmtl m\nKd 1 0 0\nmap_d s.png\n", "s.png": picture((51,) * 3)}
    mesh = load_mesh(write(tmp_path, files))
    color, alpha = base_color(mesh, np.array([0]), np.full((1, 3), 1 / 3))
    np.testing.assert_allclose(color, [[1, 0, 0]], atol=1e-6)
    assert alpha[0] == pytest.approx(0.2)


# ---------------------------------------------------------------- libraries and where things lie

HALVES = vertices() + "usemtl r\n" + faces() + vertices(shift=5) + "usemtl g\n" + faces(first=9)
R, G = "newmtl r\nKd 1 0 0\n", "newmtl g\nKd 0 1 0\n"
HALF = {RED: 12, (0, 255, 0): 12}
WOOD = "newmtl m\nmap_Kd {}\n"


def halves(statements: str, libraries: dict[str, str], warning: str = "", expected=HALF) -> tuple:
    return {"a.obj": statements + "\n" + HALVES, **libraries}, expected, warning


def oak(name: str, place: str, warning: str = "", asset: str = "a.obj", library: str = "a.mtl") -> tuple:
    """A textured box whose library calls `name` what lies at `place`; both stand in the asset's folder."""
    folder = asset.rpartition("a.obj")[0]
    text = USE.replace("a.mtl", library) + UV_BOX
    return {asset: text, folder + library: WOOD.format(name), place: picture()}, {GREEN: 12}, warning


PLACES = {
    "two libraries in two statements": halves("mtllib r.mtl\nmtllib g.mtl", {"r.mtl": R, "g.mtl": G}),
    "two libraries in one": halves("mtllib r.mtl g.mtl", {"r.mtl": R, "g.mtl": G}),
    "a blank in a library's name": halves("mtllib my r.mtl", {"my r.mtl": R + G}),
    "the word in a comment": halves("# mtllib no.mtl\n#mtllib no.mtl\nmtllib a.mtl", {"a.mtl": R + G}),
    "a comment behind it": halves("mtllib a.mtl # the colours", {"a.mtl": R + G}),
    "another suffix": halves("mtllib a.materials", {"a.materials": R + G}),
    "tabs": halves("mtllib\ta.mtl", {"a.mtl": R.replace(" ", "\t") + G}),
    "old Mac line ends": halves("mtllib a.mtl\r", {"a.mtl": (R + G).replace("\n", "\r")}),
    "library in another case": halves("mtllib A.MTL", {"a.mtl": R + G}, "A.MTL is taken from a.mtl"),
    "renamed asset": halves("mtllib before.mtl", {"a.mtl": R + G}, "before.mtl is taken from a.mtl"),
    "lost library": halves("mtllib lost.mtl", {}, "missing file lost.mtl", {GREY: 24}),
    "library in a subfolder": oak("s.png", "lib/s.png", library="lib/a.mtl"),
    "picture beside the asset all the same": oak("s.png", "s.png", library="lib/a.mtl"),
    "picture in another case": oak("T\\S.PNG", "t/s.png", "T\\S.PNG is taken from t/s.png"),
    "picture up and down": oak("..\\maps\\s.png", "maps/s.png", asset="src/a.obj"),
    "place on a Windows disk": oak("D:\\work\\oak\\tex\\s.png", "tex/s.png"),
    "place on a Unix disk": oak("/home/ann/tex/s.png", "tex/s.png"),
    "folders left behind": oak("../art/s.png", "s.png", "../art/s.png is taken from s.png"),
    "folder of textures": oak(
        "s.png", "x/textures/s.png", "s.png is taken from x/textures/s.png", asset="x/source/a.obj"
    ),
    "Google's folders": oak(
        "s.png", "x/materials/textures/s.png", "s.png is taken from x/materials/textures/s.png",
        asset="x/meshes/a.obj",
    ),
    "accents encoded otherwise": oak(
        "gr\u00fcn.png", "gru\u0308n.png", "gr\u00fcn.png is taken from gru\u0308n.png"
    ),
}  # fmt: skip


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(("files", "expected", "warning"), PLACES.values(), ids=PLACES)
def test_files_are_found_where_they_are(tmp_path, monkeypatch, files, expected, warning, relative):
    write(tmp_path / "assets", files)
    monkeypatch.chdir(tmp_path)
    root = Path("assets") if relative else tmp_path / "assets"
    path = root / next(iter(files))
    mesh = load_mesh(path, root=root)
    assert (colors(mesh), mesh.warnings) == (expected, [warning] if warning else [])
    # Whatever is read counts for the asset's identity.
    digests = {content_digest(path, root=root)}
    for name in list(files)[1:]:
        (root / name).write_bytes((root / name).read_bytes() + b" ")
        digests.add(content_digest(path, root=root))
    assert len(digests) == len(files)


def test_exact_case_comes_first_and_a_lost_picture_leaves_the_plain_colour(tmp_path):
    mtl = WOOD.format("S.png") + "Kd 1 0 0\n"
    files = {"a.obj": USE + UV_BOX, "a.mtl": mtl, "s.png": picture(WHITE), "S.png": picture()}
    mesh = load_mesh(write(tmp_path, files))
    assert (colors(mesh), mesh.warnings) == ({GREEN: 12}, [])
    for name in ("s.png", "S.png"):
        (tmp_path / name).unlink()
    mesh = load_mesh(tmp_path / "a.obj")
    assert (colors(mesh), mesh.warnings) == ({RED: 12}, ["missing file S.png"])


@pytest.mark.parametrize("name", ["../../secret.png", "..\\..\\secret.png", "link.png", "/etc/hostname"])
def test_nothing_outside_the_root_is_read_and_the_asset_stays(tmp_path, name):
    write(tmp_path, {"secret.png": picture(RED)})
    root = tmp_path / "assets"
    asset = write(root, {"x/a.obj": USE + UV_BOX, "x/a.mtl": WOOD.format(name)})
    (root / "x/link.png").symlink_to(tmp_path / "secret.png")
    mesh = load_mesh(asset, root=root)
    assert mesh.textures == []
    outside = "" if name.startswith("/") else ", which lies outside the assets folder"
    assert mesh.warnings == [f"missing file {name}{outside}"]
