"""The example of the documentation works, at a tiny size."""

import runpy
from pathlib import Path

import torch

from sampling.pipeline import ShapePipeline

EXAMPLE = Path(__file__).parents[2] / "examples" / "objects.py"


def test_the_example_makes_its_files(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(ShapePipeline, "from_pretrained", lambda source: pipeline)
    # The small prior's latents have 4 tokens, fewer than its decoder's config says.
    half = torch.tensor([True, True, False, False])
    monkeypatch.setattr("sampling.edit.changing_tokens", lambda config, layers: half)
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(["model", str(tmp_path), "--steps", "2", "--resolution", "16", "--size", "16"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"object.glb", "object.obj", "object.safetensors", "object.png", "edits.png"} <= names
