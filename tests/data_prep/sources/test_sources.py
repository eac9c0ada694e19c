"""What is found in a folder, how it is named, and what a captions file says about it."""

import json
from pathlib import Path

import pytest

from data_prep.sources.find import (
    SplitFractions,
    content_digest,
    find_sources,
    split_of,
)
from shapeloom.config import UserError

FRACTIONS = SplitFractions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pack/Tree_1.glb", "pack/Tree_2.glb", "WaterBottle.OBJ", "pack/.hidden.glb", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def captions(folder: Path, text: str) -> Path:
    (folder / "captions.csv").write_text(text, encoding="utf-8")
    return folder


def test_without_captions_names_speak(folder):
    sources, failures = find_sources(folder, FRACTIONS)
    assert [s.path for s in sources] == ["WaterBottle.OBJ", "pack/Tree_1.glb", "pack/Tree_2.glb"]
    assert sources[0].captions == ["water bottle"]
    assert sources[1].captions == ["tree", "tree, pack"]
    assert (sources[1].group, sources[1].category) == ("tree", "pack")
    assert failures == []


def test_captions_file_fills_every_column(folder):
    captions(
        folder,
        "\ufeffpath,caption,category,licence,group,split,colour\n"
        'pack/Tree_1.glb,"an oak, old",plants,CC0,oaks,test,green\n'
        "pack/Tree_1.glb,a tree,,,,,\n"
        "./pack/Tree_1.glb,a tree,,,,,\n",
    )
    sources, failures = find_sources(folder, FRACTIONS)
    oak = next(s for s in sources if s.path == "pack/Tree_1.glb")
    assert oak.captions == ["an oak, old", "a tree"]
    assert (oak.category, oak.licence, oak.group, oak.split) == ("plants", "CC0", "oaks", "test")
    assert oak.attributes == {"colour": "green"}
    assert failures == []


def test_rows_that_name_nothing_are_recorded(folder):
    captions(folder, "path,caption\nlost.glb,a\n../secret.glb,b\nWaterBottle.OBJ,a, b\n")
    sources, failures = find_sources(folder, FRACTIONS)
    assert [(f.path, f.reason) for f in failures] == [
        ("WaterBottle.OBJ", "bad_row"),
        ("lost.glb", "missing"),
        ("../secret.glb", "missing"),
    ]
    assert "line 2" in failures[1].message
    assert len(sources) == 3


def test_second_file_of_one_content_is_recorded(folder):
    (folder / "pack/copy.glb").write_text("pack/Tree_2.glb")
    sources, failures = find_sources(folder, FRACTIONS)
    assert len(sources) == 3
    assert (failures[0].path, failures[0].reason) == ("pack/copy.glb", "duplicate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,caption\na.glb,a\n", "no column `path`.*file, caption"),
        ("", "no column `path`.*none"),
        ("path,caption,caption\na.glb,a,b\n", "more than one column caption"),
        ("path,split\nWaterBottle.OBJ,training\n", "line 2: split 'training'"),
    ],
)
def test_captions_file_that_makes_no_sense_is_a_user_error(folder, text, message):
    with pytest.raises(UserError, match=message):
        find_sources(captions(folder, text), FRACTIONS)


def test_captions_file_in_another_encoding_is_a_user_error(folder):
    (folder / "captions.csv").write_bytes("path,caption\na.glb,gr\u00fcn\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        find_sources(folder, FRACTIONS)


def test_missing_and_empty_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_sources(tmp_path / "nowhere", FRACTIONS)
    with pytest.raises(UserError, match="holds no"):
        find_sources(tmp_path, FRACTIONS)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        find_sources(tmp_path / "file", FRACTIONS)


def test_fractions_that_do_not_add_up_are_a_user_error(folder):
    with pytest.raises(UserError, match="add up to 1"):
        find_sources(folder, SplitFractions(train=0.5))


def test_splits_follow_the_group_and_the_fractions():
    groups = [f"group {i}" for i in range(4000)]
    splits = [split_of(group, FRACTIONS) for group in groups]
    assert splits == [split_of(group, FRACTIONS) for group in groups]
    for name, share in FRACTIONS.model_dump().items():
        # Three standard deviations of a binomial share.
        assert splits.count(name) / 4000 == pytest.approx(share, abs=3 * (share * (1 - share) / 4000) ** 0.5)
    assert split_of("any", SplitFractions(train=0, val=0, test=1, judge=0)) == "test"


def test_content_covers_materials_and_textures_but_no_path(tmp_path):
    def asset(name: str, color: str, texture: bytes) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\n")
        (folder / "a.mtl").write_text(f"newmtl m\nKd {color}\nmap_Kd skin.png\n")
        (folder / "skin.png").write_bytes(texture)
        return content_digest(folder / "a.obj")

    digest = asset("one", "1 0 0", b"x")
    assert digest == asset("two", "1 0 0", b"x")
    assert len({digest, asset("three", "0 1 0", b"x"), asset("four", "1 0 0", b"y")}) == 3


def test_content_of_gltf_covers_its_buffers(tmp_path):
    digests = set()
    for data in (b"one", b"two"):
        (tmp_path / "my buffer.bin").write_bytes(data)
        (tmp_path / "a.gltf").write_text(json.dumps({"buffers": [{"uri": "my%20buffer.bin"}]}))
        digests.add(content_digest(tmp_path / "a.gltf"))
    assert len(digests) == 2
