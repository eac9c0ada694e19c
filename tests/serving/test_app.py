"""The web page: how it is started and served, what it refuses, and how it is used in a headless browser."""

import io
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
from PIL import Image

from sampling.refine.refiner import Refiner
from sampling.refine.work import optimise
from serving.__main__ import main, served
from serving.studio import KINDS, Cancelled
from shapeloom.config import UserError
from tests.small_page import SMALL, small_site
from tests.small_pictures import save_disc


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
