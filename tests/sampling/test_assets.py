"""3D files as shapes to start from."""

from types import SimpleNamespace

import pytest
import torch
import trimesh
import yaml

from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from encoder.model import Autoencoder, EncoderConfig, read_for_encoding
from sampling.assets import encode_asset, read_shape
from sampling.hub import Parts
from sampling.pipeline import ShapePipeline
from shapeloom.config import UserError
from shapeloom.decoder import DecoderConfig
from shapeloom.shards import AssetShards

SMALL = {"num_views": 2, "resolution": 16, "num_points": 64, "num_sdf": 64, "workers": 0}
ENCODER = EncoderConfig(width=16, heads=2, num_layers=1, num_points=64, grid=8)
DECODER = DecoderConfig.model_validate(
    {
        "projection": {"num_tokens": 4, "channels": 4, "rank": 4},
        "field": {"geometry": {"width": 8}, "color": {"width": 8}},
    }
)


@pytest.fixture
def run(pipeline, tmp_path, monkeypatch):
    """A pipeline of a run folder with a small untrained encoder, and that encoder."""
    torch.manual_seed(0)
    model = Autoencoder(ENCODER, DECODER).eval()
    monkeypatch.setattr("sampling.assets.load_encoder", lambda folder, device: model)
    for folder in ("encoder", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "encoder" / "encoder.yaml").touch()
    (tmp_path / "data" / "config.yaml").write_text(yaml.safe_dump(SMALL))
    parts = Parts(tmp_path / "prior", tmp_path / "encoder", "clip")
    pipe = ShapePipeline(pipeline.prior, pipeline.decoder, pipeline.clip, parts)
    return SimpleNamespace(pipe=pipe, model=model)


@pytest.mark.parametrize("suffix", ["glb", "ply"])
def test_a_file_gets_the_latent_that_it_has_in_a_data_set(run, tmp_path, suffix):
    assets = tmp_path / "assets"
    assets.mkdir()
    trimesh.creation.box((1, 2, 3)).export(assets / f"box.{suffix}")
    prepare(DataConfig(**SMALL, assets=assets), tmp_path / "out")
    known = run.model.encode([read_for_encoding(AssetShards(tmp_path / "out"), 0, ENCODER)])[0]
    shape = encode_asset(run.pipe, assets / f"box.{suffix}", by_server=suffix == "ply")
    assert torch.equal(shape.latent, known)
    assert shape.prompt == "box"


def test_files_that_cannot_be_prepared_say_why(run, tmp_path):
    (tmp_path / "broken.glb").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken.glb can't be prepared"):
        encode_asset(run.pipe, tmp_path / "broken.glb")


def test_a_model_without_its_encoder_encodes_nothing(pipeline, tmp_path):
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.glb")
    with pytest.raises(UserError, match="without its encoder"):
        read_shape(pipeline, tmp_path / "box.glb")
