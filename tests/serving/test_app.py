"""The web page: its work without a browser, what it refuses, and how it is used in a headless browser."""

import base64
import io
import re
import runpy
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.cutouts import load_image
from sampling.refine import __main__ as command
from sampling.refine.refiner import Refiner
from sampling.refine.view_model import ViewGuide
from sampling.refine.work import Refined, optimise
from sampling.views import ViewsConfig, read_object, turntable
from serving.__main__ import main, served
from serving.inputs import as_seen
from serving.orders import Edit, Order, Refinement, Turned
from serving.studio import KINDS, Cancelled, Studio, told
from shapeloom.config import UserError
from shapeloom.view_diffusion import random_view_model
from tests.small_page import SMALL, small_site
from tests.small_pictures import save_disc


def quiet(done: int, total: int, what: str) -> None:
    """Nobody watches."""


def order(prompt="a mug", negative="", images=(), seed=3, steps=2, guidance=3.0):
    return Order(prompt, negative, images, seed, steps, guidance)


@pytest.fixture
def studio(pipeline, tmp_path, monkeypatch):
    # The small prior's latents have 4 tokens, fewer than its decoder's config says.
    half = torch.tensor([True, True, False, False])
    monkeypatch.setattr("sampling.edit.changing_tokens", lambda config, layers: half)
    return Studio(pipeline, SMALL, tmp_path, capacity=2)


# ---------------------------------------------------------------- without a browser


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
    model = random_view_model(clip=balls.pipe.clip)
    studio = Studio(balls.pipe, SMALL, tmp_path / "page", views=model)
    balls.shapes[0].save(studio.uploads / "mine.safetensors")
    path = str(studio.uploads / "mine.safetensors")
    steps = []
    asked = Refinement("", "a large blue ball", "color", 2, 3, path)
    item = studio.refine(asked, lambda done, total, what: steps.append((done, total, what)))
    assert steps[1:3] == [(0, 2, "refining, step 1 of 2"), (1, 2, "refining, step 2 of 2")]
    assert studio.refine(asked, quiet) is item

    monkeypatch.setattr(command, "load_pipeline", lambda config: balls.pipe)
    monkeypatch.setattr(command, "load_guide", lambda config, pipe: ViewGuide(model))
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
    studio = Studio(balls.pipe, SMALL, tmp_path, views=random_view_model(clip=balls.pipe.clip))
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
    with pytest.raises(UserError, match="has no view model"):
        studio.refine(Refinement(**asked), quiet)
    studio.views = random_view_model(clip=pipeline.clip)
    with pytest.raises(UserError, match=words) as error:
        studio.refine(Refinement(**asked), quiet)
    assert str(studio.folder) not in str(error.value)


def test_a_page_without_a_view_model_says_so_and_refines_nothing(studio):
    page = pytest.importorskip("serving.page", reason="the web page's library isn't installed")
    built = page.Page(studio).blocks.get_config_file()
    endpoints = {each["api_name"] for each in built["dependencies"]}
    assert {"make", "edit", "cancel"} <= endpoints and not {"refine", "turn"} & endpoints
    assert any("has no view model" in str(each["props"].get("value")) for each in built["components"])


def test_the_page_shows_what_the_model_will_see_or_why_it_cannot(studio):
    save_disc(studio.uploads / "disc.png", (200, 0, 0))
    Image.new("RGB", (40, 40), "red").save(studio.uploads / "empty.png")
    html = as_seen(studio, [str(studio.uploads / "disc.png"), None, str(studio.uploads / "empty.png")])
    (data,) = re.findall('base64,([^"]+)', html)
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        np.testing.assert_array_equal(np.array(shown), studio.check_upload(str(studio.uploads / "disc.png")))
    assert "shows no object that stands out" in html
    assert as_seen(studio, [None, None]) == ""


def test_a_missing_gradio_says_what_to_install(studio, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="make serve"), served(studio, port=1):
        pass


def test_bad_ports_and_missing_runs_are_refused():
    with pytest.raises(UserError, match="--port is a number"):
        main(["--port", "0"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="Sampling needs --model"):
        main([])
    assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------- served


@pytest.fixture(scope="module")
def site(pipeline, tmp_path_factory):
    """A page in the background, and its address."""
    pytest.importorskip("gradio", reason="the web page's library isn't installed")
    with small_site(pipeline, tmp_path_factory.mktemp("page")) as blocks:
        yield blocks.local_url.rstrip("/")


def test_under_load_every_request_is_served_right_or_refused_politely(site, pipeline):
    from benchmarks.drills.page_load import burst, problems

    answers = burst(site, requests=30, clients=5, first_seed=0)
    assert len(answers) == 30
    assert problems(answers, pipeline) == []
    assert sum(answer.latent is not None for answer in answers) >= 20


def test_hostile_requests_are_refused_and_say_why(site, tmp_path):
    from benchmarks.drills.page_load import hostile

    wrong = {name: words for name, (refused, words) in hostile(site, tmp_path).items() if not refused}
    assert wrong == {}


def test_a_script_gets_the_files_of_what_it_asked_for(site, pipeline, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "page_client.py"
    how = ["--prompt", "a mug", "--seed", "9", "--steps", "2"]
    runpy.run_path(str(example))["main"]([site, str(tmp_path / "out"), *how])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"a-mug_seed9.{kind}" for kind in KINDS}
    shape = pipeline("a mug", seed=9, steps=2, guidance_scale=3.0)[0]
    assert (tmp_path / "out" / "a-mug_seed9.glb").read_bytes() == shape.mesh(SMALL.mesh).glb()


def test_no_file_but_the_pages_own_is_served_and_no_other_host_answered(site):
    def status(path, host="127.0.0.1"):
        request = urllib.request.Request(site + path, headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert status("/") == 200
    assert status("/", "evil.example") == 400
    for path in ("/etc/passwd", f"{Path(__file__)}", "http://example.com/", "HTTPS://example.com/"):
        assert status(f"/gradio_api/file={path}") in (403, 404)


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that draws WebGL without a graphics card."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser here")
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, site):
    """The page in a fresh tab; it must ask nobody else for anything, nor complain."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(60_000)
    asked, complaints = [], []
    page.on("response", lambda answer: answer.status == 404 and complaints.append(answer.url))
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(site)
    page.wait_for_selector("#make")
    yield page
    page.close()
    strangers = [url for url in asked if not url.startswith((site, "blob:", "data:"))]
    assert strangers == []
    assert complaints == []


def make(tab, prompt, seed):
    """Types, clicks, and waits for the object."""
    before = tab.locator(".stage").get_attribute("data-key")
    tab.locator("#prompt textarea").fill(prompt)
    tab.locator("#seed input").fill(str(seed))
    tab.locator("#make").click()
    tab.wait_for_function("key => (document.querySelector('.stage').dataset.key ?? null) !== key", arg=before)


def download(tab, kind):
    with tab.expect_download() as waiting:
        tab.locator(f"#download-{kind}").click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_a_visitor_types_clicks_waits_sees_and_downloads_the_pipelines_object(tab, pipeline):
    make(tab, "a mug", 3)
    shape = pipeline("a mug", seed=3, steps=2, guidance_scale=3.0)[0]
    assert download(tab, "glb") == ("a-mug_seed3.glb", shape.mesh(SMALL.mesh).glb())
    name, data = download(tab, "obj-zip")
    assert name.endswith(".obj.zip") and zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    note = tab.locator(".stage .note").inner_text()
    assert note.startswith("a mug · seed 3")
    # The picture changes with what is drawn, and is not just background.
    looks = [tab.locator(".stage canvas").screenshot()]
    for look in ("turning", "wireframe", "texture"):
        button = tab.locator(f"[data-look={look}]")
        pressed = button.get_attribute("aria-pressed")
        button.click()
        assert button.get_attribute("aria-pressed") != pressed
        tab.wait_for_timeout(300)
        looks.append(tab.locator(".stage canvas").screenshot())
    assert len(set(looks[1:])) == 3
    assert (
        len(np.unique(np.array(Image.open(io.BytesIO(looks[1])).convert("RGB")).reshape(-1, 3), axis=0)) > 50
    )


def test_an_edit_starts_from_what_is_shown_and_the_history_leads_back(tab):
    make(tab, "a mug", 1)
    first = tab.locator(".stage").get_attribute("data-key")
    tab.get_by_role("tab", name="Edit").click()
    tab.locator("#change textarea").fill("a red mug")
    tab.locator("#edit").click()
    tab.wait_for_function("key => document.querySelector('.stage').dataset.key !== key", arg=first)
    thumbnails = tab.locator("#history img")
    thumbnails.nth(1).wait_for()
    assert thumbnails.count() == 2
    thumbnails.nth(1).click()
    tab.wait_for_function("key => document.querySelector('.stage').dataset.key === key", arg=first)


def test_an_object_is_refined_and_the_way_there_is_shown(tab):
    make(tab, "a mug", 2)
    first = tab.locator(".stage").get_attribute("data-key")
    assert not tab.locator("#way").is_visible()
    tab.get_by_role("tab", name="Edit").click()
    tab.locator("#change textarea").fill("a red mug")
    tab.locator("#refine-steps input[type=number]").fill("2")
    tab.locator("#refine").click()
    tab.wait_for_function("key => document.querySelector('.stage').dataset.key !== key", arg=first)
    tab.locator("#way img").wait_for()
    assert tab.locator("#way img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert "before" in tab.locator("#note").inner_text()
    name, data = download(tab, "glb")
    assert name == "a-red-mug_seed2.glb" and len(data) > 1000
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.locator("#history img").nth(1).click()  # what it started from has no way
    tab.wait_for_function("key => document.querySelector('.stage').dataset.key === key", arg=first)
    tab.locator("#way").wait_for(state="hidden")


def test_a_file_of_the_visitor_is_refined_until_it_is_stopped(tab, pipeline, tmp_path, monkeypatch):
    waiting, stopped = threading.Event(), threading.Event()

    def step(self, number):
        waiting.set()
        time.sleep(0.1)
        return {"gradient": 0.0}

    def work(*arguments, on_step, real=optimise, **how):
        try:
            real(*arguments, on_step=on_step, **how)
        except Cancelled:
            stopped.set()
            raise

    monkeypatch.setattr(Refiner, "step", step)
    monkeypatch.setattr("sampling.refine.work.optimise", work)
    pipeline("a mug", seed=1, steps=2)[0].save(tmp_path / "mine.safetensors")
    tab.get_by_role("tab", name="Edit").click()
    tab.locator("#source input[type=file]").set_input_files(tmp_path / "mine.safetensors")
    tab.get_by_text("mine.safetensors").first.wait_for()
    tab.locator("#change textarea").fill("a red mug")
    tab.locator("#refine-steps input[type=number]").fill("400")
    tab.locator("#refine").click()
    assert waiting.wait(60)
    tab.locator("#cancel-refine").click()
    assert stopped.wait(60)


def test_mistakes_are_told_kindly_and_markup_stays_text(tab):
    tab.locator("#prompt textarea").fill(" ")
    tab.locator("#make").click()
    tab.get_by_text("A prompt says what to make").first.wait_for()
    make(tab, "<img src=x onerror=alert(1)>", 0)
    assert "<img src=x" in tab.locator(".stage .note").inner_text()
    assert tab.locator("img[src=x]").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")  # a phone needs no scrolling


def test_a_picture_is_chosen_and_followed(tab, tmp_path):
    save_disc(tmp_path / "mine.png", (200, 0, 0))
    tab.get_by_text("Follow pictures of one object").click()
    for number in (1, 2):
        tab.locator(f"#picture-{number} input[type=file]").set_input_files(tmp_path / "mine.png")
        tab.locator("#seen img").nth(number - 1).wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    make(tab, "a mug", 5)
    assert tab.locator(".stage .note").inner_text().startswith("a mug · seed 5")


def test_a_picture_is_turned_by_the_view_model(tab, tmp_path):
    save_disc(tmp_path / "mine.png", (200, 0, 0))
    tab.get_by_role("tab", name="Views").click()
    tab.locator("#picture-0 input[type=file]").set_input_files(tmp_path / "mine.png")
    tab.locator("#picture-0 img").wait_for()
    tab.locator("#turn").click()
    for place in ("#turned img", "#turned-sheet img"):
        tab.locator(place).wait_for()
        assert tab.locator(place).evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_cancel_stops_the_work(tab, pipeline, monkeypatch):
    waiting = threading.Event()
    stopped = threading.Event()

    def slow(self, *arguments, on_step, **how):
        waiting.set()
        try:
            for step in range(600):
                on_step(step)
                time.sleep(0.1)
        except Cancelled:
            stopped.set()
            raise

    monkeypatch.setattr(type(pipeline), "__call__", slow)
    tab.locator("#seed input").fill("77")
    tab.locator("#make").click()
    assert waiting.wait(30)
    tab.locator("#cancel").click()
    assert stopped.wait(30)
