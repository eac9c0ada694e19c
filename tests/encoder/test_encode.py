"""Encoding as a whole: through its command line, on spheres in closed form."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import encoder.encode as encode
from encoder.model import load_encoder, read_for_encoding
from encoder.train import main as train_encoder
from prior.train_clip import main as train_clip
from shapeloom.config import UserError
from shapeloom.shards import AssetShards
from shapeloom.shards.tensors import LatentShards


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, ball_dataset: Path) -> list[str]:
    """Settings that name the data, an encoder and a CLIP, hardly trained."""
    folder = tmp_path_factory.mktemp("parts")
    quick = ["train.precision=fp32", "train.steps=2", f"data={ball_dataset}"]
    encoder_config, clip_config = "configs/encoder/smoke.yaml", "configs/clip/smoke.yaml"
    train_encoder(["--config", encoder_config, "--out", str(folder / "encoder"), "--set", *quick])
    train_clip(["--config", clip_config, "--out", str(folder / "clip"), "--set", *quick])
    return [f"data={ball_dataset}", f"encoder={folder / 'encoder'}", f"clip={folder / 'clip'}"]


def run(out: Path, parts: list[str], workers: int) -> None:
    encode.main(["--out", str(out), "--set", *parts, "fidelity_size=8", f"workers={workers}"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.fixture(scope="module")
def latents(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents")
    run(out, parts, workers=0)
    return out


def test_each_asset_becomes_a_latent_with_its_captions_and_fidelity(latents: Path, ball_dataset: Path):
    assets, encoded = AssetShards(ball_dataset), LatentShards(latents)
    assert [row.key for row in encoded.rows] == [row.key for row in assets.rows]
    facts = encoded.facts(3)
    assert facts["captions"] == assets.rows[3].captions
    assert 0 < facts["fidelity"]["psnr"] < 60
    assert 0 <= facts["fidelity"]["iou"] <= 1
    assert encoded.read(3)["latent"].abs().max() <= 1


def test_copies_are_the_latents_of_moved_points(latents: Path, parts: list[str], tmp_path: Path):
    encode.main(
        [
            "--out",
            str(tmp_path),
            "--set",
            *parts,
            "fidelity_size=8",
            "workers=0",
            "mirrored=true",
            "turned=true",
        ]
    )
    plain, moved = LatentShards(latents), LatentShards(tmp_path)
    copies = moved.read(3)["latent_copies"]
    assert copies.shape == (7, *plain.read(3)["latent"].shape)
    torch.testing.assert_close(moved.read(3)["latent"], plain.read(3)["latent"])
    model = load_encoder(Path(parts[1].removeprefix("encoder=")))
    sample = read_for_encoding(AssetShards(Path(parts[0].removeprefix("data="))), 3, model.encoder.config)
    assert sample.points is not None and sample.points_normal is not None
    flip = np.array([-1, 1, 1])
    poses = sample.cam_to_world * np.array([-1, 1, 1, 1], np.float32)[:, None]
    mirrored = replace(
        sample, points=sample.points * flip.astype(np.float32),
        points_normal=(sample.points_normal * flip).astype(np.int8), cam_to_world=poses,
    )  # fmt: skip
    torch.testing.assert_close(copies[3].float(), model.encode([mirrored])[0], atol=1e-3, rtol=1e-3)
    assert len(torch.unique(copies.flatten(1), dim=0)) == 7


@pytest.fixture(scope="module")
def stretching(ball_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of points alone that saw stretched assets and no mirror images."""
    out = tmp_path_factory.mktemp("stretching")
    quick = ["train.precision=fp32", "train.steps=1", f"data={ball_dataset}", "encoder.num_views=0"]
    augment = "augment={mirror: false, stretch: 0.3}"
    train_encoder(["--config", "configs/encoder/smoke.yaml", "--out", str(out), "--set", *quick, augment])
    return out


def test_stretched_copies_are_the_latents_of_ellipsoids(parts: list[str], stretching: Path, tmp_path: Path):
    settings = [parts[0], f"encoder={stretching}", parts[2], "fidelity_size=8", "workers=0"]
    for out in (tmp_path / "once", tmp_path / "again"):
        encode.main(["--out", str(out), "--set", *settings, "stretched=2"])
    assert contents(tmp_path / "once") == contents(tmp_path / "again")
    copies = LatentShards(tmp_path / "once").read(3)["latent_copies"]
    model = load_encoder(stretching)
    config = encode.EncodeConfig(data=settings[0][5:], encoder=stretching, clip="", stretched=2)
    ball = read_for_encoding(AssetShards(settings[0][5:]), 3, model)
    (changed,) = encode._changed([ball], config)
    torch.testing.assert_close(copies.float(), model.encode(changed), atol=1e-3, rtol=1e-3)
    for copy in changed:
        assert copy.points is not None and copy.points_normal is not None
        radii = np.abs(copy.points).max(0)
        assert radii.max() == pytest.approx(np.abs(ball.points).max(), rel=1e-5)  # it still fills its cube
        assert 1.02 < radii.max() / radii.min() < 1.31
        gradient = copy.points / radii**2
        gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
        assert np.einsum("nd,nd->n", gradient, copy.points_normal / 127).min() > 0.98


def test_copies_that_the_encoder_never_saw_are_refused(parts: list[str], stretching: Path, tmp_path: Path):
    def run(folder: str, *copies: str) -> None:
        settings = [parts[0], folder, parts[2], *copies]
        encode.main(["--out", str(tmp_path / "latents"), "--set", *settings])

    with pytest.raises(UserError, match=r"train one with augment\.mirror"):
        run(f"encoder={stretching}", "mirrored=true")
    with pytest.raises(UserError, match=r"train one with augment\.stretch"):
        run(parts[1], "stretched=2")


def test_any_number_of_workers_writes_the_same_bytes(latents: Path, parts: list[str], tmp_path: Path):
    run(tmp_path, parts, workers=2)
    assert contents(tmp_path) == contents(latents)


def test_a_kill_loses_no_finished_shard(
    latents: Path, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written: list[Path] = []

    def write_one(path, samples):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_shard(path, samples)

    write_shard = encode.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(encode, "write_shard", write_one)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, parts, workers=0)
    first = written[0].stat().st_mtime_ns
    run(tmp_path, parts, workers=0)
    assert written[0].stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(latents)
