"""The whole stage on a tiny run whose models were never trained."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from upath import UPath

import eval.__main__ as evaluation
from encoder.model import Autoencoder, EncoderConfig
from prior.train_clip import DualEncoderConfig, fit, read_pairs
from sampling.pipeline import ShapePipeline
from shapeloom import distributed
from shapeloom.checkpoint import save_weights
from shapeloom.config import Config, UserError
from shapeloom.decoder import DecoderConfig
from shapeloom.runs import Run
from shapeloom.shards import AssetShards
from shapeloom.storage import parse_path, write_atomic
from shapeloom.training import TrainConfig

SETTINGS = [
    "reconstruction.views=1", "reconstruction.max_assets=1", "reconstruction.mesh.resolution=16",
    "reconstruction.samples.coarse=4", "reconstruction.samples.fine=0", "reconstruction.surface_points=200",
    "reconstruction.surface_resolution=16",
    "generation.num_prompts=3", "generation.views=1", "generation.size=16", "generation.steps=1",
    "generation.sets.points=128", "generation.sets.resolution=16",
    "generation.samples.coarse=4", "generation.samples.fine=0", "generation.beside=1",
    "judge.clip.image_size=16",
    "judge.clip.num_views=1", "judge.clip.embed_dim=8", "judge.clip.image_width=32",
    "judge.clip.image_layers=1", "judge.clip.text_width=32", "judge.clip.text_layers=1",
    "judge.clip.train.steps=1", "judge.clip.train.batch_size=2", "judge.clip.train.precision=fp32",
]  # fmt: skip


class FakeSample:
    def __init__(self, latent: Tensor) -> None:
        self.latent = latent


class FakePipeline(ShapePipeline):
    """Zero latents, whatever the prompt."""

    loaded = 0

    def __init__(self) -> None:
        pass

    @classmethod
    def load(cls, **folders: Any) -> "FakePipeline":
        cls.loaded += 1
        return cls()

    def __call__(self, prompts: list[str], **settings: Any) -> list[FakeSample]:
        assert len(settings["seeds"]) == len(prompts) and settings["steps"] == 1
        return [FakeSample(torch.zeros(4, 4)) for _ in prompts]


@pytest.fixture
def run(coloured_balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with data, an encoder, a CLIP and a prior's meta.json."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "data").symlink_to(coloured_balls)
    encoder = EncoderConfig(width=16, heads=2, num_layers=1, num_points=64, grid=8)
    settings = {
        "projection": {"num_tokens": 4, "channels": 4, "rank": 4},
        "field": {"geometry": {"width": 8}, "color": {"width": 8}},
    }
    decoder = DecoderConfig.model_validate(settings)
    model = Autoencoder(encoder, decoder)
    with Run.open(folder / "encoder", Config(), stage="encoder") as made:
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            write_atomic(folder / "encoder" / f"{name}.yaml", yaml.safe_dump(part.model_dump(mode="json")))
        made.finish(weights_digest=save_weights(folder / "encoder", model.state_dict()))
    clip = DualEncoderConfig(
        embed_dim=8, image_size=16, image_width=32, image_layers=1, text_width=32, text_layers=1,
        train=TrainConfig(steps=1, batch_size=2, precision="fp32"),
    )  # fmt: skip
    images, captions = read_pairs(AssetShards(coloured_balls, "train"), size=16, num_views=1)
    with Run.open(folder / "clip", clip, stage="clip") as conditioner:
        fit(images, captions, clip, conditioner, distributed.start())
        conditioner.finish()
    with Run.open(folder / "prior", Config(), stage="prior") as prior:
        prior.finish(weights_digest=save_weights(folder / "prior", {"x": torch.zeros(1)}))
    monkeypatch.setattr(evaluation, "ShapePipeline", FakePipeline)
    monkeypatch.setattr(FakePipeline, "loaded", 0)
    return folder


def evaluate(run: Path, *settings: str, out: str = "eval") -> None:
    evaluation.main(["--out", str(run / out), "--set", f"run={run}", *SETTINGS, *settings])


def test_numbers_and_page_are_written_where_people_look_for_them(run: Path) -> None:
    (run / "setup").write_text("12.5\n")
    evaluate(run, f"setup_seconds_file={run / 'setup'}")
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"psnr", "iou", "chamfer", "fscore_0.02", "slope", "blank", "nearest"} <= metrics[
        "reconstruction"
    ].keys()
    wanted = {"clip_score", "r_at_1", "r_at_5", "chance", "ceiling_r_at_1"}
    assert wanted <= metrics["generation"].keys()
    stages = ["setup", "data_prep", "clip", "encoder", "encode", "prior", "sample", "eval"]
    assert list(metrics["seconds"]) == stages
    assert metrics["seconds"]["setup"] == 12.5 and metrics["seconds"]["eval"] > 0
    assert metrics["seconds"]["encode"] is None  # this run has no latents
    sets = {"mmd_cd", "cov_cd", "one_nna_cd", "frechet", "memorised", "training_mmd_cd"}
    assert sets <= metrics["generation"]["sets"].keys()
    page = (run / "report.html").read_text()
    assert "a blue ball (held out)" in page
    assert "Surface F-score at 0.02" in page and "Shapes of held-out assets" in page
    assert (run / "eval" / "shapes.png").is_file()
    assert "1-NNA-CD" in page and "nearest: a " in page


def test_a_finished_evaluation_does_nothing_and_an_interrupted_one_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "build_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(run)
    assert not (run / "metrics.json").exists()
    evaluate(run)
    written = (run / "metrics.json").read_text()
    evaluate(run)
    assert FakePipeline.loaded == 1  # samples were kept
    assert (run / "metrics.json").read_text() == written


def test_data_on_object_storage_gives_the_same_numbers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(run))  # of the cache of shards
    evaluate(run)
    here = json.loads((run / "metrics.json").read_text())
    data, url = (run / "data").resolve(), parse_path("memory://evaluated/data")
    for path in data.rglob("*"):
        if path.is_file():
            (url / path.relative_to(data).as_posix()).write_bytes(path.read_bytes())
    (run / "data").unlink()
    evaluate(run, f"data={url}", out="eval_there")
    UPath("memory://evaluated").fs.store.clear()
    there = json.loads((run / "metrics.json").read_text())
    for part in ("reconstruction", "generation"):
        assert there[part] == here[part]
    assert list(run.glob("shapeloom-shards-*/*.tar"))


def test_data_without_a_judge_is_measured_but_for_the_samples(run: Path) -> None:
    evaluate(run, "judge.clip.split=nobody")
    metrics = json.loads((run / "metrics.json").read_text())
    assert "nobody" in metrics["generation"]["skipped"]
    assert metrics["reconstruction"]["num_assets"] == 2
    assert "Samples were not judged" in (run / "report.html").read_text()


def test_an_unfinished_prior_is_refused_by_name(run: Path) -> None:
    meta = json.loads((run / "prior" / "meta.json").read_text())
    (run / "prior" / "meta.json").write_text(json.dumps(meta | {"status": "running"}))
    with pytest.raises(UserError, match="prior"):
        evaluate(run)


def test_results_of_another_prior_are_not_mixed_in(run: Path) -> None:
    evaluate(run)
    meta = json.loads((run / "prior" / "meta.json").read_text())
    another = save_weights(run / "prior", {"x": torch.ones(1)})
    with pytest.raises(UserError, match=r"prior/weights\.safetensors isn't the file"):
        evaluate(run)
    (run / "prior" / "meta.json").write_text(json.dumps(meta | {"weights_digest": another}))
    with pytest.raises(UserError, match="another prior"):
        evaluate(run)
