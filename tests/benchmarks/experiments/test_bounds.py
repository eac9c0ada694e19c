"""Each bound frees more than the one before, and none changes the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
import yaml

from benchmarks.experiments.bounds import BOUNDS, main
from encoder.model import Autoencoder, EncoderConfig, load_encoder
from shapeloom.checkpoint import save_weights
from shapeloom.config import Config, UserError
from shapeloom.decoder import DecoderConfig
from shapeloom.runs import Run
from shapeloom.shards import finish_dataset, write_shard
from shapeloom.storage import write_atomic


@pytest.fixture
def run(ball_samples: Any, tmp_path: Path) -> Path:
    """Balls with their meshes, and an encoder that has learnt nothing."""
    samples = []
    for number, split in enumerate(["train", "train", "val", "test"]):
        sample = ball_samples(number, split=split)
        ball = trimesh.creation.icosphere(3, float(np.linalg.norm(sample["points.npy"][0])))
        sample["mesh_vertices.npy"] = ball.vertices.astype(np.float32)
        sample["mesh_faces.npy"] = ball.faces.astype(np.int32)
        samples.append(sample)
    write_shard(tmp_path / "data" / "shards" / "000000.tar", samples)
    finish_dataset(tmp_path / "data", kind="assets", facts={"views": 4, "resolution": 16})
    (tmp_path / "data" / "config.yaml").write_text("sheet_thickness: 0.02\n")
    encoder = EncoderConfig(width=16, heads=2, num_layers=1, num_points=64, grid=8)
    settings = {
        "projection": {"num_tokens": 4, "channels": 4, "rank": 4},
        "field": {"geometry": {"width": 16, "num_layers": 3}, "color": {"width": 8}},
    }
    decoder = DecoderConfig.model_validate(settings)
    model = Autoencoder(encoder, decoder)
    made = Run.open(tmp_path / "encoder", Config(), stage="encoder")
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        write_atomic(tmp_path / "encoder" / f"{name}.yaml", yaml.safe_dump(part.model_dump(mode="json")))
    made.finish(weights_digest=save_weights(tmp_path / "encoder", model.state_dict()))
    return tmp_path


def test_more_freedom_fits_better_up_to_what_extraction_can(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_encoder(run / "encoder").state_dict()
    main([str(run), "--assets", "1", "--steps", "25", "--resolution", "32"])
    found = json.loads((run / "bounds.json").read_text())
    assert found["num_assets"] == 1 and list(found["bounds"]) == list(BOUNDS)
    chamfer = {bound: scores["chamfer"] for bound, scores in found["bounds"].items()}
    # A field that has learnt nothing is noise, whose own matrices and shared layers can become a ball.
    assert chamfer["matrices free"] < 0.5 * chamfer["encoder"]
    assert chamfer["field free"] < chamfer["latent free"]
    # A cell's diagonal, sqrt(3) / 16, cuts a ball of radius 0.5 or more by up to its square / 8 / radius.
    assert chamfer["exact distances"] < 0.003
    assert found["bounds"]["exact distances"]["fscore_0.01"] > 0.99
    assert found["bounds"]["encoder"]["slope"] > 0 and "slope" not in found["bounds"]["exact distances"]
    # Two balls of other radii: the nearest one's distance is their difference.
    assert 0.001 < chamfer["nearest training asset"] < 0.4
    after = load_encoder(run / "encoder").state_dict()
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert capsys.readouterr().out == (run / "bounds.md").read_text()


def test_data_without_meshes_say_what_to_do(run: Path, ball_dataset: Path) -> None:
    with pytest.raises(UserError, match="Prepare the data again"):
        main([str(run), "--data", str(ball_dataset), "--assets", "1"])
