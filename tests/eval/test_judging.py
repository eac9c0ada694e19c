"""Any folder can be judged: what is good is called good, what is spoilt is called worse, failures count."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.experiments.melted import WAYS, write_folders
from data_prep.procedural.dataset import ProceduralConfig, generate
from eval import compare, judging
from eval.backbones import BackboneConfig
from eval.compare import read_results
from eval.folders import Item, References, read_outputs, read_references
from eval.judging import JudgingConfig, judge
from eval.looks import look, make_task, read_look
from eval.point_networks import PointNet2
from shapeloom.config import UserError
from shapeloom.shards import finish_dataset, write_shard
from shapeloom.storage import file_digest, parse_path

NUM = 12
CONFIG = JudgingConfig.model_validate(
    {
        "look": {"views": 3, "size": 64, "points": 128, "surface_points": 1000},
        "measures": {"draws": 60, "neighbours": 3, "set_size": NUM},
        "pictures": 2, "workers": 0,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects of several families, as GLB files with captions."""
    folder = tmp_path_factory.mktemp("made") / "assets"
    generate(ProceduralConfig(num_train=NUM, num_val=0, num_test=0, num_judge=0), folder)
    return folder


@pytest.fixture(scope="module")
def judged(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """True objects and spoilt ones, judged against themselves."""
    out = tmp_path_factory.mktemp("judging") / "judged"
    items = [item for item in read_outputs(assets, None, References([], [], assets)) if item.mesh is not None]
    chosen = {name: WAYS[name] for name in ("true", "smoothed_100", "recoloured", "swapped")}
    folders = write_folders(items, out.with_name("outputs"), chosen)
    (folders[2] / "000.ply").unlink()  # missing
    (folders[2] / "001.ply").write_bytes(b"no mesh")
    judge(folders, out, CONFIG.model_copy(update={"reference": str(assets)}))
    return out


def measure(judged: Path, system: str, name: str) -> float:
    found = read_results(judged).content["systems"][system]["measures"]
    return next(each["value"] for key, each in found.items() if key.startswith(name))


def test_true_objects_score_as_such(judged: Path) -> None:
    assert measure(judged, "true", "failed") == 0
    assert measure(judged, "true", "fscore_0.01") > 0.99
    assert measure(judged, "true", "normals_off") < 0.02
    assert measure(judged, "true", "precision") == measure(judged, "true", "coverage") == 1


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("smoothed_100", "normals_off"),
        ("smoothed_100", "chamfer"),
        ("smoothed_100", "frechet/normals"),
        ("recoloured", "frechet/shaded"),
        ("swapped", "frechet/normals"),
        ("swapped", "mmd_cd"),
        ("swapped", "chamfer"),
    ],
)
def test_spoiling_raises_the_measure_named_for_it(judged: Path, system: str, name: str) -> None:
    assert measure(judged, system, name) > measure(judged, "true", name)
    table = json.loads((judged / "table.json").read_text())
    row = next(row for key, row in table.items() if key.startswith(name))
    assert row[system]["verdict"] == "worse"


def test_outputs_that_are_missing_or_broken_are_failures_with_a_reason(judged: Path) -> None:
    system = read_results(judged).content["systems"]["recoloured"]
    assert system["measures"]["failed"]["value"] == pytest.approx(2 / NUM)
    assert system["failures"].keys() == {"000.ply", "001.ply"}
    assert "missing" in system["failures"]["000.ply"]
    assert system["measures"]["fscore_0.05"]["num"] == NUM  # nothing is left out of a mean
    assert "no such file" in (judged / "report.html").read_text()


def test_a_second_run_looks_at_nothing_and_says_the_same(
    judged: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (judged / "table.json").read_text()
    monkeypatch.setattr(judging, "look", lambda task: pytest.fail(f"{task.item.name} was looked at again"))
    folders = [
        judged.with_name("outputs") / name for name in ("true", "smoothed_100", "recoloured", "swapped")
    ]
    judge(folders, judged, CONFIG.model_copy(update={"reference": str(assets)}))
    assert (judged / "table.json").read_text() == before


def test_runs_of_one_protocol_are_compared_and_others_refused(
    judged: Path, assets: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"reference": str(assets), "cache": judged / "cache"})
    judge([judged.with_name("outputs") / "true"], tmp_path / "a", config)
    judge([judged.with_name("outputs") / "swapped"], tmp_path / "b", config)
    compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both")])
    text = (tmp_path / "both" / "table.md").read_text()
    assert "| | true | held-out assets | swapped |" in text
    line = next(line for line in text.split("\n") if line.startswith("| Chamfer"))
    assert line.endswith("° |")
    measures = config.measures.model_copy(update={"neighbours": 2})
    judge(
        [judged.with_name("outputs") / "true"],
        tmp_path / "c",
        config.model_copy(update={"measures": measures}),
    )
    with pytest.raises(UserError, match=r"measures\.neighbours is 3 and 2"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "c"), "--out", str(tmp_path / "d")])


def test_a_protocol_s_digest_of_the_reference_is_held(assets: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"reference": str(assets), "reference_digest": "another"})
    with pytest.raises(UserError, match="reference with the digest another"):
        judge([assets], tmp_path, config)


def test_a_reference_may_be_data_at_a_url_whose_assets_lie_here(tmp_path: Path) -> None:
    data = parse_path("memory://judging/data")
    names = [("a.obj", "val"), ("b.obj", "train")]
    samples = [
        {"__key__": name[0], "json": {"split": split, "captions": [f"a {name}"], "path": name}}
        for name, split in names
    ]
    write_shard(data / "shards" / "000000.tar", samples)
    finish_dataset(data, kind="assets", facts={})
    (data / "config.yaml").write_text(f"assets: {tmp_path}")
    for name, _ in names:
        (tmp_path / name).write_text("v 0 0 0")
    found = read_references(data, ["val"], most=5, seed=0)
    assert [item.mesh for item in (*found.held_out, *found.training)] == [tmp_path / n for n, _ in names]
    with pytest.raises(UserError, match=r"memory://judging/nothing is no finished data set"):
        read_references(parse_path("memory://judging/nothing"), ["val"], most=5, seed=0)
    data.fs.store.clear()


def test_a_reference_is_turned_as_its_data_were(tmp_path: Path) -> None:
    (tmp_path / "bar.obj").write_text(
        "v 0 0 0\nv 4 0 0\nv 4 1 0\nv 0 0 2\nf 1 2 3\nf 1 4 2\nf 1 3 4\nf 2 4 3\n"
    )
    quarter = [0, -1, 0, 1, 0, 0, 0, 0, 1]  # x becomes y
    samples = [
        {
            "__key__": split,
            "json": {"split": split, "captions": ["a bar"], "path": "bar.obj", "rotation": turn},
        }
        for split, turn in (("val", quarter), ("train", None))
    ]
    data = tmp_path / "data"
    write_shard(data / "shards" / "000000.tar", samples)
    finish_dataset(data, kind="assets", facts={})
    (data / "config.yaml").write_text(f"assets: {tmp_path}\nup: z")
    found = read_references(data, ["val"], most=1, seed=0)
    places, longest = [], []
    for item in (*found.held_out, *found.training, replace(found.training[0], up="y")):
        task = make_task(item, CONFIG.look, (), tmp_path, is_guarded=False)
        look(task)
        places.append(task.path)
        longest.append(int(np.ptp(read_look(task.path).points, axis=0).argmax()))
    assert longest == [1, 0, 0] and len(set(places)) == 3
    (tmp_path / "list.csv").write_text("path,prompt,truth\nbar.obj,a bar,bar.obj\n")
    (item,) = read_outputs(tmp_path, tmp_path / "list.csv", found)
    assert item.truth is not None and (item.truth.up, item.up) == ("z", None)
    assert np.ptp(read_look(places[2]).points, axis=0).argmin() == 2  # its y, which is up now


def test_pictures_alone_are_judged_by_pictures(judged: Path, assets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with (folder / "prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "prompt"])
        for number in range(NUM):
            writer.writerow([f"{number}", f"a thing {number}"])
            colours = np.full((50, 50, 3), 20 * number, np.uint8)
            colours[10:40, 10:40] = 255 - 20 * number
            Image.fromarray(colours).save(folder / f"{number}.png")
    config = CONFIG.model_copy(update={"reference": str(assets), "cache": judged / "cache"})
    judge([folder], tmp_path / "out", config)
    found = read_results(tmp_path / "out").content["systems"]["pictures"]["measures"]
    kinds = {key.split("/")[1] for key in found if "/" in key}
    assert kinds == {"shaded"} and "mmd_cd" not in found and found["failed"]["value"] == 0


def test_networks_of_points_are_a_row_of_their_own_and_none_without_a_file(
    assets: Path, tmp_path: Path
) -> None:
    for name in ("reference", "outputs"):
        (tmp_path / name).mkdir()
    for number, file in enumerate(sorted(assets.rglob("*.glb"))[:3]):
        shutil.copy(file, tmp_path / "reference" / f"{number}.glb")
        shutil.copy(file, tmp_path / "outputs" / f"{number}.glb")
    (tmp_path / "outputs" / "2.glb").write_bytes(b"no mesh")
    weights = tmp_path / "pointnet.pt"
    torch.manual_seed(0)
    torch.save({"model_state_dict": PointNet2().state_dict()}, weights)
    given = BackboneConfig(kind="pointnet2", file=str(weights), sha256=file_digest(weights))
    config = CONFIG.model_copy(
        update={
            "reference": str(tmp_path / "reference"),
            "backbones": [given, BackboneConfig(kind="uni3d")],
            "measures": CONFIG.measures.model_copy(update={"draws": 20}),
        }
    )
    judge([tmp_path / "outputs"], tmp_path / "out", config)
    content = read_results(tmp_path / "out").content
    found = content["systems"]["outputs"]["measures"]
    networks = {key.split("/", 1)[1] for key in found if "/" in key}
    assert networks == {"points/PointNet++ (P-FID)"}  # it sees no pictures
    assert found["frechet/points/PointNet++ (P-FID)"]["num"] == 3  # the broken one counts
    assert content["not_computed"] == ["uni3d: no file of its weights was named"]
    assert "P-FID" in (tmp_path / "out" / "table.md").read_text()
    torch.save(PointNet2().state_dict(), tmp_path / "another.pt")
    other = {"file": str(tmp_path / "another.pt"), "sha256": file_digest(tmp_path / "another.pt")}
    config = config.model_copy(update={"backbones": [given, given.model_copy(update=other)]})
    with pytest.raises(UserError, match=r"both PointNet\+\+ \(P-FID\)"):
        judge([tmp_path / "outputs"], tmp_path / "out", config)


def test_folders_with_unlike_prompts_are_no_table(tmp_path: Path, assets: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompts.csv").write_text(f"path,prompt\n0.glb,a {name}\n")
    with pytest.raises(UserError, match="a and b answer to different prompts"):
        judge(
            [tmp_path / "a", tmp_path / "b"],
            tmp_path / "out",
            CONFIG.model_copy(update={"reference": str(assets)}),
        )


def test_a_list_finds_files_without_their_suffix_and_folders_of_pictures(
    tmp_path: Path, assets: Path
) -> None:
    shutil.copy(next(assets.rglob("*.glb")), tmp_path / "one.v2.glb")
    (tmp_path / "two").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "two" / "1.png")
    (tmp_path / "prompts.csv").write_text("path,prompt\none.v2,a\ntwo,b\nthree.glb,c\n")
    one, two, three = read_outputs(tmp_path, None, References([], [], tmp_path))
    assert one.mesh == tmp_path / "one.v2.glb" and two.pictures == (tmp_path / "two" / "1.png",)
    assert three == Item("three.glb", "c", tmp_path)  # no mesh, no pictures


def test_a_list_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("file,text\na.glb,a chair\n")
    with pytest.raises(UserError, match="needs the columns path and prompt"):
        read_outputs(tmp_path, None, References([], [], tmp_path))
