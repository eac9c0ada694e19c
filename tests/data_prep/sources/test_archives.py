"""Archives, libraries, manifests and Objaverse's cache: what they hold, what may be read, clear errors."""

import csv
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import trimesh

from data_prep.failures import AssetError
from data_prep.formats.archives import read_member
from data_prep.formats.files import Files
from data_prep.formats.load import load_mesh
from data_prep.sources.find import SplitFractions, find_sources
from data_prep.sources.listings import read_cap3d
from data_prep.sources.naming import clean_caption
from data_prep.sources.objaverse_cache import ObjaverseConfig, find_objaverse
from data_prep.sources.sweethome3d import parse_properties
from shapeloom.config import UserError

FRACTIONS = SplitFractions()
MTL = "newmtl m\nKd 1 0 0\n"


def box(**options) -> str:
    return "mtllib a.mtl\nusemtl m\n" + trimesh.creation.box(**options).export(file_type="obj", header=None)


def archive(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def test_archive_is_a_folder_of_its_members(tmp_path):
    archive(
        tmp_path / "models.zip", {"./chairs/Old_Chair_2.obj": box(), "chairs/a.mtl": MTL, "readme.txt": "hi"}
    )
    (tmp_path / "captions.csv").write_text("path,caption\nmodels.zip/chairs/Old_Chair_2.obj,a red chair\n")
    (source,), failures = find_sources(tmp_path, FRACTIONS)
    assert failures == []
    assert (source.path, source.captions) == ("models.zip/chairs/Old_Chair_2.obj", ["a red chair"])
    assert (source.group, source.category) == ("old_chair", "chairs")
    assert load_mesh(tmp_path / source.path).tint[0, 0].tolist() == [1, 0, 0]
    alone, _ = find_sources(tmp_path / "models.zip", FRACTIONS)
    assert alone[0].sha256 == source.sha256


def test_names_that_lead_out_of_an_archive_are_failures(tmp_path):
    archive(tmp_path / "a.zip", {"../evil.obj": box(), "/abs.obj": box(), "ok.obj": box(), "in.zip": b""})
    sources, failures = find_sources(tmp_path, FRACTIONS)
    assert [s.path for s in sources] == ["a.zip/ok.obj"]
    assert sorted(f.reason for f in failures) == ["outside_folder", "outside_folder", "unsupported"]
    with pytest.raises(FileNotFoundError, match="outside"):
        Files(tmp_path / "a.zip/ok.obj", 1 << 20).get("../evil.obj")


def test_zip_bombs_and_damaged_archives_are_failures(tmp_path):
    archive(tmp_path / "bomb.zip", {"a.obj": bytes(32 << 20)})
    (tmp_path / "cut.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:-30])
    sources, failures = find_sources(tmp_path, FRACTIONS)
    assert sources == []
    assert [(f.path, f.reason) for f in failures] == [
        ("cut.zip", "unreadable"),
        ("bomb.zip/a.obj", "too_large"),
    ]
    with pytest.raises(AssetError, match="the limit is 1"):
        read_member(tmp_path / "bomb.zip", "a.obj", 1 << 20)


def test_archive_without_assets_is_a_failure_and_not_passed_over(tmp_path):
    archive(tmp_path / "texts.zip", {"readme.txt": "hi"})
    archive(tmp_path / "none.sh3f", {"PluginFurnitureCatalog.properties": "name=None\n"})
    _, failures = find_sources(tmp_path, FRACTIONS)
    assert [(f.path, f.reason) for f in failures] == [("none.sh3f", "empty"), ("texts.zip", "empty")]


def test_links_and_other_odd_files_are_failures_and_never_read(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.obj").write_text(box())
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "link.obj").symlink_to(outside / "a.obj")
    (assets / "folder").symlink_to(outside)
    (assets / "circle.obj").symlink_to("circle.obj")
    (assets / "a_folder.glb").mkdir()
    (assets / "good.obj").write_text(box())
    sources, failures = find_sources(assets, FRACTIONS)
    assert [s.path for s in sources] == ["good.obj"]
    assert {f.path: f.reason for f in failures} == {
        "link.obj": "outside_folder", "folder": "link", "circle.obj": "missing",
    }  # fmt: skip


# ---------------------------------------------------------------- manifests


def write_manifest(folder: Path, kind: str, rows: list[dict[str, str]]) -> Path:
    file = folder / f"list.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest_lists_the_assets(tmp_path, kind):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.obj").write_text(box(extents=(1, 2, ord(name))))
    rows = [
        {"path": "a.obj", "caption": "a tall box", "licence": "CC0", "id": "x1", "colour": "red"},
        {"path": "a.obj", "caption": "a box", "licence": "", "id": "", "colour": ""},
        {"path": "c.obj", "caption": "", "licence": "", "id": "", "colour": ""},
        {"path": "lost.obj", "caption": "", "licence": "", "id": "", "colour": ""},
        {"path": "../out.obj", "caption": "", "licence": "", "id": "", "colour": ""},
    ]
    sources, failures = find_sources(write_manifest(tmp_path, kind, rows), FRACTIONS)
    assert [s.path for s in sources] == ["a.obj", "c.obj"]
    assert (sources[0].captions, sources[0].licence) == (["a tall box", "a box"], "CC0")
    assert (sources[0].attributes, sources[0].provenance) == (
        {"colour": "red"},
        {"source": "manifest", "id": "x1"},
    )
    assert {f.path: f.reason for f in failures} == {"lost.obj": "missing", "../out.obj": "outside_folder"}


def test_manifest_errors_name_row_and_column(tmp_path):
    file = write_manifest(tmp_path, "parquet", [{"path": "a.obj", "split": "training"}])
    with pytest.raises(UserError, match="line 1: split 'training'"):
        find_sources(file, FRACTIONS)
    with pytest.raises(UserError, match="no column `path`; its columns are: file"):
        find_sources(write_manifest(tmp_path, "csv", [{"file": "a.obj"}]), FRACTIONS)
    with pytest.raises(UserError, match="line 2: column `path` is empty"):
        find_sources(write_manifest(tmp_path, "csv", [{"path": " ", "caption": "x"}]), FRACTIONS)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        find_sources(tmp_path / "bad.parquet", FRACTIONS)


# ---------------------------------------------------------------- Sweet Home 3D

CATALOGUE = (
    "# a library\nname=Test catalog\nlicense=CC-BY 3.0 \xa9 Caf\xe9\n\n"
    "id#1=T#sofa\nname#1=Sofa 2\ncategory#1=Living room\ntags#1=Test, Seat, Sofa 2\ncreator#1=Ann\n"
    "model#1=/t/sofa/sofa.obj\nmodelRotation#1=1 0 0 0 0 1 0 -1 0\n"
    "id#2=T#lost\nname#2=Lost\nmodel#2=/t/lost.obj\nid#3=T#none\nname#3=None\n"
)


def test_library_keeps_words_licence_and_rotation(tmp_path):
    members = {
        "PluginFurnitureCatalog.properties": CATALOGUE.encode("latin-1"),
        "t/sofa/sofa.obj": box(extents=(1, 2, 3)), "t/sofa/a.mtl": MTL, "t/not_listed.obj": box(),
    }  # fmt: skip
    (source,), failures = find_sources(archive(tmp_path / "test.sh3f", members), FRACTIONS)
    assert source.captions == ["sofa 2", "sofa 2, living room", "sofa 2, seat"]
    assert (source.licence, source.category, source.group) == (
        "CC-BY 3.0 \xa9 Caf\xe9",
        "living room",
        "sofa",
    )
    assert source.provenance == {
        "source": "sweethome3d",
        "library": "Test catalog",
        "id": "T#sofa",
        "creator": "Ann",
    }
    assert sorted(f.reason for f in failures) == ["missing", "unreadable"]
    # +Y up and turned by the catalogue: z -> y, then y -> z.
    mesh = load_mesh(tmp_path / source.path, rotation=source.rotation)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), [1, 2, 3])


def test_java_properties_are_read_with_their_escapes():
    text = "a=1\n! no\n  b : two\\\n   more\nc\\ d=x\\u00e9\\ty\nempty=\n"
    assert parse_properties(text) == {"a": "1", "b": "twomore", "c d": "x\u00e9\ty", "empty": ""}


# ---------------------------------------------------------------- Objaverse


@pytest.fixture
def cache(tmp_path) -> Path:
    """A filled cache of three objects, laid out as the package has it."""
    root = tmp_path / "cache/hf-objaverse-v1"
    paths = {f"uid{n}": f"glbs/000-000/uid{n}.glb" for n in range(3)}
    annotations = {
        uid: {"name": f"Old Mug {n}", "license": "by", "tags": [{"name": "cup"}],
              "categories": [{"name": "food"}], "user": {"username": "ann"}, "viewerUrl": f"https://x/{uid}"}
        for n, uid in enumerate(paths)
    }  # fmt: skip
    for name, content in {
        "object-paths": paths, "metadata/000-000": annotations, "lvis-annotations": {"mug": ["uid0", "uid2"]},
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(root / f"{name}.json.gz", "wt") as stream:
            json.dump(content, stream)
    (root / "glbs/000-000").mkdir(parents=True)
    for n, path in enumerate(paths.values()):
        trimesh.creation.box(extents=(1, 1, n + 1)).export(root / path)
    return tmp_path / "cache"


def test_objaverse_comes_from_its_cache_with_cap3d_captions(cache, tmp_path):
    (tmp_path / "uids.txt").write_text("uid1\nnobody\nuid1\n")
    (tmp_path / "cap3d.csv").write_text('uid1,"a mug, blue"\nuid7,else\n')
    config = ObjaverseConfig(
        uids=tmp_path / "uids.txt", categories=["mug"], captions=tmp_path / "cap3d.csv", cache=cache
    )
    sources, failures = find_objaverse(config, FRACTIONS)
    assert [f"{s.path} {s.category}" for s in sources] == [
        "glbs/000-000/uid0.glb mug", "glbs/000-000/uid1.glb food", "glbs/000-000/uid2.glb mug",
    ]  # fmt: skip
    assert sources[1].captions == ["a mug, blue"]
    assert sources[0].captions == ["Old Mug 0", "Old Mug 0, cup"]
    assert {s.group for s in sources} == {"old mug"}
    assert sources[0].licence == "by"
    assert sources[0].provenance == {
        "source": "objaverse", "id": "uid0", "creator": "ann", "url": "https://x/uid0", "title": "Old Mug 0",
    }  # fmt: skip
    assert [(f.path, f.reason) for f in failures] == [("nobody", "missing")]


def test_objaverse_choices_that_make_no_sense_are_user_errors(cache, tmp_path):
    for config, message in (
        (ObjaverseConfig(cache=cache), "Name the objects"),
        (ObjaverseConfig(cache=cache, categories=["muk"]), "muk are no LVIS categories"),
        (ObjaverseConfig(cache=cache, categories=["mug"], xl=True), "for XL"),
        (ObjaverseConfig(cache=cache, uids=tmp_path / "lost.txt"), "lost.txt can't be read"),
    ):
        with pytest.raises(UserError, match=message):
            find_objaverse(config, FRACTIONS)
    (tmp_path / "bad.csv").write_text("uid1,a mug, blue\n")
    with pytest.raises(UserError, match="line 1: expected UID,caption"):
        read_cap3d(tmp_path / "bad.csv")


def test_objaverse_xl_uses_files_that_are_there(tmp_path):
    for folder, rows in {
        "github": [
            ("https://github/a/b/blob/c/Red_Chair_2.stl", "aa", "stl"),
            ("https://github/a/x.fbx", "bb", "fbx"),
        ],
        "thingiverse": [], "smithsonian": [], "sketchfab": [],
    }.items():  # fmt: skip
        table = {
            "fileIdentifier": [r[0] for r in rows], "source": ["github"] * len(rows),
            "license": ["MIT"] * len(rows), "fileType": [r[2] for r in rows],
            "sha256": [r[1] for r in rows], "metadata": ["{}"] * len(rows),
        }  # fmt: skip
        schema = pyarrow.schema([(name, pyarrow.string()) for name in table])
        for file in (tmp_path / f"{folder}/{folder}.parquet", tmp_path / f"{folder}/{folder}-urls.parquet",
                     tmp_path / f"{folder}/object-metadata.parquet"):  # fmt: skip
            file.parent.mkdir(exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.table(table, schema), file)
    (tmp_path / "xl-files").mkdir()
    trimesh.creation.box().export(tmp_path / "xl-files/aa.stl")
    (tmp_path / "uids.txt").write_text("aa\nbb\ncc\n")
    (source,), failures = find_objaverse(
        ObjaverseConfig(uids=tmp_path / "uids.txt", cache=tmp_path, xl=True), FRACTIONS
    )
    assert (source.path, source.captions, source.licence) == ("aa.stl", ["red chair"], "MIT")
    assert source.provenance["url"].endswith("Red_Chair_2.stl")
    assert {f.path: f.reason for f in failures} == {"cc": "missing", "bb.fbx": "unsupported"}


# ---------------------------------------------------------------- captions


@pytest.mark.parametrize(("text", "expected"), [
    ("  a\tred\n chair ", "a red chair"),
    ("<p>a &quot;red&quot; <b>chair</b></p>", 'a "red" chair'),
    ("Old_Chair_v2.final.obj", "old chair"),
    ("see https://x.org/a?b=c a chair\u200b\x07", "see a chair"),
    ("a chair < 2 m > 1 m", "a chair < 2 m > 1 m"),
    ("12345", ""),
    ("\u6905\u5b50", "\u6905\u5b50"),
    ("word " * 200, ("word " * 80).strip()),
])  # fmt: skip
def test_captions_are_cleaned(text, expected):
    assert clean_caption(text) == expected
    assert clean_caption(expected) == expected
