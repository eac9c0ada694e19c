"""The small CLIP: its loss, its augmentation, and that it names compositions which it never saw."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prior.train_clip import (
    DualEncoderConfig,
    DualEncoderTask,
    augment,
    caption_accuracy,
    contrastive_loss,
    describe,
    fit,
    main,
)
from shapeloom import distributed
from shapeloom.clip import Clip, TextEmbedding, build_network, load_clip
from shapeloom.config import UserError
from shapeloom.runs import Run, read_meta
from shapeloom.training import TrainConfig

COLOURS = {"red": (210, 40, 40), "green": (40, 160, 60), "blue": (50, 60, 210), "black": (20, 20, 20)}
SHAPES = ("bar", "post", "block", "frame")


def draw(colour: str, shape: str, rng: np.random.Generator) -> np.ndarray:
    """A 32 x 32 picture of a flat shape, placed and sized at random."""
    y, x = np.mgrid[:32, :32] + 0.5 - 16 - rng.uniform(-3, 3, (2, 1, 1))
    r = rng.uniform(8, 12)
    inside = {
        "bar": (abs(x) < r) & (abs(y) < 3), "post": (abs(y) < r) & (abs(x) < 3),
        "block": np.maximum(abs(x), abs(y)) < 0.8 * r,
        "frame": (np.maximum(abs(x), abs(y)) < r) & (np.maximum(abs(x), abs(y)) > r - 3),
    }[shape]  # fmt: skip
    picture = np.full((32, 32, 3), 255, np.uint8)
    picture[inside] = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13), 0, 255)
    return picture


def draw_all(pairs: list[tuple[str, str]], count: int, seed: int) -> tuple[np.ndarray, list[list[str]]]:
    rng = np.random.default_rng(seed)
    chosen = [pairs[i % len(pairs)] for i in range(count)]
    images = np.stack([[draw(*pair, rng) for _ in range(2)] for pair in chosen])
    return images, [[f"a {colour} {shape}", f"{colour} {shape}"] for colour, shape in chosen]


ALL = [(colour, shape) for colour in COLOURS for shape in SHAPES]
HELD_OUT = [("red", "bar"), ("green", "post"), ("blue", "block"), ("black", "frame")]
CONFIG = DualEncoderConfig(
    image_size=32, patch_size=8, image_width=64, image_layers=2, text_width=64, text_layers=1, embed_dim=32,
    context_length=8,
    train=TrainConfig(
        steps=120, batch_size=48, learning_rate=2e-3, warmup_steps=10, precision="fp32", ema_decay=0.95
    ),
)  # fmt: skip


def test_distinct_captions_give_clip_s_own_loss():
    from open_clip.loss import ClipLoss

    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1)
    expected = ClipLoss()(image, text, torch.tensor(10.0))
    loss = contrastive_loss(image, text, torch.tensor(10.0), torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(loss, expected)


def test_repeated_captions_are_not_each_other_s_negatives():
    """Two pairs with one caption and one picture each: a perfect model reaches the smallest loss, log 2."""
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    scale = torch.tensor(50.0)
    assert float(contrastive_loss(vectors, vectors, scale, same)) == pytest.approx(np.log(2), abs=1e-6)
    shifted = vectors.roll(2, 0)
    assert float(contrastive_loss(vectors, shifted, scale, same)) > 10


def test_augmentation_keeps_type_size_and_colours():
    rng = np.random.default_rng(0)
    picture = draw("red", "block", rng)
    for size in (32, 31):
        for _ in range(20):
            changed = augment(picture[:size, :size], rng)
            assert changed.shape == (size, size, 3)
            assert changed.dtype == np.uint8
            darkest = changed.reshape(-1, 3)[changed.sum(2).argmin()]
            assert abs(darkest.astype(int) - picture[16, 16]).max() == 0


def test_pictures_are_shifted_as_far_either_way():
    picture, rng = np.full((32, 32, 3), 255, np.uint8), np.random.default_rng(0)
    picture[16, 16] = 0
    moved = [augment(picture, rng) for _ in range(300)]
    places = np.array([np.argwhere(each[..., 0] == 0)[0] for each in moved if each.min() == 0])  # not coarse
    assert set(places[:, 0]) == {14, 15, 16, 17, 18}
    assert set(places[:, 1]) == {13, 14, 15, 16, 17, 18}  # from 15 where mirrored


class Looks(torch.nn.Module):
    """Keeps the pixels that it is shown."""

    def forward(self, pixels, text):
        self.pixels = pixels
        vectors = torch.nn.functional.normalize(torch.ones(len(pixels), 2), dim=1)
        return {"image_features": vectors, "text_features": vectors, "logit_scale": torch.tensor(1.0)}


def fresh() -> tuple[DualEncoderTask, Clip]:
    """What is trained, and what it is used as, before it has learnt anything."""
    task = DualEncoderTask(*draw_all(ALL, 16, seed=0), CONFIG)
    return task, Clip(task.model, task.tokenizer, task.description, name="fresh")


def test_pictures_are_learnt_from_as_they_are_seen_in_use():
    (task, clip), looks = fresh(), Looks()
    batch = task.batch(range(6))
    task.loss(looks, batch)
    torch.testing.assert_close(looks.pixels, clip.preprocess(batch["image"]), atol=1e-5, rtol=0)


def test_accuracy_is_the_share_of_views_that_find_a_caption_of_their_own(monkeypatch: pytest.MonkeyPatch):
    _, clip = fresh()
    captions, nearest = [["a"], ["b", "c"], ["a", "d"]], ["a", "b", "c", "b", "a", "c"]
    text = TextEmbedding(torch.eye(4), torch.zeros(4, 1, 2), torch.ones(4, 1) > 0)
    monkeypatch.setattr(clip, "text", lambda known: text)
    monkeypatch.setattr(clip, "image", lambda views: torch.eye(4)[["abcd".index(each) for each in nearest]])
    views = np.zeros((3, 2, 32, 32, 3), np.uint8)
    assert caption_accuracy(clip, views, captions) == pytest.approx(4 / 6)


def test_it_names_colour_and_shape_pairs_that_it_never_saw(tmp_path: Path):
    images, captions = draw_all([pair for pair in ALL if pair not in HELD_OUT], 240, seed=0)
    run = Run.open(tmp_path, CONFIG, stage="clip")
    clip = fit(images, captions, CONFIG, run, distributed.start())
    names = [f"a {colour} {shape}" for colour, shape in ALL]
    unseen, _ = draw_all(HELD_OUT, 40, seed=1)
    nearest = (clip.image(unseen[:, 0]) @ clip.text(names).pooled.T).argmax(1)
    truth = torch.tensor([ALL.index(HELD_OUT[i % 4]) for i in range(40)])
    # Chance is 1/16; memorised pairs would give 0.
    assert float((nearest == truth).float().mean()) > 0.6
    assert caption_accuracy(clip, images[:40], captions[:40]) > 0.8
    assert load_clip(tmp_path).digest == clip.digest


def test_the_command_line_trains_records_and_resumes(ball_dataset: Path, tmp_path: Path):
    arguments = [
        "--config",
        "configs/clip/smoke.yaml",
        "--out",
        str(tmp_path),
        "--set",
        f"data={ball_dataset}",
    ]
    main([*arguments, "train.steps=4"])
    clip, meta = load_clip(tmp_path), read_meta(tmp_path, stage="clip")
    assert meta["digest"] == clip.digest
    assert clip.image_size == 32
    main([*arguments, "train.steps=4"])
    assert load_clip(tmp_path).digest == clip.digest
    with pytest.raises(UserError, match="another config"):
        main([*arguments, "train.steps=5"])


def test_a_pretrained_network_is_recorded_even_if_data_are_named(
    ball_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, clip = fresh()
    monkeypatch.setattr("prior.train_clip.load_clip", lambda spec, device: clip)
    main(["--out", str(tmp_path), "--set", f"data={ball_dataset}", "pretrained=some/network"])
    assert read_meta(tmp_path, stage="clip")["digest"] == clip.digest == load_clip(tmp_path).digest


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_both_image_towers_give_a_loadable_network(tower: str):
    config = DualEncoderConfig(image_tower=tower, image_layers=1, text_layers=1)
    network = build_network(describe(config, ["a ball"]))
    assert network.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, config.embed_dim)


def test_a_resnet_of_an_odd_size_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="multiple of 32 for a resnet, got 48"):
        main(["--out", str(tmp_path), "--set", "image_tower=resnet", "image_size=48"])


def test_nothing_to_learn_from_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="needs --set data="):
        main(["--out", str(tmp_path)])
    images = np.zeros((2, 1, 32, 32, 3), np.uint8)
    run = Run.open(tmp_path, CONFIG, stage="clip")
    with pytest.raises(UserError, match="fewer than two different"):
        fit(images, [["a ball"], ["a ball"]], CONFIG, run, distributed.start())
    with pytest.raises(UserError, match="some have none"):
        fit(images, [["a ball"], []], CONFIG, run, distributed.start())
