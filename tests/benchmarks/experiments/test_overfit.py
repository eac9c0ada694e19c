"""The overfit gate at toy size: two assets by heart in seconds, and a stop where they aren't."""

from pathlib import Path

import pytest

from benchmarks.experiments.overfit import main
from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from encoder.train import main as train
from shapeloom.config import load_config

DATA = [
    "resolution=24",
    "num_views=6",
    "num_points=512",
    "num_sdf=512",
    "procedural.num_train=2",
    "workers=0",
]
TRAINING = [
    "encoder.num_points=256",
    "encoder.width=32",
    "losses.num_rays=128",
    "losses.num_surface_points=64",
]


def test_assets_are_learnt_by_heart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(load_config(DataConfig, Path("configs/data_prep/overfit.yaml"), DATA), tmp_path / "data")
    schedule = ["train.steps=80", "train.batch_size=2", "train.warmup_steps=10", "train.precision=fp32"]
    arguments = [f"data={tmp_path / 'data'}", *TRAINING, *schedule]
    train(
        ["--config", "configs/encoder/overfit.yaml", "--out", str(tmp_path / "encoder"), "--set", *arguments]
    )
    main([str(tmp_path), "--wanted", "22"])
    assert "held-in PSNR" in capsys.readouterr().out
    assert (tmp_path / "overfit.png").is_file()
    with pytest.raises(SystemExit, match="below 90 dB"):
        main([str(tmp_path), "--wanted", "90"])
