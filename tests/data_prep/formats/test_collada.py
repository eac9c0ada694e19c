"""COLLADA as exporters really write it: primitives, transforms, skins, morphs, materials, damage."""

import numpy as np
import pytest
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.load import load_mesh
from data_prep.mesh import base_color
from shapeloom.color import linear_to_srgb

BOX = (12, 22.0, [1, 2, 3])
SCHEMA = "http://www.collada.org/2005/11/COLLADASchema"
RED = "<lambert><diffuse><color>1 0 0 1</color></diffuse></lambert>"
GLOW = "<emission><color>1 0.5 0 1</color></emission>"
MATRIX = "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"


def numbers(rows) -> str:
    return " ".join(f"{value:g}" for value in np.asarray(rows, float).ravel())


def source(name: str, rows, params="XYZ") -> str:
    rows = np.asarray(rows, float)
    listed = "".join(f'<param name="{param}" type="float"/>' for param in params)
    return (
        f'<source id="{name}"><float_array id="{name}a" count="{rows.size}">{numbers(rows)}</float_array>'
        f'<technique_common><accessor source="#{name}a" count="{len(rows)}" stride="{rows.shape[1]}">{listed}'
        "</accessor></technique_common></source>"
    )


def geometry(name: str, vertices, primitive: str, more="") -> str:
    return (
        f'<geometry id="{name}"><mesh>{source(name + "p", vertices)}{more}<vertices id="{name}v">'
        f'<input semantic="POSITION" source="#{name}p"/></vertices>{primitive}</mesh></geometry>'
    )


def triangles(name: str, faces, extra="", tag="triangles", count=None) -> str:
    count = len(faces) if count is None else count
    order = " ".join(str(index) for face in faces for index in face)
    vertex = f'<input semantic="VERTEX" source="#{name}v" offset="0"/>'
    body = f"<p>{order}</p>" if order else ""
    return f'<{tag} count="{count}" material="m">{vertex}{extra}{body}</{tag}>'


def node(url: str, *, inner="", target="mm", kind="geometry", name="n", binds="") -> str:
    bound = f'<instance_material symbol="m" target="#{target}">{binds}</instance_material>'
    return (
        f'<node id="{name}" name="{name}">{inner}<instance_{kind} url="#{url}"><bind_material>'
        f"<technique_common>{bound}</technique_common></bind_material></instance_{kind}></node>"
    )


def document(geometries: str, nodes: str, *, shader=RED, parameters="", more="", images="", scene=True):
    shown = '<scene><instance_visual_scene url="#vs"/></scene>' if scene else ""
    return (
        f'<?xml version="1.0" encoding="utf-8"?><COLLADA xmlns="{SCHEMA}" version="1.4.1"><asset>'
        f"<up_axis>Z_UP</up_axis></asset><library_images>{images}</library_images><library_effects>"
        f'<effect id="e"><profile_COMMON>{parameters}<technique sid="t">{shader}</technique></profile_COMMON>'
        '</effect></library_effects><library_materials><material id="mm"><instance_effect url="#e"/>'
        f"</material></library_materials><library_geometries>{geometries}</library_geometries>{more}"
        "<library_visual_scenes>"
        f'<visual_scene id="vs">{nodes}</visual_scene></library_visual_scenes>{shown}</COLLADA>'
    )


def load(folder, text: str | bytes):
    (folder / "a.dae").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_mesh(folder / "a.dae")


@pytest.fixture
def box(sided_box) -> str:
    return geometry("g", sided_box.vertices, triangles("g", sided_box.faces))


@pytest.mark.parametrize("kind", ["polylist", "polygons", "trifans", "tristrips"])
def test_every_kind_of_primitive_gives_the_same_box(tmp_path, sided_box, summary, kind):
    quads = sided_box.quads.tolist()
    if kind == "polylist":
        body = triangles("g", quads, "<vcount>4 4 4 4 4 4</vcount>", kind)
    else:
        order = [0, 1, 3, 2] if kind == "tristrips" else [0, 1, 2, 3]
        loops = "".join(f"<p>{' '.join(str(quad[i]) for i in order)}</p>" for quad in quads)
        body = triangles("g", [], loops, kind, count=6)
    mesh = load(tmp_path, document(geometry("g", sided_box.vertices, body), node("g")))
    assert summary(mesh) == (*BOX, 1)
    t = mesh.triangles
    assert np.einsum("fi,fi->", t[:, 0], np.cross(t[:, 1], t[:, 2])) == pytest.approx(36)  # turned outward
    assert mesh.warnings == []


def test_polygons_keep_notches_and_holes(tmp_path, prism, summary):
    vertices, faces = prism
    counts = " ".join(str(len(face)) for face in faces)
    body = triangles("g", faces, f"<vcount>{counts}</vcount>", "polylist")
    assert summary(load(tmp_path, document(geometry("g", vertices, body), node("g"))))[:2] == (20, 22.0)
    ring = np.insert(np.array([(0, 0), (4, 0), (4, 4), (0, 4), (1, 1), (1, 3), (3, 3), (3, 1)]), 2, 0, axis=1)
    body = triangles("g", [], "<ph><p>0 1 2 3</p><h>4 5 6 7</h></ph>", "polygons", count=1)
    mesh = load(tmp_path, document(geometry("g", ring, body), node("g")))
    assert summary(mesh)[:3] == (8, 12.0, [4, 4, 0])
    assert mesh.warnings == []


@pytest.mark.parametrize(("change", "size"), [
    (("<up_axis>", "<!-- was <up_axis>Y_UP</up_axis> --><up_axis>"), [1, 2, 3]),
    (("up_axis>", "c:up_axis>"), [1, 2, 3]), (("<up_axis>Z_UP</up_axis>", ""), [1, 3, 2]),
    (("Z_UP", "X_UP"), [2, 3, 1]),
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_parsed_document_says_what_is_up(tmp_path, box, summary, change, size, encoding):
    text = document(box, node("g")).replace(*change).replace("<COLLADA ", f'<COLLADA xmlns:c="{SCHEMA}" ')
    mesh = load(tmp_path, text.replace("utf-8", encoding).encode(encoding))
    np.testing.assert_allclose(summary(mesh)[2], size)


@pytest.mark.parametrize(("inner", "size"), [
    ("<translate>9 0 0</translate><scale>2 1 1</scale>", [2, 2, 3]), ("<rotate>0 0 1 90</rotate>", [2, 1, 3]),
    ("<scale>1 1 2</scale><rotate>1 0 0 90</rotate>", [1, 3, 4]), ("<skew>45 0 1 0 1 0 0</skew>", [3, 2, 3]),
    ("<matrix>0 0 2 0 0 1 0 0 1 0 0 0 0 0 0 1</matrix>", [6, 2, 1]),
    ("<lookat>0 0 0 0 0 -1 0 1 0</lookat>", [1, 2, 3]), ("<lookat>0 0 0 -1 0 0 0 0 1</lookat>", [3, 1, 2]),
])  # fmt: skip
def test_transforms_apply_in_their_order(tmp_path, box, summary, inner, size):
    np.testing.assert_allclose(
        summary(load(tmp_path, document(box, node("g", inner=inner))))[2], size, atol=1e-3
    )


def test_instances_of_nodes_are_expanded_and_one_of_itself_is_an_error(tmp_path, box, summary):
    library = f"<library_nodes>{node('g', name='part')}</library_nodes>"
    twice = "".join(
        f'<node id="n{x}"><translate>{x} 0 0</translate><instance_node url="#part"/></node>' for x in (0, 4)
    )
    assert summary(load(tmp_path, document(box, twice, more=library)))[:3] == (24, 44.0, [5, 2, 3])
    with pytest.raises(AssetError, match="instance of itself"):
        load(tmp_path, document(box, '<node id="n"><instance_node url="#n"/></node>'))


def skin(shape=MATRIX) -> str:
    return (
        f'<library_controllers><controller id="c"><skin source="#g">'
        f"<bind_shape_matrix>{shape}</bind_shape_matrix>"
        '<source id="j"><Name_array id="ja" count="1">B</Name_array><technique_common><accessor source="#ja" '
        'count="1" stride="1"><param name="JOINT" type="name"/></accessor></technique_common></source>'
        f'<source id="b"><float_array id="ba" count="16">{MATRIX}</float_array><technique_common><accessor '
        'source="#ba" count="1" stride="16"><param name="TRANSFORM" type="float4x4"/></accessor>'
        '</technique_common></source><joints><input semantic="JOINT" source="#j"/>'
        '<input semantic="INV_BIND_MATRIX" source="#b"/></joints></skin></controller></library_controllers>'
    )


def test_skins_are_read_in_bind_pose_wherever_their_node_is(tmp_path, sided_box, box, summary):
    static = geometry("h", sided_box.vertices + np.array([4, 0, 0]), triangles("h", sided_box.faces))
    bone = '<node id="bone" sid="B" type="JOINT"/>'
    nodes = bone + node("c", kind="controller", inner="<scale>50 50 50</scale>") + node("h", name="o")
    mesh = load(tmp_path, document(box + static, nodes, more=skin()))
    assert summary(mesh)[:3] == (24, 44.0, [5, 2, 3])
    assert mesh.warnings == []
    half = "0.5 0 0 0 0 0.5 0 0 0 0 0.5 0 0 0 0 1"
    turned = bone.replace(
        "/>", "><rotate>0 0 1 90</rotate></node>"
    )  # with the whole skeleton, so is the mesh
    nodes = turned + node("c", kind="controller")
    assert summary(load(tmp_path, document(box, nodes, more=skin(shape=half))))[2] == [1, 0.5, 1.5]


@pytest.mark.parametrize(("weight", "method", "size"), [
    (0, "NORMALIZED", [1, 2, 3]), (0.5, "NORMALIZED", [1.5, 3, 4.5]), (0.5, "RELATIVE", [2, 4, 6]),
])  # fmt: skip
def test_morphs_count_by_the_weights_that_the_file_has(
    tmp_path, sided_box, box, summary, weight, method, size
):
    target = geometry("h", 2 * sided_box.vertices, triangles("h", sided_box.faces))
    morph = (
        f'<library_controllers><controller id="c"><morph source="#g" method="{method}"><source id="t">'
        '<IDREF_array id="ta" count="1">h</IDREF_array></source>' + source("w", [[weight]], ["W"])
        + '<targets><input semantic="MORPH_TARGET" source="#t"/><input semantic="MORPH_WEIGHT" source="#w"/>'
        "</targets></morph></controller></library_controllers>"
    )  # fmt: skip
    mesh = load(tmp_path, document(box + target, node("c", kind="controller"), more=morph))
    assert summary(mesh)[2] == size
    assert mesh.warnings == []


@pytest.mark.parametrize(("shader", "expected"), [
    (RED, (1, 0, 0)), (RED.replace("1 0 0 1", "1,0 0,0 0,0 1,0"), (1, 0, 0)),
    (f"<constant>{GLOW}</constant>", (1, 0.5, 0)),
    (f"<phong>{GLOW}<diffuse><color>0 0 0 1</color></diffuse></phong>", (1, 0.5, 0)),
    ("<blinn><diffuse><param ref='tone'/></diffuse></blinn>", (0, 1, 1)),
])  # fmt: skip
def test_colour_as_it_is_seen(tmp_path, box, shader, expected):
    parameters = '<newparam sid="tone"><float4>0 1 1 1</float4></newparam>'
    mesh = load(tmp_path, document(box, node("g"), shader=shader, parameters=parameters))
    assert linear_to_srgb(mesh.tint[0, 0]) == pytest.approx(expected)
    assert mesh.warnings == []


@pytest.mark.parametrize(("shader", "warning"), [
    ("<lambert><diffuse><color>red</color></diffuse></lambert>", "damaged effect 'e'"),
    ("<lambert><diffuse><color>1 0</color></diffuse></lambert>", "is no colour"),
    ("<paint/>", "no common shader"),
    ("<lambert><diffuse><texture texture='gone'/></diffuse></lambert>", "missing image"),
])  # fmt: skip
def test_a_broken_material_costs_itself(tmp_path, box, summary, shader, warning):
    mesh = load(tmp_path, document(box, node("g"), shader=shader))
    assert summary(mesh) == (*BOX, 1)
    assert linear_to_srgb(mesh.tint[0, 0]) == pytest.approx([0.8] * 3)
    assert warning in "; ".join(mesh.warnings)


def test_a_missing_material_costs_itself_and_not_its_mesh(tmp_path, sided_box, box, summary):
    other = geometry("h", sided_box.vertices + np.array([4, 0, 0]), triangles("h", sided_box.faces))
    mesh = load(tmp_path, document(box + other, node("g") + node("h", target="gone", name="o")))
    assert summary(mesh)[:3] == (24, 44.0, [5, 2, 3])
    assert mesh.warnings == ["missing material '#gone'"]


def test_vertex_colours_multiply_the_diffuse_colour_unless_it_repeats_one(tmp_path, sided_box, summary):
    colors = source("gc", sided_box.vertex_colors / 255, "RGB")
    body = triangles("g", sided_box.faces, '<input semantic="COLOR" source="#gc" offset="0"/>')
    shape = geometry("g", sided_box.vertices, body, more=colors)
    for tone, factor in (("1 1 1 1", 1), ("0.8 0.8 0.8 1", 0.6038), ("1 0 0 1", 1)):
        mesh = load(tmp_path, document(shape, node("g"), shader=RED.replace("1 0 0 1", tone)))
        assert summary(mesh) == (*BOX, 6)
        np.testing.assert_allclose(mesh.tint[0, 0], sided_box.colors[0] / 255 * factor, atol=1e-3)


@pytest.mark.parametrize("version", ["1.4.1", "1.5.0"])
@pytest.mark.parametrize("channel", [0, 1])
def test_a_texture_has_the_coordinates_that_are_bound_to_it(tmp_path, sided_box, version, channel):
    picture = np.uint8([[[255, 0, 0]], [[0, 0, 255]]])  # red above blue
    Image.fromarray(picture).save(tmp_path / "wood.png")
    both = source("u0", [[0.5, 0.75]] * 24, "ST") + source("u1", [[0.5, 0.25, 9]] * 24, "STP")
    extra = "".join(f'<input semantic="TEXCOORD" source="#u{n}" offset="0" set="{n}"/>' for n in (0, 1))
    shape = geometry("g", sided_box.vertices, triangles("g", sided_box.faces, extra), more=both)
    if version == "1.4.1":
        parameters = '<newparam sid="s1"><surface type="2D"><init_from>im</init_from></surface></newparam>'
        sampler, image = "<source>s1</source>", "wood.png"
    else:
        parameters, sampler, image = "", '<instance_image url="#im"/>', "<ref>wood.png</ref>"
    parameters += f'<newparam sid="s2"><sampler2D>{sampler}<wrap_s>CLAMP</wrap_s></sampler2D></newparam>'
    binds = f'<bind_vertex_input semantic="CH" input_semantic="TEXCOORD" input_set="{channel}"/>'
    mesh = load(
        tmp_path,
        document(
            shape, node("g", binds=binds), parameters=parameters,
            images=f'<image id="im"><init_from>{image}</init_from></image>',
            shader='<lambert><diffuse><texture texture="s2" texcoord="CH"/></diffuse></lambert>',
        ),
    )  # fmt: skip
    color, _ = base_color(mesh, np.array([0]), np.array([[1.0, 0, 0]]))
    assert color[0].tolist() == pytest.approx([[1, 0, 0], [0, 0, 1]][channel], abs=1e-4)
    assert (mesh.samplers[0].wrap_u, mesh.samplers[0].wrap_v) == ("clamp", "repeat")
    assert mesh.warnings == []


def test_normals_are_of_corners(tmp_path, sided_box):
    normals = source("gn", [[0, 0, 1], [0, 1, 0]])
    faces = [
        [index for vertex in face for index in (vertex, n % 2)] for n, face in enumerate(sided_box.faces)
    ]
    body = triangles("g", faces, '<input semantic="NORMAL" source="#gn" offset="1"/>')
    mesh = load(tmp_path, document(geometry("g", sided_box.vertices, body, more=normals), node("g")))
    np.testing.assert_allclose(mesh.shading[:, 0], [[0, 0, 1], [0, 1, 0]] * 6)


@pytest.mark.parametrize(("change", "warning"), [
    (("-0.5", "-1.#IND"), "left out NORMAL"),
    (('count="2" stride', 'count="1" stride'), "no value for some corners"),
])  # fmt: skip
def test_a_damaged_column_costs_itself(tmp_path, sided_box, summary, change, warning):
    normals = source("gn", [[0, 0, 1], [0, -0.5, 0]]).replace(*change)
    faces = [
        [index for vertex in face for index in (vertex, n % 2)] for n, face in enumerate(sided_box.faces)
    ]
    body = triangles("g", faces, '<input semantic="NORMAL" source="#gn" offset="1"/>')
    mesh = load(tmp_path, document(geometry("g", sided_box.vertices, body, more=normals), node("g")))
    assert summary(mesh)[:3] == BOX
    assert warning in mesh.warnings[0]


def test_damaged_positions_cost_their_geometry(tmp_path, sided_box, box, summary):
    broken = geometry("h", [[7, 7, 7]], triangles("h", [[0, 0, 0]])).replace("7 7 7", "7 x 7")
    mesh = load(tmp_path, document(box + broken, node("h", name="o") + node("g")))
    assert summary(mesh) == (*BOX, 1)
    assert mesh.warnings[0].startswith("left out triangles of geometry 'h'")


def test_faces_are_counted_against_those_that_the_file_claims(tmp_path, sided_box, summary):
    body = triangles("g", [*sided_box.faces.tolist(), [0, 1, 99]], count=14)
    mesh = load(tmp_path, document(geometry("g", sided_box.vertices, body), node("g")))
    assert summary(mesh)[:3] == BOX
    assert mesh.warnings == [
        "claims 14 faces and holds 13: those were read",
        "left out 1 of 13 faces: they name vertices beyond the 24 there are",
    ]


def test_a_document_without_a_scene_is_read_with_a_warning(tmp_path, box, summary):
    text = document(box, node("g"), scene=False)
    mesh = load(tmp_path, text)
    assert summary(mesh) == (*BOX, 1)
    assert mesh.warnings == ["names no scene: its 'vs' was read"]
    start, end = text.index("<library_visual"), text.index("</COLLADA>")
    mesh = load(tmp_path, text[:start] + text[end:])
    assert summary(mesh) == (*BOX, 1)
    assert "has no scene" in mesh.warnings[0]


def test_lines_and_curves_are_named(tmp_path, sided_box, summary):
    body = triangles("g", sided_box.faces) + triangles("g", [[0, 1]], tag="lines")
    curve = '<geometry id="s"><spline/></geometry>'
    shape = geometry("g", sided_box.vertices, body) + curve
    mesh = load(tmp_path, document(shape, node("g") + node("s", name="o")))
    assert summary(mesh)[:3] == BOX
    assert mesh.warnings == [
        "left out lines of geometry 'g': they are no surface", "left out geometry 's': it is no mesh"
    ]  # fmt: skip


def test_colliders_are_left_out_and_pistols_are_not(tmp_path, sided_box, box, summary):
    assert summary(load(tmp_path, document(box, node("g", name="USP"))))[:3] == BOX
    other = geometry("h", sided_box.vertices, triangles("h", sided_box.faces))
    mesh = load(tmp_path, document(box + other, node("g", name="wall") + node("h", name="UCX_wall_01")))
    assert summary(mesh)[:3] == BOX
    assert mesh.warnings == ["left out as colliders: UCX_wall_01"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: text[: len(text) // 2], "cut short"), (lambda text: "<svg/>", "its root is svg"),
    (lambda text: "no XML", "damaged"), (lambda text: "", "damaged"),
    (lambda text: "<!DOCTYPE x>" + text.partition("?>")[2], "entities"),
])  # fmt: skip
def test_damage_is_named(tmp_path, box, change, message):
    with pytest.raises(AssetError, match=message):
        load(tmp_path, change(document(box, node("g"))))


def test_bytes_of_another_encoding_cost_nothing_but_a_warning(tmp_path, box, summary):
    text = document(box, node("g", name="caf\xe9")).encode("latin-1")
    mesh = load(tmp_path, text)
    assert summary(mesh) == (*BOX, 1)
    assert "XML is damaged" in mesh.warnings[0]
