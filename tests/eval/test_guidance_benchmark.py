"""`benchmarks.experiments.guidance` from data to table, with parts that have hardly been trained."""

from pathlib import Path

import pytest

import encoder.encode
import encoder.train
import prior.classifier
import prior.train
import prior.train_clip
from benchmarks.experiments import guidance, settings
from shapeloom.shards import AssetShards, finish_dataset, write_shard


def two_classes(balls: Path, folder: Path) -> Path:
    """The balls again, those that aren't red as globes."""
    shards, samples = AssetShards(balls), []
    for i, row in enumerate(shards.rows):
        names = [name for name in row.members if name != "json"]
        members = dict(zip(names, shards.members(i, names), strict=True))
        category = "ball" if row.attributes["colour"] == "red" else "globe"
        facts = shards.facts(i) | {"category": category}
        samples.append({"__key__": row.key, "json": facts, **members})
    write_shard(folder / "shards" / "000000.tar", samples)
    finish_dataset(folder, kind="assets", facts={"views": shards.num_views, "resolution": shards.resolution})
    return folder


STEPS = "train={steps: 2, batch_size: 2, warmup_steps: 0, precision: fp32}"


def test_each_setting_is_measured_and_drawn(
    coloured_balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {name: tmp_path / name for name in ("encoder", "clip", "latents", "prior", "classifier")}
    data, judge = f"data={two_classes(coloured_balls, tmp_path / 'data')}", tmp_path / "eval" / "judge"
    smoke = "configs/{}/smoke.yaml".format
    encoder.train.main(["--config", smoke("encoder"), "--out", str(parts["encoder"]), "--set", data, STEPS])
    for folder, split in ((parts["clip"], "train"), (judge, "judge")):
        of_split = ["--set", data, STEPS, f"split={split}"]
        prior.train_clip.main(["--config", smoke("clip"), "--out", str(folder), *of_split])
    made = [f"{name}={parts[name]}" for name in ("encoder", "clip")]
    quickly = ["workers=0", "fidelity_size=8"]
    encoder.encode.main(["--out", str(parts["latents"]), "--set", data, *made, *quickly])
    latents = f"latents={parts['latents']}"
    prior.train.main(["--config", smoke("prior"), "--out", str(parts["prior"]), "--set", latents, STEPS])
    of_prior = [f"prior={parts['prior']}", latents, STEPS, "network={width: 16, heads: 2}"]
    prior.classifier.main(["--out", str(parts["classifier"]), "--set", *of_prior])
    monkeypatch.setattr(guidance, "SETTINGS", ((0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.0, 30.0)))
    out = tmp_path / "out"
    arguments = ["--model", str(tmp_path), "--classifier", str(parts["classifier"]), "--out", str(out)]
    guidance.main([*arguments, "--num", "2", "--steps", "2"])
    assert (out / "table.md").read_text().count("\n") == 2 + 3
    assert len(list(out.glob("*.png"))) == 3
    chosen = tmp_path / "settings"
    quick = ["--num", "3", "--points", "64"]
    tried = ["steps=2 guidance_scale=1", f"steps=2 weaker={parts['prior']}"]
    settings.main(["--model", str(tmp_path), "--out", str(chosen), *quick, *tried])
    table = (chosen / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {n}" for n in ("training assets", *tried)]
    assert len(list(chosen.glob("*/*/samples.png"))) == 2
