"""The command line: what it writes, what it skips, what it refuses."""

import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import sampling.mesh
from sampling.__main__ import main
from sampling.album import Album, label_of
from sampling.config import SamplingConfig, load_pipeline
from sampling.pictures import contact_sheet, gif
from sampling.prompts import read_prompts
from shapeloom.config import UserError
from tests.small_pictures import save_disc


def records(out) -> list[dict]:
    return json.loads((out / "metadata.json").read_text())["samples"]


def test_every_object_gets_its_files_and_its_record(runs):
    main([*runs.arguments, "--prompt", "a red chair!", "--prompt", "a mug", "--num", "2", "--seed", "7"])
    found = records(runs.out)
    names = [record["name"] for record in found]
    assert names == [
        "000_a-red-chair_seed7", "001_a-red-chair_seed8", "002_a-mug_seed7", "003_a-mug_seed8"
    ]  # fmt: skip
    for record in found:
        assert sorted(record["files"]) == ["gif", "glb", "ply"]
        assert all((runs.out / name).stat().st_size > 0 for name in record["files"].values())
        assert record["inputs"]["prior"] == "the prior's digest"
        assert (record["steps"], record["guidance_scale"]) == (2, 3.0)
    meta = json.loads((runs.out / "meta.json").read_text())
    assert (meta["stage"], meta["status"], meta["num_objects"]) == ("sampling", "done", 4)
    with Image.open(runs.out / "contact_sheet.png") as sheet:
        # Each object's volume, mesh and bare surface, two objects a row.
        assert sheet.width == 2 * 3 * 256 and sheet.height > 2 * 256


def test_a_second_run_makes_only_what_is_missing(runs):
    main([*runs.arguments, "--prompt", "a mug", "--num", "2"])
    kept, lost = (runs.out / record["files"]["glb"] for record in records(runs.out))
    before, bytes_lost = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    main([*runs.arguments, "--prompt", "a mug", "--num", "2", "--prompt", "a chair"])
    assert kept.stat().st_mtime_ns == before
    # Alone in its batch it is the same object up to rounding, under the same name.
    assert abs(len(lost.read_bytes()) - len(bytes_lost)) < 0.05 * len(bytes_lost)
    assert [record["label"] for record in records(runs.out)] == ["a mug", "a mug", "a chair", "a chair"]
    stamp = (runs.out / "metadata.json").stat().st_mtime_ns
    main([*runs.arguments, "--prompt", "a mug"])
    assert (runs.out / "metadata.json").stat().st_mtime_ns == stamp


def test_a_killed_run_goes_on_where_it_was(runs, monkeypatch):
    add = Album.add

    def killed(self, record):
        if len(self.records) == 2:
            raise KeyboardInterrupt
        add(self, record)

    monkeypatch.setattr(Album, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        main([*runs.arguments, "--prompt", "a mug", "--num", "3"])
    monkeypatch.setattr(Album, "add", add)
    first = runs.out / records(runs.out)[0]["files"]["glb"]
    before = first.stat().st_mtime_ns
    main([*runs.arguments, "--prompt", "a mug", "--num", "3"])
    assert len(records(runs.out)) == 3
    assert first.stat().st_mtime_ns == before


def without_surfaces(monkeypatch, times: int) -> None:
    """The first so many surfaces that are looked for aren't there."""
    found, left = sampling.mesh.extract_surface, [times]

    def extract(*arguments, **named):
        left[0] -= 1
        if left[0] >= 0:
            return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
        return found(*arguments, **named)

    monkeypatch.setattr("sampling.mesh.extract_surface", extract)


def test_an_object_without_a_surface_is_recorded_and_shown_without_a_mesh(runs, monkeypatch):
    warned: list[str] = []
    without_surfaces(monkeypatch, 1)
    monkeypatch.setattr("sampling.__main__.log.warning", lambda text, *values: warned.append(text % values))
    main([*runs.arguments, "--prompt", "a rocket", "--num", "2"])
    empty, sound = records(runs.out)
    assert (list(empty["files"]), empty["faces"], empty["watertight"]) == (["gif"], 0, False)
    assert (empty["fault"], sound["fault"]) == ("empty", "")
    assert json.loads((runs.out / "metadata.json").read_text())["counts"] == {
        "objects": 2, "empty": 1, "crumbled": 0, "degenerate": 0, "retried": 0
    }  # fmt: skip
    assert (runs.out / empty["portrait"]).is_file() and (runs.out / "contact_sheet.png").is_file()
    assert label_of(empty) == "a rocket [empty]"
    assert "never saw 'rocket'" in warned[0]
    assert "no surface" in warned[1]
    assert "of 2 objects 1 empty" in warned[2]


def test_broken_objects_are_made_with_other_seeds_where_that_is_asked_for(runs, monkeypatch, pipeline):
    without_surfaces(monkeypatch, 2)
    main([*runs.arguments, "retries=2", "formats=[glb,safetensors]", "--prompt", "a mug", "--seed", "5"])
    (record,) = records(runs.out)
    assert (record["seed"], record["fault"], len(record["tried"])) == (5, "", 2)
    assert record["tried"][0] == {"seed": 5, "fault": "empty"}
    assert len({record["made_with_seed"], *(each["seed"] for each in record["tried"])}) == 3
    (again,) = pipeline("a mug", seed=record["made_with_seed"], steps=2)
    kept = pipeline.load_latent(runs.out / record["files"]["safetensors"])
    torch.testing.assert_close(kept.latent, again.latent)
    assert json.loads((runs.out / "metadata.json").read_text())["counts"]["retried"] == 1


def test_meshes_say_what_was_asked_for_and_reached(runs):
    main([*runs.arguments, "--prompt", "a mug"])
    (record,) = records(runs.out)
    assert record["faces"] <= record["max_faces"] == 200
    assert (record["watertight"], record["parts"], record["surface"]["num_parts"]) == (True, 1, 1)
    back = trimesh.load_mesh(runs.out / record["files"]["ply"])
    assert back.is_watertight and len(back.faces) == record["faces"]


def test_prompts_come_from_a_file_or_the_config(runs, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa mug\n\n  a chair  \na mug\n", encoding="utf-8")
    main([*runs.arguments, "--prompts", str(path)])
    assert [record["prompt"] for record in records(runs.out)] == ["a mug", "a chair"]
    main([*runs.arguments, "prompts=[a car]"])
    assert records(runs.out)[-1]["prompt"] == "a car"


def test_a_picture_is_a_condition_with_or_without_a_prompt(runs, tmp_path):
    save_disc(tmp_path / "my chair.png", alpha=True)
    main([*runs.arguments, "prompts=[a car]", "--image", str(tmp_path / "my chair.png")])
    main([*runs.arguments, "--image", str(tmp_path / "my chair.png"), "--prompt", "a chair"])
    first, second = records(runs.out)
    assert (first["name"], first["prompt"]) == ("000_my-chair_seed0", "")
    assert first["image"] == second["image"] != ""


def test_each_prompt_is_made_after_each_picture(runs, tmp_path):
    for name, colour in (("red", (255, 0, 0)), ("white", (255, 255, 255))):
        save_disc(tmp_path / f"{name}.png", colour, background=(90, 90, 90))
    images = ["--image", str(tmp_path / "red.png"), "--image", str(tmp_path / "white.png")]
    main([*runs.arguments, *images, "--num", "2"])
    found = records(runs.out)
    assert [(record["label"], record["seed"]) for record in found] == [
        ("red", 0), ("red", 1), ("white", 0), ("white", 1)
    ]  # fmt: skip
    assert found[0]["image"] == found[1]["image"] != found[2]["image"]


def test_pictures_after_one_image_are_of_one_object(runs, tmp_path, monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr("sampling.__main__.log.warning", lambda text, *values: warned.append(text % values))
    for name, colour in (("front", (255, 0, 0)), ("back", (0, 0, 255)), ("other", (0, 255, 0))):
        save_disc(tmp_path / f"{name}.png", colour)
    front, back, other = (str(tmp_path / f"{name}.png") for name in ("front", "back", "other"))
    main([*runs.arguments, "--image", front, back, "--image", other])
    both, single = records(runs.out)
    assert (both["label"], single["label"]) == ("front", "other")
    assert both["image"].count("+") == 1 and "+" not in single["image"]
    for record, num in ((both, 2), (single, 1)):  # what the model saw of them
        with Image.open(runs.out / record["seen"]) as seen:
            assert seen.size == (32 * num, 32)
            assert seen.getpixel((16, 16)) == ((255, 0, 0) if num == 2 else (0, 255, 0))
    assert "was trained on 1 of an object's pictures at a time and is shown 2" in warned[0]
    main([*runs.arguments, "--image", front])
    assert len(records(runs.out)) == 3  # the front alone is another wish


def test_a_table_names_each_object_s_prompt_and_pictures(runs, tmp_path):
    for name in ("a", "b"):
        save_disc(tmp_path / f"{name}.png", (200, ord(name), 0))
    table = tmp_path / "wanted.csv"
    table.write_text('prompt,images\n"a mug, red",a.png; b.png\na chair,b.png\n')
    main([*runs.arguments, "--prompts", str(table)])
    mug, chair = records(runs.out)
    assert (mug["prompt"], chair["prompt"]) == ("a mug, red", "a chair")
    assert mug["image"].endswith("+" + chair["image"])
    for text, message in (
        ("prompt,images\n", "is empty"), ("picture\na.png\n", "not picture"),
        ("prompt\na mug, red\n", "quote"),
        ("prompt,images\na mug,a.png\na car,\n", "none in line 3"), ("images\nno.png\n", "does not exist"),
    ):  # fmt: skip
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            main([*runs.arguments, "--prompts", str(table)])
    with pytest.raises(UserError, match="leave out --prompt"):
        main([*runs.arguments, "--prompts", str(table), "--prompt", "a car"])


def test_formats_are_the_ones_asked_for(runs):
    formats = ["glb", "obj", "ply", "stl", "gif", "mp4", "apng", "png", "safetensors"]
    main([*runs.arguments, f"formats=[{','.join(formats)}]", "--prompt", "a mug"])
    (record,) = records(runs.out)
    assert sorted(record["files"]) == sorted(formats)
    assert all((runs.out / name).stat().st_size > 0 for name in record["files"].values())
    with Image.open(runs.out / record["files"]["png"]) as image:
        assert image.mode == "RGBA"


def test_latents_alone_need_no_mesh_and_no_picture(runs):
    main([*runs.arguments, "formats=[safetensors]", "--prompt", "a mug"])
    (record,) = records(runs.out)
    assert list(record["files"]) == ["safetensors"]
    assert "faces" not in record and record["fault"] == ""
    assert not (runs.out / "contact_sheet.png").exists()


MANY = ["--prompt", "a mug", "--prompt", "a car", "--num", "3"]


def files(folder) -> dict[str, bytes]:
    """Of all objects; metadata.json without what the clock says."""
    found = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in (".json", ".yaml")
    }
    told = json.loads((folder / "metadata.json").read_text())
    for record in told["samples"]:
        del record["decode_seconds"]
    return found | {"metadata.json": json.dumps(told).encode()}


def in_shards(runs, count: int, *more: str) -> list[str]:
    """Makes MANY in shards; returns their folders."""
    for index in range(count):
        main([*runs.arguments, *more, *MANY, "--shard", f"{index}/{count}"])
    return [str(runs.out / f"shard_{index:03d}_of_{count:03d}") for index in range(count)]


def test_merged_shards_are_what_one_machine_makes(runs, tmp_path):
    alone, merged = tmp_path / "alone", tmp_path / "merged"
    settings = ["formats=[glb,safetensors]", "batch_size=2"]
    main(["--out", str(alone), *runs.arguments[2:], *settings, *MANY])
    folders = in_shards(runs, 2, *settings)
    assert [len(records(runs.out / folder)) for folder in folders] == [4, 2]
    main(["merge", *folders, "--out", str(merged)])
    assert files(merged) == files(alone)
    assert (merged / "config.yaml").read_bytes() == (alone / "config.yaml").read_bytes()
    # Stopped, it copies what is missing.
    (merged / "000_a-mug_seed0.glb").unlink()
    kept = (merged / "001_a-mug_seed1.glb").stat().st_ino
    meta = json.loads((merged / "meta.json").read_text())
    (merged / "meta.json").write_text(json.dumps(meta | {"status": "running"}))
    main(["merge", *reversed(folders), "--out", str(merged)])
    assert files(merged) == files(alone)
    assert (merged / "001_a-mug_seed1.glb").stat().st_ino == kept


def test_shards_that_don_t_make_a_whole_are_named(runs, tmp_path):
    settings, out = ["formats=[safetensors]", "batch_size=2"], ["--out", str(tmp_path / "merged")]
    folders = in_shards(runs, 3, *settings)
    for wrong, message in (
        ([folders[0]], r"Of the shards of this list 1/3, 2/3 are missing\."),
        ([*folders[1:], folders[1]], r"0/3 is missing and 1/3 is there more than once\."),
    ):
        with pytest.raises(UserError, match=message):
            main(["merge", *wrong, *out])
    other = [*runs.arguments, *settings, *MANY, "--num", "4"]
    main([*other, "--shard", "0/2"])
    with pytest.raises(UserError, match=r"they differ in the number of shards \(3 and 2\)"):
        main(["merge", folders[0], str(runs.out / "shard_000_of_002"), *out])
    with pytest.raises(UserError, match="made from another list of objects"):
        main([*other, "--shard", "0/3"])
    with pytest.raises(UserError, match="in 4 batches of batch_size=2, so shard 7/8 has none"):
        main([*other, "--shard", "7/8"])
    main(
        ["--out", str(tmp_path / "plain"), *runs.arguments[2:], "formats=[safetensors]", "--prompt", "a mug"]
    )
    with pytest.raises(UserError, match="was not made with --shard"):
        main(["merge", str(tmp_path / "plain"), *out])
    (runs.out / "shard_001_of_003" / "002_a-mug_seed2.safetensors").unlink()
    with pytest.raises(UserError, match=r"002_a-mug_seed2\.safetensors is gone: run its shard's"):
        main(["merge", *folders, *out])


def test_a_run_that_was_stopped_ends_with_the_files_of_one_that_wasn_t(runs, tmp_path):
    for name in ("whole", "stopped"):
        main(["--out", str(tmp_path / name), *runs.arguments[2:], "formats=[safetensors]", *MANY])
    lost = records(tmp_path / "stopped")[4]["files"]["safetensors"]
    (tmp_path / "stopped" / lost).unlink()
    main(["--out", str(tmp_path / "stopped"), *runs.arguments[2:], "formats=[safetensors]", *MANY])
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_adding_to_thousands_of_objects_saves_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    clock, writes = [0.0], []
    monkeypatch.setattr("sampling.album.time.monotonic", lambda: clock[0])

    def write(path, text):
        writes.append(len(json.loads(text)["samples"]))
        clock[0] += 0.001 * writes[-1]  # of disk and encoder

    monkeypatch.setattr("sampling.album.write_atomic", write)
    album = Album(tmp_path)
    for number in range(3000):
        album.add({"name": f"{number:03d}_mug", "prompt": "a mug", "seed": number, "image": "", "files": {}})
        clock[0] += 0.5
    assert writes[:3] == [1, 2, 3]
    assert sum(writes) * 0.001 < 0.11 * clock[0]
    album.save()
    assert writes[-1] == 3000


@pytest.mark.parametrize("shard", ["8/8", "1", "-1/4", "a/b", "1/0"])
def test_shards_that_make_no_sense_are_refused(runs, shard, capsys):
    with pytest.raises(SystemExit):
        main([*runs.arguments, "--prompt", "a mug", f"--shard={shard}"])
    assert "a shard is I/N with I from 0 to N - 1" in capsys.readouterr().err


def test_many_objects_have_several_contact_sheets(runs, monkeypatch):
    monkeypatch.setattr("sampling.album.SHEET_OBJECTS", 2)
    main([*runs.arguments, "formats=[png]", "--prompt", "a mug", "--num", "3"])
    assert {path.name for path in runs.out.glob("contact*")} == {"contact_sheet.png", "contact_sheet_2.png"}


def test_other_settings_in_the_same_folder_are_refused(runs):
    main([*runs.arguments, "--prompt", "a mug"])
    with pytest.raises(UserError, match=r"guidance_scale was 3\.0, now 5\.0"):
        main([*runs.arguments, "guidance_scale=5.0", "--prompt", "a mug"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say what to make"),
        (["--prompt", " "], "this one is empty"),
        (["--prompts", "no-such-file"], "can't be read"),
        (["--image", "no-such-file"], "does not exist"),
        (["--prompt", "a mug", "--num", "0"], "`num`"),
        (["--prompt", "a mug", "--seed", "-3"], "`seed`"),
        (["--prompt", "a mug", "--seed", str(2**63 - 1), "--num", "2"], "goes beyond"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(runs, arguments, message):
    with pytest.raises(UserError, match=message):
        main([*runs.arguments, *arguments])
    assert not runs.out.exists()


def test_missing_inputs_and_devices_are_named():
    with pytest.raises(UserError, match="Sampling needs --model"):
        load_pipeline(SamplingConfig())


@pytest.mark.parametrize(("precision", "bf16"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_a_cpu_computes_in_bfloat16_only_if_asked_to(pipeline, monkeypatch, precision, bf16):
    told = {}

    def load(**arguments):
        told.update(arguments)
        return pipeline

    monkeypatch.setattr("sampling.config.ShapePipeline.load", load)
    load_pipeline(SamplingConfig(prior="p", encoder="e", clip="c", device="cpu", precision=precision))
    assert told["bf16"] is bf16


def test_a_metadata_file_of_another_schema_is_refused(tmp_path):
    (tmp_path / "metadata.json").write_text('{"schema": 99, "samples": []}')
    with pytest.raises(UserError, match="schema 99"):
        Album(tmp_path)


def test_empty_prompt_files_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="is empty; write one prompt a line"):
        read_prompts(tmp_path / "empty.txt")


def test_gifs_and_sheets_keep_their_pictures(tmp_path):
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[0], frames[1], frames[2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    (tmp_path / "a.gif").write_bytes(gif(frames))
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3
        image.seek(2)
        assert np.array(image.convert("RGB"))[4, 4].tolist() == [0, 0, 255]
    sheet = contact_sheet(list(frames), ["red", "green " * 40, "blue"], size=32, columns=2)
    assert sheet.shape[1] == 64
    assert sheet[16, 48].tolist() == [0, 255, 0]
    # The long label is there to its end: forty words take many lines below their picture.
    rows = (sheet[: len(sheet) // 2, 32:] < 200).all(axis=(1, 2))
    written = (sheet[: len(sheet) // 2, 32:, 1] < 150).any(axis=1)
    assert not rows.any() and written[len(written) - 14 :].any()


def test_objects_do_not_depend_on_how_many_are_made_at_once(runs, pipeline, tmp_path):
    latents = []
    for size in (1, 16):
        out = tmp_path / f"at_once_{size}"
        asked = ["--prompt", "a red chair", "--num", "16", "--out", str(out)]
        main([*asked, *runs.arguments[2:], "formats=[safetensors]", f"batch_size={size}"])
        latents.append([pipeline.load_latent(path).latent for path in sorted(out.glob("*.safetensors"))])
    assert len(latents[0]) == 16
    # float32 products of other batch sizes are summed in another order.
    torch.testing.assert_close(torch.stack(latents[0]), torch.stack(latents[1]), atol=1e-4, rtol=0)
