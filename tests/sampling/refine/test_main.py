"""The command: its files, what it says of them, and that a kill makes no difference."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.edit import interpolate, vary
from sampling.refine import __main__ as command
from sampling.refine.config import RefineConfig
from sampling.refine.loading import load_guide
from sampling.refine.mesh_stage import MeshRefiner
from sampling.refine.refiner import Refiner
from sampling.shape import ShapeSample
from shapeloom.config import UserError, load_config
from tests.sampling.refine.conftest import ExactGuide

SMALL = [
    "guide=views",
    "mesh.resolution=16", "mesh.max_faces=200", "mesh.texture_size=32", "turntable.frames=2",
    "turntable.size=32", "turntable.samples.coarse=8", "turntable.samples.fine=0", "samples.coarse=12",
    "samples.fine=6", "views=2", "estimator.scale=1", "rate=0.3", "checkpoint_every=2", "log_every=1",
    "picture_every=2", "formats=[safetensors, glb]",
]  # fmt: skip


@pytest.fixture
def refine(balls, monkeypatch, tmp_path):
    """Runs the command on the small red ball, towards a prompt."""
    monkeypatch.setattr(command, "load_pipeline", lambda config: balls.pipe)
    monkeypatch.setattr(command, "load_guide", lambda config, pipe: ExactGuide(balls.decoder, balls.latents))
    monkeypatch.setattr(command, "load_judge", lambda run, pipe, judge: pipe.clip)
    monkeypatch.setattr("sampling.making.PORTRAIT_SIZE", 32)
    start = tmp_path / "start.safetensors"
    balls.shapes[0].save(start)

    def run(out: str, prompt: str, *settings: str, shape: str = str(start)) -> Path:
        command.main(
            ["--out", str(tmp_path / out), "--prompt", prompt, "--shape", shape, "--set", *SMALL, *settings]
        )
        return tmp_path / out

    return run


def read(folder: Path) -> dict:
    return json.loads((folder / "metadata.json").read_text())["samples"][0]


def test_a_refined_shape_is_a_shape_like_any_other(refine, balls):
    folder = refine("out", "a large blue ball", "iterations=12")
    record = read(folder)
    assert record["score_after"] > record["score_before"]
    assert not record["below_start"]
    assert all((folder / name).is_file() for name in record["files"].values())
    shape = balls.pipe.load_latent(folder / record["files"]["safetensors"])
    assert shape.prompt == "a large blue ball"
    assert shape.render(height=16, width=16).shape == (1, 16, 16, 3)
    strip = np.array(Image.open(folder / record["strip"]))
    assert strip.shape[1] == 7 * 32  # steps 0, 2, .. 12
    ends = (part.astype(float) for part in (strip[:32, :32], strip[:32, -32:]))
    redness = [(part[..., 0] - part[..., 2]).mean() for part in ends]
    assert redness[0] > redness[1] + 0.5
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert refine("out", "a large blue ball", "iterations=12") == folder  # says that it is done


@pytest.mark.parametrize("changes", ["optimise=matrices", "region=[[0, -1, -1], [1, 1, 1]]"])
def test_matrices_and_regions_are_saved_and_read(refine, balls, changes):
    folder = refine("out", "a large blue ball", "iterations=2", changes)
    path = folder / read(folder)["files"]["safetensors"]
    shape = balls.pipe.load_latent(path)
    assert shape.matrices is not None and (shape.region is not None) == changes.startswith("region")
    assert ShapeSample.latent_bytes(shape) == path.read_bytes()
    for edit in (
        lambda: vary(balls.pipe, shape, "a ball", strength=0.5),
        lambda: interpolate(balls.pipe, shape, balls.shapes[0]),
    ):
        with pytest.raises(UserError, match="no latent says what it is"):
            edit()
    if shape.region is None:  # and may be refined further
        again = refine("again", "a large red ball", "iterations=2", changes, shape=str(path))
        assert read(again)["start"] == "start_000.safetensors"


def test_a_killed_command_goes_on_with_a_bit_identical_curve(refine, monkeypatch):
    whole = refine("whole", "a large blue ball", "iterations=6")
    step = Refiner.step

    def killed(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Refiner, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        refine("killed", "a large blue ball", "iterations=6")
    monkeypatch.setattr(Refiner, "step", step)
    resumed = refine("killed", "a large blue ball", "iterations=6")
    for name in ("metrics.jsonl", "strip_000.png", read(whole)["files"]["safetensors"]):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_a_mesh_stage_goes_on_from_the_field_and_survives_a_kill(refine, monkeypatch):
    settings = ["iterations=2", "mesh_stage.iterations=4", "log_every=1", "mesh_stage.texel_rate=0.05"]
    whole = refine("whole", "a large blue ball", *settings)
    record = read(whole)
    assert (whole / record["mesh"]).stat().st_size > 1000
    assert (whole / record["mesh_strip"]).is_file()
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    step = MeshRefiner.step

    def killed(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(MeshRefiner, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        refine("killed", "a large blue ball", *settings)
    monkeypatch.setattr(MeshRefiner, "step", step)
    resumed = refine("killed", "a large blue ball", *settings)
    for name in ("metrics.jsonl", record["mesh"]):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_a_shape_that_became_worse_is_reported(refine, caplog, monkeypatch):
    """Away from red, while it is judged by how red it is; and each part by its own scores."""
    monkeypatch.setattr(logging.getLogger("shapeloom"), "propagate", True)
    settings = ["iterations=4", "estimator.scale=0", "rate=0.5"]
    worse = refine("worse", "a small red ball", *settings)
    record = read(worse)
    assert record["below_start"] and record["score_after"] < record["score_before"]
    assert json.loads((worse / "meta.json").read_text())["below_start"] == 1
    (told,) = (each.getMessage() for each in caplog.records if "fits its prompt less" in each.getMessage())
    assert f"{record['score_before']:.3f} before, {record['score_after']:.3f} after (by balls)" in told

    caplog.clear()
    monkeypatch.setattr(command, "mesh_score", lambda mesh, prompt, judge, scores=[0.2, 0.1]: scores.pop(0))
    mesh = refine("mesh", "a large blue ball", "iterations=4", "mesh_stage.iterations=1")
    assert read(mesh)["mesh_below_start"] and not read(mesh)["below_start"]
    (told,) = (each.getMessage() for each in caplog.records if "fits its prompt less" in each.getMessage())
    assert "'s mesh fits its prompt less" in told and "0.200 before, 0.100 after" in told


def test_what_is_missing_is_said(refine, balls, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.glb does not exist"):
        refine("out", "a ball", shape="nothing.glb")
    with pytest.raises(UserError, match="Say what the shape is to be"):
        command.main(["--out", str(tmp_path / "out")])
    config = load_config(RefineConfig, None, [f"guide={tmp_path}"])
    with pytest.raises(UserError, match="no 2-D diffusion model"):
        load_guide(config, balls.pipe)
    folder = refine("damaged", "a large blue ball", "iterations=2")
    (folder / "state_field.safetensors").write_bytes(b"no state")
    meta = json.loads((folder / "meta.json").read_text()) | {"status": "running"}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"state_field\.safetensors is damaged"):
        refine("damaged", "a large blue ball", "iterations=2")
    torch.manual_seed(0)
