"""Networks of points come from the published files' layouts, and from nothing else."""

import argparse
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from eval.backbones import BackboneConfig, load_backbone
from eval.folders import Item
from eval.looks import Look
from eval.measures import Judged, Retrieval
from eval.point_networks import PointNet2, Ulip2, Uni3d
from eval.views import perceptual
from shapeloom.clip import Clip, TextEmbedding
from shapeloom.config import UserError
from shapeloom.seed import numpy_rng
from shapeloom.storage import file_digest

CLOUDS = numpy_rng("clouds").random((1, 600, 6)).astype(np.float32)


def config(kind: str, path: Path, **more: Any) -> BackboneConfig:
    found = {"kind": kind, "file": str(path), "sha256": file_digest(path), **more}
    return BackboneConfig.model_validate(found)


def write_ulip2(path: Path, *, channels: int = 6, embed: int = 12) -> Ulip2:
    """As its training script saved it: of several processes, with arguments, accuracy and other towers."""
    torch.manual_seed(0)
    network = Ulip2(depth=1, channels=channels, embed=embed).eval()
    torch.nn.init.normal_(network.pc_projection)
    named = {
        name if name == "pc_projection" else f"point_encoder.{name}": value
        for name, value in network.state_dict().items()
    } | {"logit_scale": torch.ones([]), "visual.cls_token": torch.zeros(1, 1, 8)}
    state = {f"module.{name}": value.clone() for name, value in named.items()}
    content = {
        "epoch": 3,
        "state_dict": state,
        "best_acc1": np.float64(50.6),
        "args": argparse.Namespace(lr=1),
    }
    torch.save(content, path)
    return network


@pytest.fixture(scope="module")
def ulip2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ulip2]:
    """A file of ULIP-2's layout, of one layer, and its network."""
    path = tmp_path_factory.mktemp("ulip") / "ULIP-2.pt"
    return path, write_ulip2(path)


@torch.no_grad()
def test_ulip2_s_file_is_read_with_what_its_training_left_beside_it(ulip2: tuple[Path, Ulip2]) -> None:
    path, network = ulip2
    found = load_backbone(config("ulip2", path))
    assert (found.name, found.num_points, found.embed_dim) == ("ULIP-2 (PointBERT, 10k xyzrgb)", 10000, 12)
    np.testing.assert_array_equal(found(CLOUDS), network(torch.from_numpy(CLOUDS)).numpy())


def test_ulip2_s_older_file_sees_positions_alone(tmp_path: Path) -> None:
    write_ulip2(tmp_path / "xyz.pt", channels=3)
    found = load_backbone(config("ulip2", tmp_path / "xyz.pt"))
    assert (found.name, found.num_points) == ("ULIP-2 (PointBERT, 8k xyz)", 8192)
    assert found(CLOUDS).shape == (1, 12)


def test_numbers_of_numpy_1_are_read_too(ulip2: tuple[Path, Ulip2], tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    with zipfile.ZipFile(ulip2[0]) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"numpy._core.multi", b"numpy.core.multi"))
    assert load_backbone(config("ulip2", path)).num_points == 10000


def uni3d_tensors() -> dict[str, Tensor]:
    """In half precision, as published, with what the transformer kept of pictures."""
    torch.manual_seed(0)
    trunk = timm.create_model("eva02_tiny_patch14_224", pretrained=False)
    pictures = {
        f"visual.{k}": v for k, v in trunk.state_dict().items() if not k.startswith(("blocks", "fc_norm"))
    }
    tensors = Uni3d(trunk, 192).state_dict() | pictures
    return {f"point_encoder.{k}": v.half() for k, v in tensors.items()} | {"logit_scale": torch.ones([])}


def test_uni3d_s_file_is_read_as_deepspeed_wrote_it(tmp_path: Path) -> None:
    tensors, path = uni3d_tensors(), tmp_path / "model.pt"
    torch.save({"module": tensors, "epoch": 200}, path)
    found = load_backbone(config("uni3d", path))
    assert (found.name, found.num_points, found.embed_dim) == ("Uni3D-Ti", 10000, 1024)
    assert found(CLOUDS).shape == (1, 1024) and found(CLOUDS).std() > 0
    del tensors["point_encoder.visual.blocks.3.attn.q_bias"]
    torch.save(tensors, path)
    with pytest.raises(
        UserError, match=r"1 of \d+ tensors are unlike, such as visual\.blocks\.3\.attn\.q_bias"
    ):
        load_backbone(config("uni3d", path))


@torch.no_grad()
def test_p_fid_s_file_is_read_from_torch_and_from_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = PointNet2().eval()
    torch.save({"model_state_dict": network.state_dict(), "instance_acc": np.float64(0.9)}, tmp_path / "a.pt")
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    expected = network(torch.from_numpy(CLOUDS)).numpy()
    for name in ("a.pt", "a.safetensors"):
        found = load_backbone(config("pointnet2", tmp_path / name))
        assert (found.name, found.num_points) == ("PointNet++ (P-FID)", 4096)
        np.testing.assert_array_equal(found(CLOUDS), expected)


class _Runs:
    """What a hostile checkpoint would hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_file_that_holds_code_is_refused_and_none_of_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    torch.save({"model_state_dict": PointNet2(1).state_dict(), "more": _Runs(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match=r"hostile\.pt holds posix\.mkdir beside tensors"):
        load_backbone(config("pointnet2", path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", pickle.dumps([1, 2], protocol=2)])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    for name in ("page.pt", "page.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.*(checkpoint|Copy it again)"):
            load_backbone(config("pointnet2", tmp_path / name))


@pytest.mark.parametrize("kind", ["pointnet2", "ulip2", "uni3d"])
def test_another_network_s_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    torch.save({"point_encoder.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=rf"other\.pt .*({kind}|ULIP-2|Uni3D)"):
        load_backbone(config(kind, tmp_path / "other.pt"))
    with pytest.raises(ValidationError, match="sha256"):
        BackboneConfig.model_validate({"kind": kind, "file": "other.pt"})


def test_texts_and_pictures_aren_t_for_networks_that_know_none(ulip2: tuple[Path, Ulip2]) -> None:
    with pytest.raises(ValidationError, match="pointnet2 knows no texts"):
        BackboneConfig(kind="pointnet2", text="ViT-bigG-14/file.pt")
    with pytest.raises(UserError, match="ulip2 sees points"):
        perceptual(config("ulip2", ulip2[0]))


class _Texts(Clip):
    """A CLIP whose prompts are "0", "1" ...: the axes of its space."""

    def __init__(self) -> None:
        self.digest = "texts"

    def text(self, captions: Sequence[str], *, batch_size: int = 256) -> TextEmbedding:
        pooled = torch.eye(4)[[int(each) for each in captions]]
        return TextEmbedding(pooled, pooled[:, None], torch.ones(len(captions), 1, dtype=torch.bool))


def test_prompts_are_found_by_shape() -> None:
    seen = [(0, ""), (1, ""), (3, ""), (3, "empty")]  # the third shows the fourth's prompt; the fourth failed
    vectors = 9 * np.eye(4, dtype=np.float32)
    looks = [
        Look({"net points": vectors[k][None]}, np.zeros((1, 3), np.float32), {}, fault) for k, fault in seen
    ]
    items = [Item(str(i), str(i), Path()) for i in range(4)]
    rows = Retrieval(_Texts(), list("0123"), "net points", name="points/net").rows(Judged(items, looks))
    assert rows["r_at_1/points/net"].tolist() == [1, 1, 0, 0]
    assert rows["clip_score/points/net"].tolist() == [1, 1, 0, 0]
