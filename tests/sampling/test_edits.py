"""Edits from the command line, with a small untrained prior."""

import json

import pytest
import torch
from PIL import Image

from sampling.edits import main
from shapeloom.config import UserError
from tests.small_pictures import save_disc


@pytest.fixture
def command(runs, pipeline, monkeypatch):
    """Runs an edit into the test's folder at a tiny size."""
    monkeypatch.setattr("sampling.edits.load_pipeline", lambda config: pipeline)
    # The small prior's latents have 4 tokens, fewer than its decoder's config says.
    half = torch.tensor([True, True, False, False])
    masks = {"all": half | True, "geometry": half, "color": ~half}
    monkeypatch.setattr("sampling.edit.changing_tokens", lambda config, layers: masks[layers])
    small = [*runs.arguments, "formats=[glb,safetensors]"]

    def run(*arguments):
        main([*arguments, *small])
        return runs.out

    return run


@pytest.fixture
def latents(pipeline, tmp_path):
    """Two saved shapes."""
    paths = [tmp_path / "first.safetensors", tmp_path / "last.safetensors"]
    for seed, path in enumerate(paths):
        pipeline("a red chair", seed=seed, steps=2)[0].save(path)
    return [str(path) for path in paths]


def test_variations_keep_what_they_should_and_are_shown_beside_their_start(command, pipeline, latents):
    out = command("vary", "--shape", latents[0], "--prompt", "a: #mug", "--layers", "color", "--num", "2")
    records = json.loads((out / "edits.json").read_text())
    assert [(record["prompt"], record["seed"]) for record in records] == [("a: #mug", 0), ("a: #mug", 1)]
    start = pipeline.load_latent(latents[0]).latent
    for record in records:
        made = pipeline.load_latent(out / record["files"]["safetensors"]).latent
        assert (made - start)[:2].abs().max() < 1e-5 < (made - start)[2:].abs().max()
        assert (out / record["files"]["glb"]).stat().st_size > 0
    with Image.open(out / "strip.png") as picture:
        assert picture.width == 3 * 16 and picture.height > 16  # turntable.size, and the whole labels


def test_a_walk_between_shapes_has_both_ends(command, pipeline, latents):
    out = command("between", "--shape", latents[0], "--shape", latents[1], "--num", "3")
    records = json.loads((out / "edits.json").read_text())
    made = [pipeline.load_latent(out / record["files"]["safetensors"]).latent for record in records]
    for end, path in ((0, latents[0]), (-1, latents[1])):
        torch.testing.assert_close(made[end], pipeline.load_latent(path).latent, atol=1e-5, rtol=0)


def test_a_walk_between_prompts_makes_what_their_samples_are(command, pipeline):
    out = command("morph", "--prompt", "a mug", "--prompt", "a red chair", "--num", "2", "--to-seed", "5")
    records = json.loads((out / "edits.json").read_text())
    for record, prompt, seed in zip(records, ("a mug", "a red chair"), (0, 5), strict=True):
        made = pipeline.load_latent(out / record["files"]["safetensors"]).latent
        fresh = pipeline(prompt, seed=seed, steps=2)[0].latent
        torch.testing.assert_close(made, fresh, atol=1e-5, rtol=0)


def test_a_picture_can_be_varied(command, tmp_path):
    save_disc(tmp_path / "disc.png")
    out = command("vary", "--shape", str(tmp_path / "disc.png"), "--prompt", "a mug", "--num", "1")
    assert (out / "strip.png").is_file()


def test_the_same_command_again_is_done_and_another_is_refused(command, latents):
    once = ("vary", "--shape", latents[0], "--prompt", "a mug", "--num", "1")
    out = command(*once)
    before = (out / "strip.png").stat().st_mtime_ns
    command(*once)
    assert (out / "strip.png").stat().st_mtime_ns == before
    with pytest.raises(UserError):
        command("vary", "--shape", latents[0], "--prompt", "a chair", "--num", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vary", "--prompt", "a mug"], "vary takes 1 --shape and 1 --prompt"),
        (["morph", "--prompt", "a", "--prompt", "b", "--num", "1"], "2 steps or more"),
        (["vary", "--shape", "nothing.glb", "--prompt", "a"], "nothing.glb does not exist"),
        (["vary", "--shape", "x", "--prompt", "a", "--strength", "2"], "strength"),
    ],
)
def test_impossible_edits_are_refused(command, arguments, words):
    with pytest.raises(UserError, match=words):
        command(*arguments)


def test_files_of_other_kinds_are_no_shapes(command, tmp_path):
    (tmp_path / "notes.txt").write_text("a chair")
    with pytest.raises(UserError, match="no shape to start from"):
        command("vary", "--shape", str(tmp_path / "notes.txt"), "--prompt", "a mug")
