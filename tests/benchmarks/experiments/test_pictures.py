"""`benchmarks.experiments.pictures` from data to both tables, with parts that have hardly been trained."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import encoder.encode
import encoder.train
import prior.train
import prior.train_clip
from benchmarks.experiments import pictures
from benchmarks.experiments.backgrounds import SIZE, backdrop, cut_again, in_front
from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from eval.sets import SetsConfig
from sampling.cutouts import PictureConfig
from shapeloom.config import UserError
from shapeloom.decoder import RenderConfig
from tests.small_pictures import disc

STEPS = "train={steps: 2, batch_size: 2, warmup_steps: 0, precision: fp32}"
FEW = {"num_train": 4, "num_val": 2, "num_test": 1, "num_judge": 4}


def test_both_tables_are_written_and_nothing_is_sampled_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What hardly trained parts decode to needs no fine rays and grids.
    monkeypatch.setattr(pictures, "SAMPLES", RenderConfig(coarse=4, fine=0))
    monkeypatch.setattr(pictures, "SetsConfig", partial(SetsConfig, resolution=16))
    parts = {name: tmp_path / name for name in ("data", "encoder", "clip", "latents", "prior")}
    small = DataConfig(
        procedural=FEW, num_views=6, resolution=16, num_points=300, num_sdf=300, supersample=1, workers=0
    )
    prepare(small, parts["data"])
    data, smoke = f"data={parts['data']}", "configs/{}/smoke.yaml".format
    encoder.train.main(["--config", smoke("encoder"), "--out", str(parts["encoder"]), "--set", data, STEPS])
    for folder, split in ((parts["clip"], "train"), (tmp_path / "eval" / "judge", "judge")):
        settings = ["--set", data, STEPS, f"split={split}"]
        prior.train_clip.main(["--config", smoke("clip"), "--out", str(folder), *settings])
    made = [f"{name}={parts[name]}" for name in ("encoder", "clip")]
    encoder.encode.main(
        ["--out", str(parts["latents"]), "--set", data, *made, "workers=0", "fidelity_size=8"]
    )
    several = [f"latents={parts['latents']}", STEPS, "mixture.max_views=3"]
    prior.train.main(["--config", smoke("prior"), "--out", str(parts["prior"]), "--set", *several])
    out = tmp_path / "out"
    arguments = ["--run", str(tmp_path), "--out", str(out), "--num", "3", "--steps", "2", "--points", "64"]
    pictures.main([*arguments, "--busy", "2"])
    table = (out / "table.md").read_text()
    assert table.count("\n") == 2 + 4 and "max_views 3" in table
    assert (out / "backgrounds.md").read_text().count("\n") == 2 + 6
    results = json.loads((out / "results.json").read_text())
    assert len(results["backgrounds"]["busy, cut out by colours"]["iou"]) == 2
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert len(before) == 4 + 6
    pictures.main([*arguments, "--busy", "2"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(UserError, match="begun with other options"):
        pictures.main([*arguments, "--busy", "0"])


@pytest.mark.parametrize("kind", ["shaded", "busy"])
def test_an_object_before_a_background_keeps_its_own_pixels(kind: str) -> None:
    truth = disc((250, 0, 250), width=SIZE, height=SIZE, radius=70, alpha=True)
    behind = backdrop(kind, 0)
    assert behind.shape == (SIZE, SIZE, 3) and 0 <= behind.min() < behind.max() <= 1
    mixed = in_front(truth, behind)
    inside = truth[..., 3] > 0
    assert (mixed[..., 3] == 255).all() and (mixed[inside][:, :3] == (250, 0, 250)).all()
    np.testing.assert_allclose(mixed[~inside][:, :3] / 255, behind[~inside], atol=0.002)
    seen, iou = cut_again(mixed, truth, PictureConfig())
    assert iou > 0.9 and (seen[0, 0] == 255).all()


def test_where_nothing_is_found_the_matte_counts_as_wrong() -> None:
    truth = disc(alpha=True)
    seen, iou = cut_again(np.full_like(truth, 255), truth, PictureConfig())
    assert iou == 0 and (seen == 255).all()
