"""`small` and `base` are whole sets of presets: their stages fit together, and each runs on its own."""

import json
from pathlib import Path

import pytest
import yaml

from data_prep import __main__ as data_prep
from data_prep.pipeline import DataConfig
from encoder import encode
from encoder import train as train_encoder
from encoder.train import EncoderTrainConfig
from eval import __main__ as evaluation
from prior import classifier, distill, train, train_clip, train_views
from prior.train import PriorConfig
from prior.views import ViewTrainConfig
from sampling import __main__ as sampling
from scripts.config_docs import PATH, STAGES, config_of, keys, text
from shapeloom.config import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = {
    "data_prep": "data_prep/{}", "prior.train_clip": "clip/{}", "encoder.train": "encoder/{}",
    "encoder.encode": "encode/{}", "prior.train": "prior/{}", "prior.distill": "prior/distill_{}",
    "prior.classifier": "prior/classifier_{}", "prior.train_views": "views/{}",
    "sampling": "sampling/{}", "eval": "eval/{}",
}  # fmt: skip
STEPS = [
    "train.steps=2",
    "train.batch_size=2",
    "train.warmup_steps=1",
    "train.precision=fp32",
    "train.picture_every=2",
]
TOWERS = ["image_size=32", "resnet_width=2", "text_width=32", "text_layers=1", "embed_dim=32"]
SHRUNK = {
    "data_prep": [
        "procedural={num_train: 4, num_val: 1, num_test: 1, num_judge: 3}", "resolution=32", "num_points=300",
        "num_sdf=300", "supersample=1",
    ],
    "prior.train_clip": [*STEPS, *TOWERS],
    "encoder.train": [
        *STEPS, "encoder.width=32", "encoder.heads=2", "encoder.num_layers=1", "encoder.num_points=256",
        "encoder.grid=8", "encoder.grid_hidden=16", "decoder.projection.rank=64",
        "decoder.projection.channels=4",
        "decoder.field.geometry.width=16", "decoder.field.color.width=16", "losses.num_rays=8",
        "losses.num_surface_points=16", "losses.num_sdf_points=16",
    ],
    "encoder.encode": ["batch_size=2", "fidelity_size=16", "clip_views=2", "workers=0"],
    "prior.train": [*STEPS, "network.width=32", "network.heads=2", "network.depth=1"],
    "prior.distill": STEPS,
    "prior.classifier": [*STEPS, "network.width=32", "network.heads=2", "network.depth=1"],
    "prior.train_views": [
        *STEPS, "network.size=16", "network.channels=[8, 8, 16, 16]", "network.head_width=8",
        "network.context_width=16", "network.reference_patch=8", "network.reference_depth=1",
    ],
    "sampling": [
        "steps=2", "captions=1", "mesh={resolution: 16, max_faces: 100, texture_size: 16}", "retries=0",
        "turntable={frames: 2, size: 16, samples: {coarse: 4, fine: 4}}",
    ],
    "eval": [
        "reconstruction={max_assets: 1, views: 1, size: 16, samples: {coarse: 4, fine: 4}, "
        "mesh: {resolution: 16}, surface_points: 200, surface_resolution: 16, pictures: 1, sheet: 1}",
        *(f"judge.clip.{each}" for each in [*TOWERS, *STEPS]),
        "generation={num_prompts: 2, steps: 2, batch_size: 2, views: 1, size: 16, "
        "samples: {coarse: 4, fine: 4}, beside: 1, sets: {max_samples: 2, points: 64, resolution: 16}}",
    ],
}  # fmt: skip
"""What makes a preset of GPUs a matter of seconds: less data, fewer steps, narrower networks."""


@pytest.mark.parametrize("size", ["small", "base"])
def test_the_stages_of_a_set_fit_together_at_full_size(size: str) -> None:
    data = load_config(DataConfig, CONFIGS / f"data_prep/{size}.yaml")
    trained = load_config(EncoderTrainConfig, CONFIGS / f"encoder/{size}.yaml", ["data=x"])
    encoder, losses = trained.encoder, trained.losses
    assert encoder.num_points <= data.num_points and losses.num_surface_points <= data.num_points
    assert losses.num_sdf_points <= data.num_sdf and encoder.num_views <= data.num_views
    assert data.resolution % encoder.patch == 0 and encoder.width % encoder.heads == 0
    encoded = load_config(
        encode.EncodeConfig, CONFIGS / f"encode/{size}.yaml", ["data=x", "encoder=x", "clip=x"]
    )
    assert data.resolution % encoded.fidelity_size == 0 and encoded.clip_views <= data.num_views
    prior = load_config(PriorConfig, CONFIGS / f"prior/{size}.yaml")
    sorter = load_config(classifier.ClassifierConfig, CONFIGS / f"prior/classifier_{size}.yaml")
    for group in (prior.network.group, sorter.network.group):
        assert trained.decoder.projection.num_tokens % group == 0
    seen = load_config(ViewTrainConfig, CONFIGS / f"views/{size}.yaml", ["data=x"])
    assert data.resolution % seen.network.size == 0 and seen.mixture.max_references < data.num_views
    judge = load_config(evaluation.EvalConfig, CONFIGS / f"eval/{size}.yaml", ["run=x"]).reconstruction
    assert judge.size is None or data.resolution % judge.size == 0


@pytest.mark.parametrize("size", ["small", "base"])
def test_every_stage_runs_on_its_preset(tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def arguments(stage: str, name: str, *settings: str) -> list[str]:
        preset = CONFIGS / f"{PRESETS[stage].format(size)}.yaml"
        return ["--config", str(preset), "--out", str(run / name), "--set", *settings, *SHRUNK[stage]]

    data, made = f"data={run}/data", [f"latents={run}/latents"]
    monkeypatch.setattr("sys.argv", ["data_prep", *arguments("data_prep", "data")])
    data_prep.main()
    train_clip.main(arguments("prior.train_clip", "clip", data))
    train_encoder.main(arguments("encoder.train", "encoder", data))
    models = [f"encoder={run}/encoder", f"clip={run}/clip"]
    encode.main(arguments("encoder.encode", "latents", data, *models))
    train.main(arguments("prior.train", "prior", *made))
    distill.main(arguments("prior.distill", "few", f"teacher={run}/prior", *made))
    classifier.main(arguments("prior.classifier", "classifier", f"prior={run}/prior", *made))
    train_views.main(arguments("prior.train_views", "views", data, f"clip={run}/clip"))
    sampling.main(arguments("sampling", "samples", f"prior={run}/prior", *models))
    evaluation.main(arguments("eval", "eval", f"run={run}"))
    # Two steps teach nothing, so objects may be empty, but each was made and looked at.
    assert (run / "report.html").is_file()
    assert len(json.loads((run / "samples/metadata.json").read_text())["samples"]) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_says_what_it_means(stage: str) -> None:
    assert [key for key, _, meaning in keys(config_of(stage), None) if not meaning] == []


def test_the_page_of_all_keys_is_what_the_configs_say() -> None:
    assert PATH.read_text() == text(), "docs/config.md is stale: run `make config-docs`"


def test_print_config_prints_what_presets_and_options_come_to_and_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        train_clip.main: [], train_encoder.main: ["data=x"], encode.main: ["data=x", "encoder=x", "clip=x"],
        train.main: [], distill.main: [], classifier.main: [], evaluation.main: ["run=x"],
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for main, settings in given.items():
        with pytest.raises(SystemExit) as end:
            main(["--print-config", *(["--set", *settings] if settings else [])])
        assert end.value.code == 0 and isinstance(yaml.safe_load(capsys.readouterr().out), dict)
    with pytest.raises(SystemExit):
        sampling.main(["--config", str(CONFIGS / "sampling/tiny.yaml"), "--seed", "7", "--print-config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["steps"], printed["mesh"]["resolution"]) == (7, 24, 96)
    assert not any(tmp_path.iterdir())


def test_a_printed_config_is_a_preset_that_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = CONFIGS / "encoder/small.yaml"
    with pytest.raises(SystemExit):
        train_encoder.main(["--config", str(preset), "--set", "data=x", "--print-config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(EncoderTrainConfig, tmp_path / "printed.yaml") == load_config(
        EncoderTrainConfig, preset, ["data=x"]
    )
