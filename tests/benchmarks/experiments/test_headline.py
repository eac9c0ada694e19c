"""The comparison of priors runs from one command to its page, and goes on where it stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.drills.tiny_model import write_tiny_model
from benchmarks.experiments.headline import main
from encoder.encode import latent_sample
from encoder.encode import main as encode
from shapeloom.clip import load_clip
from shapeloom.config import UserError
from shapeloom.denoising import Shapes
from shapeloom.runs import read_meta
from shapeloom.shards import AssetShards, finish_dataset, write_shard
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import file_digest
from shapeloom.weights import read_tensors

ROOT = Path(__file__).parents[3]
COLOURS = ("red", "blue", "green")


def write_run(folder: Path, balls: Path) -> Path:
    """A run whose networks know nothing, on balls with captions of their own."""
    write_tiny_model(folder)
    write_tiny_model(folder / "other")
    (folder / "eval").mkdir()
    judge = folder / "other" / "clip"
    weights = {name: 1.5 * value for name, value in read_tensors(judge / "weights.safetensors").items()}
    save_file(weights, judge / "weights.safetensors")
    judge.rename(folder / "eval" / "judge")
    shards, samples = AssetShards(balls), []
    for i, row in enumerate(shards.rows):
        names = [name for name in row.members if name != "json"]
        members = dict(zip(names, shards.members(i, names), strict=True))
        facts = {
            "captions": [f"a {COLOURS[i % 3]} ball"], "split": row.split, "group": row.group,
            "category": "ball", "attributes": {"colour": COLOURS[i % 3]},
        }  # fmt: skip
        samples.append({"__key__": row.key, "json": facts, **members})
    write_shard(folder / "data" / "shards" / "000000.tar", samples)
    finish_dataset(folder / "data", kind="assets", facts={"views": 4, "resolution": 16})
    clip, assets = load_clip(folder / "clip"), AssetShards(folder / "data")
    text = clip.text([row.captions[0] for row in assets.rows])
    latents = [
        latent_sample(
            row.key, {"captions": row.captions, "split": row.split, "group": row.group, "category": "ball",
                      "attributes": row.attributes},
            torch.rand(4, 3) - 0.5, text, slice(i, i + 1), text.pooled[i : i + 1],
        )
        for i, row in enumerate(assets.rows)
    ]  # fmt: skip
    write_shard(folder / "latents" / "shards" / "000000.tar", latents)
    digests = {
        "encoder": file_digest(folder / "encoder" / "weights.safetensors"), "clip": clip.digest,
        "data": assets.digest,
    }  # fmt: skip
    facts = {"tokens": 4, "channels": 3, "layers": [2, 2], "is_set": False, **digests}
    finish_dataset(folder / "latents", kind="latents", facts=facts)
    (folder / "latents" / "meta.json").write_text(json.dumps({"seconds": 1.0}))
    return folder


def test_one_command_makes_the_page_and_goes_on_where_it_stopped(tmp_path: Path, ball_dataset: Path) -> None:
    run, out = write_run(tmp_path / "run", ball_dataset), tmp_path / "out"
    arguments = [
        "--run", str(run), "--out", str(out), "--budgets", "4", "--seeds", "0", "--prompts", "3",
        "--sweep-prompts", "2", "--scales", "1", "3", "--steps", "2", "--resolution", "16",
        "--set-points", "32", "--pictures", "2",
        "--preset", str(ROOT / "configs/prior/points_smoke.yaml"), "--settings", "train.batch_size=4",
        "--cloud-preset", str(ROOT / "configs/encoder/cloud_smoke.yaml"), "--cloud-settings", "train.steps=2",
    ]  # fmt: skip
    main(arguments)
    page = (out / "headline.md").read_text()
    for words in (
        "latent",
        "points, same steps",
        "points, same seconds",
        "chance is 0.333",
        "Ceilings",
        "From a picture",
    ):
        assert words in page
    assert (out / "images" / "headline.png").is_file()
    assert "polyline" in (out / "images" / "headline.svg").read_text()
    clouds = LatentShards(out / "clouds", "train")
    assert clouds.header["is_set"]
    assert torch.equal(
        clouds.read(0)["text_pooled"], LatentShards(run / "latents", "train").read(0)["text_pooled"]
    )
    shapes = Shapes.of(json.loads((out / "points_steps_4_seed0/prior/prior.json").read_text())["shapes"])
    assert (shapes.tokens, shapes.channels, shapes.is_set) == (64, 6, True)
    assert read_meta(out / "points_steps_4_seed0" / "prior", stage="prior")["status"] == "done"
    (out / "points_steps_4_seed0" / "scores.json").unlink()
    kept = (out / "latent_4_seed0" / "scores.json").stat().st_mtime_ns
    main([*arguments, "--page", str(out / "another.md")])
    assert (out / "another.md").read_text() == page.replace("images/headline.", "images/another.")
    assert (out / "images" / "another.png").is_file()
    assert (out / "latent_4_seed0" / "scores.json").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="was begun with other prompts"):
        main([*arguments, "--prompts", "2"])
    with pytest.raises(UserError, match="other data or by another CLIP"):
        encode(
            ["--out", str(tmp_path / "clouds"), "--set", f"data={ball_dataset}", f"clip={run / 'clip'}",
             f"encoder={out / 'cloud_field'}", f"embeddings={run / 'latents'}"]
        )  # fmt: skip


def test_a_run_without_a_judge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"has no clip, encoder, latents, eval/judge.*make demo"):
        main(["--run", str(tmp_path), "--out", str(tmp_path / "out")])
