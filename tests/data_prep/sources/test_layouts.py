"""What paths say, in the layouts that collections of assets really have."""

from pathlib import Path

import pytest

from data_prep.build import listing_warnings
from data_prep.sources.find import NAMELESS, SplitFractions, find_sources
from data_prep.sources.layouts import names_of, tells

UID = "3f2a10c4b5d94e7fa1b2c3d4e5f60718"


@pytest.mark.parametrize(("path", "captions", "category", "group"), [
    ("packs/Tree_02.glb", ["tree", "tree, packs"], "packs", "tree"),
    ("packs/tree-3 (1).glb", ["tree", "tree, packs"], "packs", "tree"),
    ("CommonTree_Dead_5.glb", ["common tree dead"], "", "commontree_dead"),
    ("RoundTable.obj", ["round table"], "", "roundtable"),
    # Google Scanned Objects, Sketchfab, zips of them
    ("Toy_Car/meshes/model.obj", ["toy car"], "", "toy_car"),
    ("red_robot_cat/scene.gltf", ["red robot cat"], "", "red_robot_cat"),
    ("Blue_Vase.zip/source/Untitled-2.obj", ["blue vase"], "", "blue_vase"),
    ("cars/Toy_Car/textured mesh (1).ply", ["toy car", "toy car, cars"], "cars", "toy_car"),
    # ShapeNet, ModelNet, Toys4K, YCB
    (f"03001627/{UID}/models/model_normalized.obj", ["chair"], "chair", UID),
    (f"mug/{UID}/models/model_normalized.obj", ["mug"], "mug", UID),
    ("chair/train/chair_0012.off", ["chair"], "chair", "chair"),
    ("train/0012.off", ["train"], "train", "0012"),
    ("apple/apple_003/mesh.obj", ["apple"], "apple", "apple"),
    ("003_cracker_box/google_16k/textured.obj", ["cracker box"], "", "003_cracker_box"),
    # Objaverse, Thingi10K, ABO, 3D-FUTURE
    (f"glbs/000-023/{UID}.glb", [], "", UID),
    ("raw_meshes/100026.stl", [], "", "100026"),
    ("3dmodels/original/S/B07B4MJ2VS.glb", [], "", "b07b4mj2vs"),
    ("12345678-90ab-4cde-8f01-234567890abc/raw_model.obj", [], "", "12345678-90ab-4cde-8f01-234567890abc"),
    ("model.obj", [], "", "model"),
    # no ids
    ("facade1.glb", ["facade"], "", "facade"),
    ("a/decade.glb", ["decade"], "", "decade"),
])  # fmt: skip
def test_names_that_say_nothing_are_passed_over(path, captions, category, group):
    names = names_of(path)
    assert (names.captions, names.category, names.group) == (captions, category, group)


def test_titles_that_say_nothing_are_known():
    assert not any(map(tells, ["", "Untitled", "Scene (3)", "model_v2 FINAL", "Textured Mesh", "0123", UID]))
    assert all(map(tells, ["Old Mug 0", "a", "scene of a crime", "\u6905\u5b50", "ModelT", "R2D2"]))


def box(x: float) -> str:
    corners = "".join(f"v {a * x} {b} {c}\n" for a in (0, 1) for b in (0, 1) for c in (0, 1))
    return corners + "f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n"


def folder(root: Path, paths: list[str]) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(box(1 + number))
    return root


def test_ten_folders_are_ten_groups(tmp_path):
    things = ["car", "vase", "boat", "tower", "lamp", "fish", "chair", "table", "robot", "bridge"]
    sources, _ = find_sources(folder(tmp_path, [f"{t}/meshes/model.obj" for t in things]), SplitFractions())
    assert {(source.group, *source.captions) for source in sources} == {(thing, thing) for thing in things}


def test_absent_names_are_said(tmp_path):
    sources, _ = find_sources(folder(tmp_path, ["1/mesh.obj", "2/mesh.obj", "3/cup.obj"]), SplitFractions())
    assert [source.captions for source in sources] == [[NAMELESS], [NAMELESS], ["cup"]]
    assert "has no caption" in sources[0].warnings[0]
    assert "2 of 3 assets have no caption" in listing_warnings(sources, SplitFractions())[-1]


def test_a_split_that_is_empty_or_holds_everything_is_said_before_the_work(tmp_path):
    sources, _ = find_sources(folder(tmp_path, [f"cup_{n}.obj" for n in range(3)]), SplitFractions())
    (warning,) = listing_warnings(sources, SplitFractions())
    where = f"Everything, 3 assets in 1 group, is in the split {sources[0].split}; splits go by group"
    assert warning.startswith(where)
    only = sources[0].split
    shares = dict.fromkeys(("train", "val", "test", "judge"), 0.0) | {only: 1.0}
    assert listing_warnings(sources, SplitFractions(**shares)) == []  # as it was asked for
    (tmp_path / "captions.csv").write_text("path,split\ncup_0.obj,train\ncup_1.obj,test\ncup_2.obj,judge\n")
    sources, _ = find_sources(tmp_path, SplitFractions())
    (warning,) = listing_warnings(sources, SplitFractions())
    assert warning.startswith("The split val is empty, with 3 assets in 1 group;")
