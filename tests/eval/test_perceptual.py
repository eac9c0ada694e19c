"""LPIPS is what its two files say, and nothing without them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

from eval.perceptual import LpipsConfig, load_lpips
from shapeloom.config import UserError
from shapeloom.seed import numpy_rng
from shapeloom.storage import file_digest

CHANNELS = (64, 192, 384, 256, 256)


def files(folder: Path) -> LpipsConfig:
    """Both files, in the layouts that are published, with random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layers = models.alexnet().features
    weights = {
        f"features.{name}": 0.05 * torch.randn(value.shape) for name, value in layers.state_dict().items()
    }
    torch.save({**weights, "classifier.6.bias": torch.zeros(1000)}, folder / "alexnet.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, num, 1, 1) for i, num in enumerate(CHANNELS)}
    torch.save(heads, folder / "heads.pth")
    return LpipsConfig(
        file=str(folder / "alexnet.pth"), sha256=file_digest(folder / "alexnet.pth"),
        heads=str(folder / "heads.pth"), heads_sha256=file_digest(folder / "heads.pth"),
    )  # fmt: skip


def test_it_is_the_sum_over_layers_of_weighted_differences_of_unit_features(tmp_path: Path) -> None:
    config = files(tmp_path)
    rng = numpy_rng("lpips")
    a, b = rng.random((2, 3, 64, 64, 3), dtype=np.float32)
    found = load_lpips(config)(a, b)

    weights, heads = torch.load(config.file), torch.load(config.heads)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = [torch.from_numpy(((2 * p - 1 - shift) / scale).transpose(0, 3, 1, 2)).float() for p in (a, b)]
    expected = torch.zeros(3)
    # AlexNet as Krizhevsky's "One weird trick" has it: kernel, stride, padding, and which are pooled first.
    plan = [(0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False)]
    for i, (layer, stride, padding, is_pooled) in enumerate(plan):
        for side in range(2):
            y = torch.nn.functional.max_pool2d(x[side], 3, 2) if is_pooled else x[side]
            kernel, bias = (weights[f"features.{layer}.{name}"] for name in ("weight", "bias"))
            x[side] = torch.conv2d(y, kernel, bias, stride=stride, padding=padding).relu()
        unit = [y / (y.norm(dim=1, keepdim=True) + 1e-10) for y in x]
        head = heads[f"lin{i}.model.1.weight"]
        expected += (head * (unit[0] - unit[1]) ** 2).sum(1).mean((1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(load_lpips(config)(a, a), 0)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    config = files(tmp_path)
    with pytest.raises(UserError, match="isn't the file that was named"):
        load_lpips(config.model_copy(update={"sha256": "0" * 64}))
    swapped = {"heads": config.file, "heads_sha256": config.sha256}
    with pytest.raises(UserError, match=r"alexnet\.pth doesn't hold LPIPS's heads"):
        load_lpips(config.model_copy(update=swapped))
    with pytest.raises(UserError, match="aren't LPIPS's vgg"):
        load_lpips(config.model_copy(update={"network": "vgg"}))
