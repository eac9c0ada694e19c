"""Models from elsewhere: sizes that no model has end in a sentence, before memory is taken for them."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks.drills.tiny_model import write_tiny_model
from prior.model import load_prior
from sampling.cutouts import MAX_SIDE, PictureConfig, load_image
from sampling.pipeline import ShapePipeline
from shapeloom.clip import load_clip
from shapeloom.config import UserError
from shapeloom.decoder import load_decoder
from shapeloom.shards import ShardCache
from shapeloom.storage import file_digest, private_folder, read_json

HUGE = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def change(path: Path, keys: str, value: object) -> str:
    """Sets a key of a JSON or YAML file; returns the text as it was."""
    text = path.read_text()
    values = yaml.safe_load(text)
    *parents, last = keys.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))
    return text


def test_a_tiny_model_is_whole(model: Path) -> None:
    (shape,) = ShapePipeline.from_pretrained(model)("a red chair", steps=2)
    assert shape.latent.shape == (4, 3)


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        ("prior/prior.json", "network.depth", HUGE, "network.*depth.*less than or equal to 512"),
        ("prior/prior.json", "network.width", HUGE, "width"),
        ("prior/prior.json", "network.depth", 40, "doesn't fit the description"),
        ("prior/prior.json", "network.width", 16384, "doesn't fit the description"),
        ("prior/prior.json", "shapes.tokens", HUGE, "shapes.tokens must be a number from 1 to 16,384"),
        ("prior/prior.json", "shapes.tokens", 16384, "doesn't fit the description"),
        ("prior/prior.json", "shapes.layers", [HUGE, HUGE], "shapes.layers must share out the 4 tokens"),
        ("prior/prior.json", "shapes", [], "doesn't describe a prior"),
        ("encoder/decoder.yaml", "projection.num_tokens", HUGE, "projection.num_tokens"),
        ("encoder/decoder.yaml", "projection.channels", 16384, "doesn't fit the description"),
        ("encoder/decoder.yaml", "field.geometry.num_layers", HUGE, "field.geometry.num_layers"),
        ("encoder/decoder.yaml", "field.geometry.bumps", 10_000, "field.geometry.bumps"),
        ("encoder/decoder.yaml", "field.encoding.num_random", HUGE, "field.encoding.num_random"),
        ("clip/model.json", "text.context_length", 100_000, "text.context_length"),
        ("clip/model.json", "vision.image_size", 100_000, "vision.image_size"),
        ("clip/model.json", "vision.timm_model_name", "resnet50", "unknown key `vision.timm_model_name`"),
        ("clip/model.json", "text.hf_model_name", "some/model", "unknown key `text.hf_model_name`"),
        ("clip/model.json", "vision.width", 4096, "doesn't fit the description"),
    ],
)
def test_sizes_beyond_a_model_s_weights_are_refused_before_memory_is_taken(
    model: Path, file: str, key: str, value: object, words: str
) -> None:
    load = {"prior": load_prior, "encoder": load_decoder, "clip": load_clip}[file.split("/")[0]]
    before = change(model / file, key, value)
    try:
        tracemalloc.start()
        with pytest.raises(UserError, match=words) as caught:
            load(model / file.split("/")[0])
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
        assert file.split("/")[0] in str(caught.value)
    finally:
        tracemalloc.stop()
        (model / file).write_text(before)


def test_descriptions_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    with path.open("wb") as file:
        file.truncate(1 << 34)  # a hole, which takes no room
    with pytest.raises(UserError, match=r"prior.json is damaged .* at most 16 MB are read"):
        read_json(path, advice="Copy it again.")


def test_a_latent_of_another_shape_is_refused_unread(model: Path, tmp_path: Path) -> None:
    import torch

    pipe = ShapePipeline.from_pretrained(model)
    facts = {"encoder": pipe.decoder.digest}
    save_file({"latent": torch.zeros(5, 3)}, tmp_path / "other.safetensors", metadata=facts)
    with pytest.raises(UserError, match="another encoder"):
        pipe.load_latent(tmp_path / "other.safetensors")


def test_long_pictures_take_no_more_memory_than_square_ones(tmp_path: Path) -> None:
    for size in ((32_000, 20), (20, 32_000)):
        Image.new("RGB", size, "red").save(tmp_path / "long.png")
        picture = load_image(tmp_path / "long.png", PictureConfig(background="keep"))
        with pytest.raises(UserError, match="shows no object that stands out"):
            load_image(tmp_path / "long.png")
        assert picture.shape == (MAX_SIDE, MAX_SIDE, 3)
        assert (picture[..., 1] < 128).any()  # a line of red on white
    Image.new("1", (100_000, 4)).save(tmp_path / "longer.png")
    with pytest.raises(
        UserError, match="has 100000x4 pixels; at most 64 million are taken, and 32,768 a side"
    ):
        load_image(tmp_path / "longer.png")


def test_pictures_within_the_bound_are_left_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    kept = load_image(tmp_path / "small.png", PictureConfig(background="keep"))
    np.testing.assert_array_equal(kept, pixels)


# ---------------------------------------------------------------- shared temporary places


def test_a_folder_that_others_could_have_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert private_folder(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(UserError, match="is a link, so what lies there may be anyone's"):
        private_folder(tmp_path / "link")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UserError, match=r"can be written by others .mode 777"):
        private_folder(tmp_path / "open")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder(tmp_path / "new")


def test_copies_of_shards_that_aren_t_what_they_are_called_are_fetched_again(tmp_path: Path) -> None:
    shard = tmp_path / "000000.tar"
    shard.write_bytes(b"a shard")
    digest = file_digest(shard)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{digest}.tar").write_bytes(b"another's bytes")
    cache = ShardCache(tmp_path / "cache")
    for _ in range(2):
        with cache.open(shard, digest) as file:
            assert file.read() == b"a shard"
    shard.write_bytes(b"changed since")
    (tmp_path / "cache" / f"{digest}.tar").unlink()
    with pytest.raises(UserError, match="isn't the file that its data set's listing describes"):
        cache.open(shard, digest)
