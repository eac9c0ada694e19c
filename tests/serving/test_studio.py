"""What the page does with orders: limits, objects that are kept, edits, refinements and views."""

import base64
import io
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.cutouts import load_image
from sampling.refine import __main__ as command
from sampling.refine.work import Refined
from sampling.views import ViewsConfig, read_object, turntable
from serving.inputs import as_seen
from serving.orders import Edit, Order, Refinement, Turned
from serving.studio import KINDS, Cancelled, Studio, told
from shapeloom.config import UserError
from shapeloom.view_diffusion import random_view_model
from tests.small_page import SMALL, another_judge
from tests.small_pictures import save_disc


def quiet(done: int, total: int, what: str) -> None:
    """Nobody watches."""


def order(prompt="a mug", negative="", images=(), seed=3, steps=2, guidance=3.0):
    return Order(prompt, negative, images, seed, steps, guidance)


def test_an_order_becomes_what_the_pipeline_makes_of_it_in_every_format(studio, pipeline):
    item = studio.make(order(), quiet)
    shape = pipeline("a mug", seed=3, steps=2, guidance_scale=3.0)[0]
    assert tuple(item.files) == KINDS
    assert item.files["glb"].read_bytes() == shape.mesh(SMALL.mesh).glb()
    assert torch.equal(pipeline.load_latent(item.files["safetensors"]).latent, shape.latent)
    names = zipfile.ZipFile(item.files["obj.zip"]).namelist()
    assert sorted(names) == ["a-mug_seed3.mtl", "a-mug_seed3.obj", "a-mug_seed3_texture.png"]
    assert all(path.stat().st_size for path in item.files.values())


def test_the_same_order_is_answered_from_what_is_kept_and_old_objects_go(studio):
    first = studio.make(order(), quiet)
    assert studio.make(order(), quiet) is first
    studio.make(order(seed=4), quiet)
    studio.make(order(), quiet)  # asked for again: kept longer than the other
    studio.make(order(seed=5), quiet)
    assert studio.find(first.key) is first
    assert len(list(studio.objects.iterdir())) == 2
    studio.make(order(seed=6), quiet)
    with pytest.raises(UserError, match="isn't kept any more"):
        studio.find(first.key)


def test_an_edit_starts_from_an_object_that_is_kept(studio, pipeline):
    item = studio.make(order(), quiet)
    edited = studio.edit(Edit(item.key, "a red mug", "geometry", 1.0, 0, 2, 3.0), quiet)
    before, after = (pipeline.load_latent(each.files["safetensors"]).latent for each in (item, edited))
    assert (after - before)[2:].abs().max() < 1e-5 < (after - before)[:2].abs().max()


def test_what_a_cleaner_takes_is_made_again(studio):
    first = studio.make(order(), quiet)
    first.files["gif"].unlink()
    assert studio.get(first.key) is None
    assert studio.make(order(), quiet).files["gif"].is_file()
    shutil.rmtree(studio.folder)
    again = studio.make(order(), quiet)
    assert again.key == first.key and all(path.is_file() for path in again.files.values())


def test_an_object_s_address_can_t_be_computed_from_its_prompt(studio, pipeline, tmp_path_factory):
    other = Studio(pipeline, SMALL, tmp_path_factory.mktemp("other"))
    assert studio.make(order(), quiet).key != other.make(order(), quiet).key
    assert len(studio.make(order(), quiet).key) == 32


def test_a_closed_studio_stops_at_the_next_step_and_makes_nothing_more(studio):
    def close(done: int, total: int, what: str) -> None:
        studio._closed.set()

    with pytest.raises(Cancelled):
        studio.make(order(), close)
    studio.close()
    with pytest.raises(Cancelled):
        studio.make(order(seed=9), quiet)
    assert not studio.objects.exists() or not list(studio.objects.iterdir())


def test_work_that_is_stopped_leaves_nothing(studio):
    for stage in ("step 1 of 2", "turntable", "mesh and texture"):

        def stop(done: int, total: int, what: str, stage: str = stage) -> None:
            if what == stage:
                raise Cancelled

        with pytest.raises(Cancelled):
            studio.make(order(), stop)
        assert not studio.objects.exists() or not list(studio.objects.iterdir())
    assert studio.make(order(), quiet).faces > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": " "}, {"prompt": "a" * 100_000}, {"prompt": None}, {"negative": "a" * 301}, {"seed": -1},
        {"seed": "1"}, {"seed": 2**60}, {"steps": 500}, {"steps": True}, {"guidance": float("nan")},
        {"guidance": None}, {"images": ("/etc/passwd",)}, {"images": ("nowhere.png",)}, {"images": (7,)},
        {"images": ("a.png",) * 5},
    ],
)  # fmt: skip
def test_orders_beyond_the_limits_are_refused(studio, wrong):
    with pytest.raises(UserError):
        studio.make(order(**wrong), quiet)
    assert not studio.objects.exists()


@pytest.mark.parametrize(
    "wrong", [{"layers": "hair"}, {"strength": 0}, {"source": "../../etc"}, {"prompt": ""}]
)
def test_edits_beyond_the_limits_are_refused(studio, wrong):
    asked = {
        "source": "x",
        "prompt": "a",
        "layers": "all",
        "strength": 0.5,
        "seed": 0,
        "steps": 2,
        "guidance": 3.0,
    }
    with pytest.raises(UserError):
        studio.edit(Edit(**asked | wrong), quiet)


def test_pictures_that_claim_to_be_huge_are_refused_before_they_are_decoded(studio):
    Image.new("1", (5000, 5000)).save(studio.uploads / "bomb.png")
    with pytest.raises(UserError, match="The picture has 5000x5000 pixels"):
        studio.make(order(images=(str(studio.uploads / "bomb.png"),)), quiet)


def test_a_picture_is_followed_but_none_from_outside_of_the_uploads(studio, pipeline):
    for folder in (studio.uploads, studio.uploads.parent):
        save_disc(folder / "disc.png", (200, 0, 0))
    path = str(studio.uploads / "disc.png")
    item = studio.make(order(prompt="", images=(path,)), quiet)
    (shape,) = pipeline("", image=load_image(Path(path)), seed=3, steps=2, guidance_scale=3.0)
    assert torch.equal(pipeline.load_latent(item.files["safetensors"]).latent, shape.latent)
    (studio.uploads / "link.png").symlink_to(studio.uploads.parent / "disc.png")
    for name in ("../disc.png", "link.png"):
        with pytest.raises(UserError, match="no other files are read"):
            studio.make(order(prompt="", images=(str(studio.uploads / name),)), quiet)


def test_several_pictures_are_of_one_object(studio, pipeline):
    paths = [studio.uploads / "red.png", studio.uploads / "blue.png"]
    for path, colour in zip(paths, ((200, 0, 0), (0, 0, 200)), strict=True):
        save_disc(path, colour)
    item = studio.make(order(prompt="", images=tuple(map(str, paths))), quiet)
    pictures = [load_image(path) for path in paths]
    (shape,) = pipeline("", image=pictures, seed=3, steps=2, guidance_scale=3.0)
    assert torch.equal(pipeline.load_latent(item.files["safetensors"]).latent, shape.latent)
    assert item.title.startswith("your pictures")


def test_views_are_those_of_the_command_and_cannot_be_edited(studio):
    save_disc(studio.uploads / "disc.png", (200, 0, 0))
    path = str(studio.uploads / "disc.png")
    with pytest.raises(UserError, match="has no view model"):
        studio.turn(Turned("a mug", None, 0), quiet)
    studio.views = model = random_view_model()
    steps = []
    item = studio.turn(Turned("", path, 3), lambda done, total, what: steps.append((done, total, what)))
    assert steps == [(6, 12, "view 6 of 12"), (12, 12, "view 12 of 12")]
    turn = turntable(model, ViewsConfig(seed=3), [read_object(Path(path), size=model.size)])
    with Image.open(item.files["gif"]) as frames:
        assert frames.n_frames == len(turn.rgba) == 12
    with Image.open(item.files["png"]) as sheet:
        assert sheet.width == 6 * 128 and sheet.height >= 3 * 128  # the picture and twelve views
    assert studio.turn(Turned("", path, 3), quiet) is item
    with pytest.raises(UserError, match="only objects can be changed"):
        studio.edit(Edit(item.key, "a cup", "all", 0.5, 0, 2, 3.0), quiet)
    for wrong in (Turned("", None, 0), Turned("a mug", "/etc/passwd", 0), Turned("a mug", None, -1)):
        with pytest.raises(UserError):
            studio.turn(wrong, quiet)


def test_a_refinement_is_the_commands_and_says_how_well_it_fits(balls, tmp_path, monkeypatch):
    judge = another_judge(balls.pipe)
    studio = Studio(balls.pipe, SMALL, tmp_path / "page", judge=judge)
    balls.shapes[0].save(studio.uploads / "mine.safetensors")
    path = str(studio.uploads / "mine.safetensors")
    steps = []
    asked = Refinement("", "a large blue ball", "color", 2, 3, path)
    item = studio.refine(asked, lambda done, total, what: steps.append((done, total, what)))
    assert steps[1:3] == [(0, 2, "refining, step 1 of 2"), (1, 2, "refining, step 2 of 2")]
    assert studio.refine(asked, quiet) is item

    monkeypatch.setattr(command, "load_pipeline", lambda config: balls.pipe)
    monkeypatch.setattr(command, "load_judge", lambda *_: judge)
    monkeypatch.setattr("sampling.making.PORTRAIT_SIZE", 32)
    given = ["--prompt", "a large blue ball", "--shape", path, "--iterations", "2", "--seed", "3"]
    small = ["mesh.resolution=16", "mesh.texture_size=32", "turntable.size=16", "formats=[safetensors]"]
    out = tmp_path / "out"
    command.main(["--out", str(out), *given, "--set", *small, "layers=color", "picture_every=1"])
    (made,) = out.glob("*ball*.safetensors")
    assert item.files["safetensors"].read_bytes() == made.read_bytes()
    assert item.files["png"].read_bytes() == (out / "strip_000.png").read_bytes()
    assert item.files["glb"].is_file() and "before" in item.note
    after = balls.pipe.load_latent(item.files["safetensors"]).latent
    moved = (after - balls.latents[0]).abs().amax(1)
    assert not moved[:2].any() and moved[2:].any()  # tokens of shape come first
    assert [each.name for each in studio.folder.iterdir() if each.name not in ("objects", "uploads")] == []


def test_a_refinement_that_is_stopped_leaves_nothing(balls, tmp_path):
    studio = Studio(balls.pipe, SMALL, tmp_path, judge=another_judge(balls.pipe))
    balls.shapes[0].save(studio.uploads / "mine.safetensors")

    def stop(done: int, total: int, what: str) -> None:
        if done == 1:
            raise Cancelled

    asked = Refinement("", "a blue ball", "all", 3, 0, str(studio.uploads / "mine.safetensors"))
    with pytest.raises(Cancelled):
        studio.refine(asked, stop)
    assert [each.name for each in studio.folder.iterdir()] == ["uploads"]


def test_what_fits_its_words_less_than_before_is_told(balls):
    def words(before, after):
        return told(Refined(balls.shapes[0], balls.shapes[0], before, after, b"", "judge"))

    assert "0.300 before, 0.200 after" in words(0.3, 0.2)
    assert "fits them less" in words(0.3, 0.2) and "fits them less" not in words(0.2, 0.3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": 0}, "from 1 to 400"), ({"steps": 10**6}, "from 1 to 400"),
        ({"layers": "hair"}, "What changes"), ({"prompt": ""}, "A prompt says"),
        ({"upload": "/etc/passwd"}, "no other files are read"),
        ({"upload": None, "source": "x"}, "isn't kept any more"),
        ({"upload": "broken.glb"}, "came without its"), ({"upload": "text.bin"}, "That is no GLB"),
        ({"upload": "damaged.safetensors"}, "your file is no latent"),
    ],
)  # fmt: skip
def test_refinements_beyond_the_limits_are_refused(studio, pipeline, wrong, words):
    for name in ("broken.glb", "damaged.safetensors", "text.bin"):
        (studio.uploads / name).write_bytes(b"nothing that could be read")
    known = {"source": "", "prompt": "a mug", "layers": "all", "steps": 2, "seed": 0, "upload": "text.bin"}
    asked = known | wrong
    if asked["upload"] and "/" not in asked["upload"]:
        asked["upload"] = str(studio.uploads / asked["upload"])
    with pytest.raises(UserError, match="has no judge but the CLIP"):
        studio.refine(Refinement(**asked), quiet)
    studio.judge = another_judge(pipeline)
    with pytest.raises(UserError, match=words) as error:
        studio.refine(Refinement(**asked), quiet)
    assert str(studio.folder) not in str(error.value)


def test_a_page_refines_and_turns_as_far_as_its_run_has_a_judge_and_a_view_model(studio, pipeline):
    page = pytest.importorskip("serving.page", reason="the web page's library isn't installed")

    def endpoints() -> tuple[set[str], str]:
        built = page.Page(studio).blocks.get_config_file()
        words = " ".join(str(each["props"].get("value")) for each in built["components"])
        return {each["api_name"] for each in built["dependencies"]}, words

    found, words = endpoints()
    assert {"make", "edit", "cancel"} <= found and not {"refine", "turn"} & found
    assert "has no judge but the CLIP" in words
    assert Studio(pipeline, SMALL, studio.folder, judge=pipeline.clip).judge is None
    studio.judge = another_judge(pipeline)
    found, words = endpoints()
    assert "refine" in found and "turn" not in found and "has no judge" not in words
    studio.views = random_view_model(clip=pipeline.clip)
    assert {"refine", "turn"} <= endpoints()[0]


def test_the_page_shows_what_the_model_will_see_or_why_it_cannot(studio):
    save_disc(studio.uploads / "disc.png", (200, 0, 0))
    Image.new("RGB", (40, 40), "red").save(studio.uploads / "empty.png")
    html = as_seen(studio, [str(studio.uploads / "disc.png"), None, str(studio.uploads / "empty.png")])
    (data,) = re.findall('base64,([^"]+)', html)
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        np.testing.assert_array_equal(np.array(shown), studio.check_upload(str(studio.uploads / "disc.png")))
    assert "shows no object that stands out" in html
    assert as_seen(studio, [None, None]) == ""
