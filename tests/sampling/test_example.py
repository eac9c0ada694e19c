"""The examples of the documentation work, at a tiny size. The page's client is in `test_app`."""

import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from sampling.pipeline import ShapePipeline
from tests.small_pictures import save_disc

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(pipeline, monkeypatch):
    """Runs an example's main with the small pipeline in the model's place."""
    monkeypatch.setattr(ShapePipeline, "from_pretrained", lambda source: pipeline)
    # The small prior's latents have 4 tokens, fewer than its decoder's config says.
    half = torch.tensor([True, True, False, False])
    monkeypatch.setattr("sampling.edit.changing_tokens", lambda config, layers: half)

    def run(name, *arguments):
        runpy.run_path(str(EXAMPLES / name))["main"](["model", *arguments, "--steps", "2", "--size", "16"])

    return run


def test_prompts_become_files(example, tmp_path):
    example("objects.py", str(tmp_path), "--resolution", "16")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"object.glb", "object.obj", "object.safetensors", "object.png"} <= names


def test_pictures_become_objects(example, tmp_path):
    save_disc(tmp_path / "disc.png")
    example("from_picture.py", str(tmp_path / "disc.png"), str(tmp_path), "--num", "2", "--resolution", "16")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"object_0.glb", "object_1.glb", "strip.png"} <= names


def test_edits_become_strips(example, tmp_path):
    example("edits.py", str(tmp_path))
    widths = {}
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            widths[path.stem] = picture.width // 16
    assert widths == {"vary": 4, "repaint": 3, "reshape": 3, "walk": 5, "morph": 5}
