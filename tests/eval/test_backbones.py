"""Feature networks are what their files say, and nothing else under their names."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torchvision.models import inception_v3

from eval.backbones import BackboneConfig, FidInception, load_backbone
from shapeloom.config import UserError
from shapeloom.seed import numpy_rng
from shapeloom.storage import file_digest

PICTURES = numpy_rng("pictures").integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_the_seeded_network_is_the_same_everywhere_and_says_what_it_is() -> None:
    network = load_backbone(BackboneConfig(kind="seeded"))
    assert "untrained" in network.name
    found = network(PICTURES)
    assert found.shape == (3, 2 * (16 + 32 + 64))
    np.testing.assert_allclose(found[1:2], network(PICTURES[1:2]), rtol=1e-5)
    # Golden: figures of unlike networks must not be compared.
    np.testing.assert_allclose(network(np.zeros((1, 32, 32, 3), np.uint8))[0, 0], 0.759909, rtol=1e-4)


def dinov2(path: Path) -> BackboneConfig:
    """A checkpoint in the layout of Meta's files: a square of 518 pixels' positions, and a mask token."""
    torch.manual_seed(0)
    own = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=518)
    torch.save({**own.state_dict(), "mask_token": torch.zeros(1, 384)}, path)
    return BackboneConfig(kind="dinov2", file=str(path), sha256=file_digest(path))


def test_dinov2_s_own_files_are_read_and_checked(tmp_path: Path) -> None:
    config = dinov2(tmp_path / "dinov2_vits14_pretrain.pth")
    network = load_backbone(config)
    assert network.name == "DINOv2 (vit_small_patch14_dinov2)" and network(PICTURES).shape == (3, 384)
    with pytest.raises(UserError, match="its SHA-256 is"):
        load_backbone(config.model_copy(update={"sha256": "0" * 64}))


def test_a_file_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    for kind in ("dinov2", "inception"):
        config = BackboneConfig.model_validate({"kind": kind, "file": str(path), "sha256": file_digest(path)})
        with pytest.raises(UserError, match=r"other\.pth"):
            load_backbone(config)
    with pytest.raises(UserError, match="missing"):
        load_backbone(config.model_copy(update={"file": str(tmp_path / "none.pth")}))
    with pytest.raises(ValidationError, match="sha256"):
        BackboneConfig(kind="inception", file=str(path))


@pytest.fixture(scope="module")
def fid() -> FidInception:
    torch.manual_seed(0)
    return FidInception().eval()


def test_fid_s_network_has_the_published_file_s_keys(fid: FidInception) -> None:
    plain = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    assert {k: v.shape for k, v in fid.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }


@torch.no_grad()
def test_fid_s_pools_leave_borders_out_and_its_last_takes_maxima(fid: FidInception) -> None:
    x = torch.rand(1, 192, 6, 6)
    block = fid.Mixed_5b
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(block(x)[:, -32:], block.branch_pool(pooled))
    last, y = fid.Mixed_7c, torch.rand(1, 2048, 4, 4)
    torch.testing.assert_close(last(y)[:, -192:], last.branch_pool(F.max_pool2d(y, 3, 1, 1)))
    assert fid(torch.rand(1, 3, 64, 64)).shape == (1, 2048)
