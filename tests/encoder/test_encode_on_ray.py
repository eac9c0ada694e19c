"""The same latents from a Ray cluster of two nodes."""

import os
from pathlib import Path

import pytest

import encoder.encode as encode
from encoder.train import main as train_encoder
from prior.train_clip import main as train_clip

# Ray's own processes leave sockets and files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [folder / "dataset.json", *(folder / "shards").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


def test_latents_from_two_nodes_are_those_of_one_process(
    ray_cluster,
    ball_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = ["train.precision=fp32", "train.steps=2", f"data={ball_dataset}"]
    for train, name in ((train_encoder, "encoder"), (train_clip, "clip")):
        preset = f"configs/{name}/smoke.yaml"
        train(["--config", preset, "--out", str(tmp_path / name), "--set", *quick])
    root = os.getcwd()
    monkeypatch.chdir(tmp_path)  # paths as people type them
    parts = [f"data={os.path.relpath(ball_dataset)}", "encoder=encoder", "clip=clip", "fidelity_size=8"]
    encode.main(["--out", "here", "--set", *parts, "workers=0"])
    encode.main(["--out", "there", "--executor", "ray", "--set", *parts])
    monkeypatch.chdir(root)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
