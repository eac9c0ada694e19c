"""The web page: its work without a browser, what it refuses, and how it is used in a headless browser."""

import io
import json
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.__main__ import SamplingConfig
from sampling.app import BodyLimit, main, serve
from sampling.studio import KINDS, Cancelled, Edit, Order, Studio
from shapeloom.config import UserError

SMALL = SamplingConfig(
    prompts=["a red chair"],
    steps=2,
    mesh={"resolution": 16, "texture_size": 32},
    turntable={"frames": 2, "size": 16, "samples": {"coarse": 8, "fine": 0}},
)


def quiet(done: int, total: int, what: str) -> None:
    """Nobody watches."""


def order(prompt="a mug", negative="", image=None, seed=3, steps=2, guidance=3.0):
    return Order(prompt, negative, image, seed, steps, guidance)


@pytest.fixture
def studio(pipeline, tmp_path, monkeypatch):
    # The small prior's latents have 4 tokens, fewer than its decoder's config says.
    half = torch.tensor([True, True, False, False])
    monkeypatch.setattr("sampling.edit.changing_tokens", lambda config, layers: half)
    return Studio(pipeline, SMALL, tmp_path / "objects", capacity=2)


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
    assert len(list(studio.folder.iterdir())) == 2
    studio.make(order(seed=6), quiet)
    with pytest.raises(UserError, match="isn't kept any more"):
        studio.find(first.key)


def test_an_edit_starts_from_an_object_that_is_kept(studio, pipeline):
    item = studio.make(order(), quiet)
    edited = studio.edit(Edit(item.key, "a red mug", "geometry", 1.0, 0, 2, 3.0), quiet)
    before, after = (pipeline.load_latent(each.files["safetensors"]).latent for each in (item, edited))
    assert (after - before)[2:].abs().max() < 1e-5 < (after - before)[:2].abs().max()


def test_work_that_is_stopped_leaves_nothing(studio):
    for stage in ("step 1 of 2", "turntable", "mesh and texture"):

        def stop(done: int, total: int, what: str, stage: str = stage) -> None:
            if what == stage:
                raise Cancelled

        with pytest.raises(Cancelled):
            studio.make(order(), stop)
        assert not studio.folder.exists() or not list(studio.folder.iterdir())
    assert studio.make(order(), quiet).faces > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": " "}, {"prompt": "a" * 100_000}, {"prompt": None}, {"negative": "a" * 301}, {"seed": -1},
        {"seed": "1"}, {"seed": 2**60}, {"steps": 500}, {"steps": True}, {"guidance": float("nan")},
        {"guidance": None}, {"image": "/etc/passwd"}, {"image": "nowhere.png"},
    ],
)  # fmt: skip
def test_orders_beyond_the_limits_are_refused(studio, wrong):
    with pytest.raises(UserError):
        studio.make(order(**wrong), quiet)
    assert not studio.folder.exists()


@pytest.mark.parametrize("wrong", [{"layers": "hair"}, {"strength": 0}, {"source": "../../etc"}, {"prompt": ""}])
def test_edits_beyond_the_limits_are_refused(studio, wrong):
    asked = {"source": "x", "prompt": "a", "layers": "all", "strength": 0.5, "seed": 0, "steps": 2, "guidance": 3.0}
    with pytest.raises(UserError):
        studio.edit(Edit(**asked | wrong), quiet)


def test_pictures_that_claim_to_be_huge_are_refused_before_they_are_decoded(studio, tmp_path):
    Image.new("1", (5000, 5000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="The picture has 5000x5000 pixels"):
        studio.make(order(image=str(tmp_path / "bomb.png")), quiet)


def test_a_missing_gradio_says_what_to_install(studio, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="make serve"):
        serve(studio, port=1)


def test_bad_ports_and_missing_runs_are_refused():
    with pytest.raises(UserError, match="--port is a number"):
        main(["--port", "0"])
    with pytest.raises(UserError, match="Sampling needs --model"):
        main([])


# ---------------------------------------------------------------- served


@pytest.fixture(scope="module")
def site(pipeline, tmp_path_factory):
    """A page in the background, and its address."""
    pytest.importorskip("gradio", reason="the web page's library isn't installed")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("page")
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        half = torch.tensor([True, True, False, False])
        patch.setattr("sampling.edit.changing_tokens", lambda config, layers: half)
        blocks = serve(Studio(pipeline, SMALL, folder / "objects"), port=free_port(), wait=False)
        yield blocks.local_url.rstrip("/")
        blocks.close()
