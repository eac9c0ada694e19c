"""CLIP: the compact tokenizer, embeddings, digests, and refusals that come at once."""

import json
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from shapeloom.clip import PAD, UNKNOWN, Clip, CompactTokenizer, build_network, load_clip
from shapeloom.config import UserError

CAPTIONS = ["a red chair", "a tall blue vase with two handles", "a boat"]


def small_description(captions: list[str]) -> dict:
    return {
        "kind": "dual_encoder", "name": "small", "embed_dim": 16,
        "vision": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 32},
        "text": {"context_length": 12, "width": 32, "layers": 1, "heads": 1},
        "vocabulary": CompactTokenizer.from_captions(captions, 12).vocabulary,
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    description = small_description(CAPTIONS)
    (tmp_path / "model.json").write_text(json.dumps(description))
    save_file(build_network(description).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path


@pytest.fixture
def clip(folder: Path) -> Clip:
    return load_clip(folder)


def test_the_compact_tokenizer_renumbers_open_clip_s_own_ids():
    tokenizer = CompactTokenizer.from_captions(CAPTIONS, 12)
    full = open_clip.tokenizer.SimpleTokenizer(context_length=12)(CAPTIONS)
    compact = tokenizer(CAPTIONS)
    back = torch.tensor(tokenizer.vocabulary)[compact]
    assert torch.equal(back, full)
    assert compact.max() == len(tokenizer.vocabulary) - 1  # the end of text, where CLIP pools


def test_unknown_words_share_a_row_and_are_named():
    tokenizer = CompactTokenizer.from_captions(CAPTIONS, 12)
    rows = tokenizer(["a scarlet chair"])
    assert rows[0].tolist().count(UNKNOWN) == 1
    assert tokenizer.unknown("a scarlet chair") == ["scarlet"]
    assert tokenizer.unknown("A red VASE") == []


def test_long_captions_are_cut_and_still_end():
    tokenizer = CompactTokenizer.from_captions(CAPTIONS, 6)
    rows = tokenizer(["a tall blue vase with two handles", ""])
    end = len(tokenizer.vocabulary) - 1
    assert rows[0, -1] == end
    assert rows[1].tolist() == [end - 1, end, PAD, PAD, PAD, PAD]


def test_pooled_vectors_have_unit_norm_and_the_documented_shapes(clip: Clip):
    text = clip.text(CAPTIONS)
    assert text.pooled.shape == (3, clip.embed_dim) == (3, 16)
    assert text.tokens.shape == (3, clip.context_length, clip.text_width) == (3, 12, 32)
    assert text.mask.sum(1).tolist() == [5, 9, 4]  # words, and a start and an end
    image = clip.image(np.zeros((2, 50, 50, 3), np.uint8))
    assert image.shape == (2, 16)
    torch.testing.assert_close(torch.cat([text.pooled, image]).norm(dim=1), torch.ones(5))


def test_no_captions_give_empty_embeddings(clip: Clip):
    text = clip.text([])
    assert text.pooled.shape == (0, 16)
    assert text.tokens.shape == (0, 12, 32)


def test_pooled_text_is_open_clip_s_encode_text(clip: Clip):
    tokenizer = CompactTokenizer(clip.description["vocabulary"], 12)
    expected = clip.network.encode_text(tokenizer(CAPTIONS), normalize=True)
    torch.testing.assert_close(clip.text(CAPTIONS).pooled, expected)


def test_an_embedding_does_not_depend_on_its_batch_mates(clip: Clip):
    torch.testing.assert_close(clip.text(CAPTIONS).tokens[1:2], clip.text(CAPTIONS[1:2]).tokens)
    pictures = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    torch.testing.assert_close(clip.image(pictures, batch_size=2)[3:4], clip.image(pictures[3:4]))


def test_preprocessing_keeps_flat_colours_at_any_size(clip: Clip):
    pictures = torch.full((1, 77, 77, 3), 51, dtype=torch.uint8)
    # 1e-5: a resize's weights sum to one only to float precision.
    expected = torch.full((1, 3, 32, 32), (51 / 255 - 0.5) / 0.5)
    torch.testing.assert_close(clip.preprocess(pictures), expected, atol=1e-5, rtol=0)


def test_the_digest_follows_weights_and_vocabulary_but_not_the_name(folder: Path, clip: Clip):
    assert load_clip(folder).digest == clip.digest
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(description | {"name": "other"}))
    assert load_clip(folder).digest == clip.digest
    (folder / "model.json").write_text(json.dumps(description | {"mean": [0.4, 0.5, 0.5]}))
    assert load_clip(folder).digest != clip.digest
    (folder / "model.json").write_text(json.dumps(description))
    weights = load_file(folder / "weights.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, folder / "weights.safetensors")
    assert load_clip(folder).digest != clip.digest


def test_weights_that_are_not_there_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Whatever this machine has cached must not decide the test.
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(UserError, match="not cached and HF_HUB_OFFLINE is set"):
        load_clip("ViT-B-32/laion2b_s34b_b79k")
    assert time.monotonic() - start < 2  # no series of retries


def test_an_unreachable_host_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("shapeloom.clip._reachable", lambda _: False)
    with pytest.raises(UserError, match=r"huggingface\.co can't be reached"):
        load_clip("ViT-B-32/laion2b_s34b_b79k")


@pytest.mark.parametrize(
    ("spec", "said"), [("ViT-B-32/nothing", "no pretrained weights"), ("no_such_model/x", "neither a folder")]
)
def test_unknown_models_and_tags_are_refused(spec: str, said: str):
    with pytest.raises(UserError, match=said):
        load_clip(spec)


def test_unfinished_or_mismatched_folders_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.raises(UserError, match="neither a folder"):
        load_clip(tmp_path_factory.mktemp("empty"))
    save_file({"other": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(UserError, match="doesn't fit"):
        load_clip(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="not finished"):
        load_clip(folder)


def test_wrong_pictures_and_a_bare_caption_are_refused(clip: Clip):
    with pytest.raises(ValueError, match=r"\['a chair'\]"):
        clip.text("a chair")
    for wrong in (np.zeros((2, 8, 8, 4), np.uint8), np.zeros((2, 8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8 \\[n, height, width, 3\\]"):
            clip.image(wrong)


def test_pictures_with_gradients_are_embedded_as_others_are(clip: Clip):
    pictures = torch.randint(
        256, (2, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    rgb = (pictures / 255).requires_grad_()
    found = clip.differentiable_image(rgb)
    torch.testing.assert_close(found, clip.image(pictures))
    (slope,) = torch.autograd.grad(found[:, 0].sum(), rgb)
    assert slope.isfinite().all()
    assert slope.abs().amax((1, 2, 3)).min() > 0


def test_grids_are_the_tower_s_last_tokens_before_its_norm(clip: Clip):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    grid = clip.grid(pictures, batch_size=2)
    assert grid.shape == (3, 4, 32)  # 32 pixels in patches of 16
    visual = clip.network.visual
    pooled = visual.ln_post(torch.cat([grid[:, :1] * 0, grid], dim=1))[:, 1:]
    expected = clip.network.forward_intermediates(
        image=clip.preprocess(torch.from_numpy(pictures)), image_indices=1, normalize_intermediates=True
    )["image_intermediates"][-1]
    torch.testing.assert_close(pooled, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
