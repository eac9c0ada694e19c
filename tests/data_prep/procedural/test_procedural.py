"""The embedded data set: what its captions, splits, solids, colours and files promise."""

import csv
import itertools
import json
import struct
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import trimesh
from pydantic import ValidationError

from data_prep.formats.load import load_mesh
from data_prep.procedural.dataset import (
    COLOURS,
    COLUMNS,
    FAMILIES,
    JITTER,
    ProceduralConfig,
    generate,
    glb_bytes,
    make_asset,
    split_pairs,
)
from shapeloom.color import linear_to_srgb
from shapeloom.config import UserError

SMALL = ProceduralConfig(num_train=48, num_val=6, num_test=6, num_judge=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("procedural") / "assets"
    generate(SMALL, out)
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "captions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def drawn(family: str, num: int) -> list[trimesh.Scene]:
    colours = itertools.cycle(COLOURS)
    return [make_asset(family, next(colours), np.random.default_rng([7, i]))[0] for i in range(num)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_a_watertight_solid_wound_outward(family: str) -> None:
    for scene in drawn(family, 20):
        assert 100 <= sum(len(mesh.faces) for mesh in scene.geometry.values()) <= 3000
        for part, mesh in scene.geometry.items():
            assert mesh.is_watertight, part
            assert mesh.is_winding_consistent, part
            assert mesh.volume > 0, part


@pytest.mark.parametrize("family", FAMILIES)
def test_each_solid_has_volume_and_is_not_thinner_than_a_few_percent_of_the_object(family: str) -> None:
    for scene in drawn(family, 3):
        size = scene.extents.max()
        for part, mesh in scene.geometry.items():
            for solid in mesh.split(only_watertight=False):
                assert solid.volume > 0, part
                # 3.5%: tips, screens and bands that lie on something larger are a little below the usual 4%.
                assert solid.bounding_box_oriented.primitive.extents.min() > 0.035 * size, part


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_stand_upright_and_parameters_vary(family: str) -> None:
    extents = np.array([scene.extents / scene.extents.max() for scene in drawn(family, 8)])
    assert extents.std(axis=0).max() > 0.01
    assert all(scene.bounds[0, 2] < 0.3 for scene in drawn(family, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_main_colour_covers_most_of_the_surface(family: str) -> None:
    shares = []
    for i in range(12):
        scene, _, attributes = make_asset(family, "red", np.random.default_rng([3, i]))
        areas: Counter[bool] = Counter()
        for mesh in scene.geometry.values():
            srgb = linear_to_srgb(np.array(mesh.metadata["linear"]))
            areas[bool(np.abs(srgb - COLOURS["red"]).max() <= JITTER + 1e-4)] += mesh.area
        shares.append(areas[True] / areas.total())
        assert attributes["colour"] == "red"
    assert np.mean(shares) > 0.5


def test_captions_name_colour_and_family_and_differ(rows: list[dict[str, str]]) -> None:
    captions: dict[str, list[str]] = {}
    for row in rows:
        words = row["caption"].replace(",", "").split()
        assert row["colour"] in words
        assert row["category"] in words
        captions.setdefault(row["path"], []).append(row["caption"])
    for path, texts in captions.items():
        colour, family = Path(path).stem.split("_")[:2]
        assert f"{'an' if colour == 'orange' else 'a'} {colour} {family}" in texts
        assert len(set(texts)) == len(texts) >= 2


def test_the_first_caption_names_the_accent_and_its_parts() -> None:
    seen = 0
    for family, colour in itertools.product(FAMILIES, ("blue", "orange")):
        _, captions, attributes = make_asset(family, colour, np.random.default_rng(11))
        assert attributes["accent_colour"] != colour
        if attributes["accent_colour"]:
            seen += 1
            assert f"{attributes['accent_colour']} " in captions[0].split(" with ")[1]
            assert all(part in captions[0] for part in attributes["accent_parts"].split())
    assert seen > 10


def test_captions_read_as_english() -> None:
    texts = [make_asset("chair", "blue", np.random.default_rng(i))[1][0] for i in range(120)]
    assert any(text.startswith("a tall blue chair with ") for text in texts)
    assert any(text.endswith(" legs and armrests") for text in texts)
    assert not any("  " in text or " a orange" in text or text.endswith(",") for text in texts)


def test_accents_differ_from_the_main_colour_in_the_file() -> None:
    for i in range(40):
        scene, _, attributes = make_asset("chair", "green", np.random.default_rng(i))
        if attributes["accent_colour"]:
            part = scene.geometry[attributes["accent_parts"].split()[0]]
            distance = np.abs(
                np.array(part.metadata["linear"]) - scene.geometry["body"].metadata["linear"]
            ).max()
            assert distance > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_held_out_pairs_leave_every_family_and_colour_well_represented(seed: int) -> None:
    config = ProceduralConfig(seed=seed)
    seen, held = split_pairs(config)
    assert sorted(seen + held) == sorted(product(COLOURS, FAMILIES))
    assert len(held) == round(0.1 * len(FAMILIES) * len(COLOURS))
    # An even share, rounded up: 26 pairs over 24 families and 11 colours.
    assert max(Counter(family for _, family in held).values()) <= 2
    assert max(Counter(colour for colour, _ in held).values()) <= 3


def test_splits_show_the_pairs_that_they_should(rows: list[dict[str, str]]) -> None:
    seen, held = map(set, split_pairs(SMALL))
    pairs: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        pair = (row["colour"], row["category"])
        pairs.setdefault(row["split"], set()).add(pair)
        assert row["group"] == ("judge " if row["split"] == "judge" else "") + " ".join(pair)
    assert set(pairs) == {"train", "val", "test", "judge"}
    assert pairs["train"] | pairs["val"] <= seen
    assert pairs["test"] <= held
    for split in ("train", "judge"):
        assert {family for _, family in pairs[split]} == set(FAMILIES)
        assert {colour for colour, _ in pairs[split]} == set(COLOURS)
    assert pairs["judge"] & held


def test_counts_are_the_configs(folder: Path, rows: list[dict[str, str]]) -> None:
    splits = (
        dict.fromkeys(row["path"] for row in rows),
        Counter({row["path"]: row["split"] for row in rows}.values()),
    )
    assert splits[1] == {"train": 48, "val": 6, "test": 6, "judge": 24}
    assert set(splits[0]) == {path for path in contents(folder) if path.endswith(".glb")}
    assert tuple(rows[0]) == COLUMNS


def test_the_same_config_gives_the_same_bytes_and_no_two_files_are_alike(
    folder: Path, tmp_path: Path
) -> None:
    generate(SMALL, tmp_path / "again")
    first, again = contents(folder), contents(tmp_path / "again")
    assert first == again
    assert len(set(first.values())) == len(first)


def test_another_seed_gives_other_assets() -> None:
    files = {glb_bytes(make_asset("car", "red", np.random.default_rng(seed))[0]) for seed in range(5)}
    assert len(files) == 5


def test_generating_again_changes_nothing_and_another_config_is_refused(tmp_path: Path) -> None:
    out, config = tmp_path / "assets", ProceduralConfig(num_train=2, num_val=0, num_test=0, num_judge=0)
    generate(config, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    generate(config, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    with pytest.raises(UserError, match="something other than this procedural set"):
        generate(config.model_copy(update={"seed": 1}), out)


def test_an_interrupted_run_leaves_no_folder_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "assets", ProceduralConfig(num_train=3, num_val=0, num_test=0, num_judge=0)
    with monkeypatch.context() as patch:
        patch.setattr(
            "data_prep.procedural.dataset.write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            generate(config, out)
    assert not out.exists()
    generate(config, out)
    assert [path.name for path in tmp_path.iterdir()] == ["assets"]


@pytest.mark.parametrize("colour", COLOURS)
def test_files_load_back_with_their_srgb_colour_and_upright(colour: str, tmp_path: Path) -> None:
    scene, _, _ = make_asset("bottle", colour, np.random.default_rng(5))
    path = tmp_path / "bottle.glb"
    path.write_bytes(glb_bytes(scene))
    mesh = load_mesh(path)
    lowest = mesh.tint[np.argsort(mesh.triangles[:, :, 2].mean(axis=1))[:20]]  # the bottle's own glass
    # Float colours: nothing is lost but the jitter.
    assert np.abs(linear_to_srgb(lowest) - COLOURS[colour]).max() <= JITTER + 1e-4
    np.testing.assert_allclose(mesh.vertices.min(axis=0), scene.bounds[0], atol=1e-6)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), scene.bounds[1], atol=1e-6)


def test_objects_face_minus_y_which_is_gltfs_front(tmp_path: Path) -> None:
    scene, _, _ = make_asset("snowman", "white", np.random.default_rng(0))
    assert scene.geometry["nose"].bounds[0, 1] < scene.geometry["body"].bounds[0, 1] / 2
    loaded = trimesh.load(trimesh.util.wrap_as_stream(glb_bytes(scene)), file_type="glb")
    place, name = loaded.graph["nose"]
    nose = trimesh.transform_points(loaded.geometry[name].vertices, place)
    assert nose[:, 2].max() > 0.5 * loaded.bounds[1, 2]  # glTF: the front is +Z
    assert loaded.extents[1] == pytest.approx(scene.extents[2], rel=1e-5)  # and +Y is up


def test_a_file_holds_one_node_and_material_a_part_and_nothing_private() -> None:
    scene, _, _ = make_asset("chair", "red", np.random.default_rng(1))
    data = glb_bytes(scene)
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    assert {material["name"] for material in tree["materials"]} == set(scene.geometry)
    assert all("extras" not in mesh for mesh in tree["meshes"])
    assert {node.get("name") for node in tree["nodes"]} >= set(scene.geometry)


def test_white_is_not_the_white_of_a_background() -> None:
    assert max(COLOURS["white"]) + JITTER < 0.97


def test_colours_are_far_apart() -> None:
    for one, other in itertools.combinations(COLOURS.values(), 2):
        # Ten jitters: no two named colours can be mistaken for one another.
        assert np.linalg.norm(np.subtract(one, other)) > 0.25


def test_unknown_names_and_impossible_configs_are_refused() -> None:
    with pytest.raises(UserError, match=r"no family 'spoon'.*chair"):
        make_asset("spoon", "red", np.random.default_rng(0))
    with pytest.raises(UserError, match=r"no colour 'mauve'.*red"):
        make_asset("chair", "mauve", np.random.default_rng(0))
    with pytest.raises(ValidationError, match="held_out_fraction"):
        ProceduralConfig(held_out_fraction=0.0)
    assert not split_pairs(ProceduralConfig(held_out_fraction=0.0, num_test=0))[1]
