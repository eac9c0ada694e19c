"""The encoder's trainer as a whole: through its command line, on spheres in closed form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from encoder.model import load_encoder, read_for_encoding
from encoder.train import EncoderTask, EncoderTrainConfig, bottleneck_noise, main
from shapeloom.config import UserError
from shapeloom.shards import AssetShards
from shapeloom.surface_metrics import FIELD_SCORES
from shapeloom.training import TrainConfig

PRESET = "configs/encoder/smoke.yaml"


def run(out: Path, data: Path, *settings: str) -> None:
    main(["--config", PRESET, "--out", str(out), "--set", f"data={data}", *settings])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ball_dataset: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "encoder"
    run(out, ball_dataset, "train.precision=fp32")
    return out


def test_a_finished_run_can_be_loaded_and_encodes_deterministically(
    trained: Path, ball_dataset: Path
) -> None:
    model = load_encoder(trained)
    shards = AssetShards(ball_dataset, split="test")
    samples = [read_for_encoding(shards, i, model.encoder.config) for i in range(2)]
    latent = model.encode(samples)
    assert latent.shape == (2, 16, 8)
    assert latent.abs().max() <= 1
    torch.testing.assert_close(model.encode(samples[1:]), latent[1:], rtol=1e-5, atol=1e-5)


def test_held_out_surfaces_are_measured_while_it_trains(trained: Path) -> None:
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {f"held_out/{name}" for name in FIELD_SCORES} <= last.keys()


def test_an_interrupted_run_ends_with_the_same_bytes(
    trained: Path, ball_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupt(self: object, model: object, step: int) -> dict:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("encoder.train.EncoderTask.pictures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(
                tmp_path,
                ball_dataset,
                "train.precision=fp32",
                "train.checkpoint_every=4",
                "train.picture_every=10",
            )
    assert calls == 1
    run(tmp_path, ball_dataset, "train.precision=fp32", "train.checkpoint_every=4", "train.picture_every=10")
    before, now = (load_file(folder / "weights.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(before[name], now[name]) for name in before)


def test_a_finished_run_is_left_alone(trained: Path, ball_dataset: Path) -> None:
    changed = (trained / "weights.safetensors").stat().st_mtime_ns
    run(trained, ball_dataset, "train.precision=fp32")
    assert (trained / "weights.safetensors").stat().st_mtime_ns == changed


def test_another_config_in_the_same_folder_is_refused(trained: Path, ball_dataset: Path) -> None:
    with pytest.raises(UserError, match=r"train\.seed was 0, now 1"):
        run(trained, ball_dataset, "train.precision=fp32", "train.seed=1")


def test_a_decoder_trained_alone_leaves_the_latents_as_they_are(
    trained: Path, ball_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hardened"
    with pytest.raises(UserError, match="name it as `start`"):
        run(out, ball_dataset, "decoder_alone=true")
    run(
        out,
        ball_dataset,
        "train.precision=fp32",
        f"start={trained}",
        "decoder_alone=true",
        "bottleneck_noise=0.2",
    )
    before, after = load_file(trained / "weights.safetensors"), load_file(out / "weights.safetensors")
    assert before.keys() == after.keys()
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}


def test_the_bottleneck_s_noise_grows_to_its_end() -> None:
    train = TrainConfig(steps=5)
    config = EncoderTrainConfig(data="x", bottleneck_noise=0.1, bottleneck_noise_end=0.3, train=train)
    np.testing.assert_allclose(
        [bottleneck_noise(config, step) for step in range(5)], [0.1, 0.15, 0.2, 0.25, 0.3]
    )
    still = EncoderTrainConfig(data="x", bottleneck_noise=0.1, train=train)
    assert bottleneck_noise(still, 4) == 0.1


def test_the_loss_is_of_latents_with_their_batch_s_noise(ball_dataset: Path) -> None:
    shards = AssetShards(ball_dataset, split="train")
    settings = {"data": ball_dataset, "train": TrainConfig(steps=2, batch_size=2), "losses": {"rays_from": 0}}
    losses = {}
    for last in (0.0, 0.5):
        config = EncoderTrainConfig(bottleneck_noise=0, bottleneck_noise_end=last, **settings)
        task = EncoderTask(config, shards, shards)
        losses[last] = [
            task.loss(task.model, task.batch(range(2 * step, 2 * step + 2)))[0].item() for step in (0, 1)
        ]
    assert losses[0.0][0] == losses[0.5][0]
    assert losses[0.0][1] != losses[0.5][1]


def test_tampered_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    for name in ("meta.json", "encoder.yaml", "decoder.yaml"):
        (tmp_path / name).write_text((trained / name).read_text())
    data = bytearray((trained / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(bytes(data))
    with pytest.raises(UserError, match="digest"):
        load_encoder(tmp_path)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_of_one(trained: Path, ball_dataset: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    settings = [f"data={ball_dataset}", "train.precision=fp32"]
    command = ["encoder.train", "--config", PRESET, "--out", str(tmp_path / "two"), "--set", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(trained), rtol=1e-3)
