"""Cap3D's files as latent shards that a text model is fine-tuned on."""

from pathlib import Path

import pytest
import torch

import prior.train as prior_stage
import sampling.shap_e.cap3d as cap3d
from shapeloom.config import UserError
from shapeloom.shards.tensors import LatentShards
from tests.small_shap_e import FakeClip, write_converted, write_published


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_converted(write_published(folder), folder / "text")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """12 latents, the last without a caption, and captions of one object more."""
    (tmp_path / "files" / "part_0").mkdir(parents=True)
    for i in range(12):
        latent = torch.tanh(torch.randn(1, 2048, generator=torch.Generator().manual_seed(i)))
        torch.save(latent, tmp_path / "files" / "part_0" / f"uid{i:02d}.pt")
    lines = [f'uid{i:02d},"a ball, number {i}"' for i in (*range(11), 99)]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def read(files: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str = "latents") -> Path:
    monkeypatch.setattr(cap3d, "load_clip", lambda *_: FakeClip())
    out = files / name
    cap3d.main([
        "--out", str(out), "--set", f"latents={files / 'files'}", f"captions={files / 'captions.csv'}",
        f"encoder={model / 'encoder'}", "shard_size=4", "held_out=0.2",
    ])  # fmt: skip
    return out


def test_latents_and_captions_are_read_and_fine_tuned_on(
    files: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = read(files, model, monkeypatch)
    shards = LatentShards(out)
    assert [row.key for row in shards.rows] == [f"uid{i:02d}" for i in range(11)]
    assert shards.rows[3].captions == ["a ball, number 3"]
    assert shards.header["splits"].keys() == {"train", "val"}
    whole = torch.load(files / "files" / "part_0" / "uid03.pt", weights_only=True)
    torch.testing.assert_close(shards.read(3)["latent"].float().flatten(), whole[0], atol=5e-4, rtol=0)
    settings = [
        f"latents={out}", f"fine_tune.init_from={model / 'prior'}", "fine_tune.lora_rank=2",
        "network={kind: shap_e_text, width: 32, depth: 2, heads: 4}", "train.steps=2", "train.batch_size=2",
        "train.accumulation=1", "diffusion={schedule: shap_e, target: x0, times: uniform}",
    ]  # fmt: skip
    with pytest.raises(UserError, match="holds no pictures"):
        prior_stage.main(["--out", str(files / "a"), "--set", *settings])
    settings += ["mixture.image_only=0", "mixture.text_and_image=0"]
    prior_stage.main(["--out", str(files / "b"), "--set", *settings])
    assert (files / "b" / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1, 2047), r"uid05\.pt holds torch\.float32 \[1, 2047\].*2048 numbers"),
        (torch.full((1, 2048), torch.nan), r"uid05\.pt holds NaN"),
        ({"latent": torch.zeros(1, 2048)}, r"uid05\.pt holds dict"),
        (Path("/"), r"uid05\.pt is no file of a bare tensor"),
    ],
)
def test_bad_files_are_named(
    files: Path, model: Path, monkeypatch: pytest.MonkeyPatch, value: object, message: str
) -> None:
    torch.save(value, files / "files" / "part_0" / "uid05.pt")
    with pytest.raises(UserError, match=message):
        read(files, model, monkeypatch)
    path = files / "files" / "part_0" / "uid05.pt"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"uid05\.pt is no file of a bare tensor"):
        read(files, model, monkeypatch, "again")


def test_captions_that_do_not_fit_are_named(
    files: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "captions.csv").write_text("uid01,a ball\nuid02\n")
    with pytest.raises(UserError, match=r"captions\.csv, line 2: expected UID,caption"):
        read(files, model, monkeypatch)
    (files / "captions.csv").write_text("other,a ball\n")
    with pytest.raises(UserError, match=r"12 \.pt files, none of them"):
        read(files, model, monkeypatch)
