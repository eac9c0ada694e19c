"""A Shap-E of small sizes and random weights, its checkpoints, and a CLIP of the official sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sampling.shap_e.convert import ConvertConfig, convert
from shapeloom.clip import Clip, TextEmbedding
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shap_e.inputs import ShapEEncoderConfig
from shapeloom.shap_e.prior import ShapEPriorConfig
from shapeloom.shap_e.published import CLIP_DIM, FILES, GRID_WIDTH, Sizes, skeleton
from tests.golden_data import golden, part, projected

SMALL = Sizes(
    encoder=ShapEEncoderConfig(
        width=32, heads=4, num_layers=1, num_points=64, num_centres=16, num_views=2, size=16
    ),
    field=ShapEFieldConfig(width=32, channels=16),
    text300M=ShapEPriorConfig(reads="text", width=32, depth=2, heads=4),
    image300M=ShapEPriorConfig(reads="image", width=32, depth=1, heads=2),
)


class FakeClip(Clip):
    """Unit vectors and grids of ViT-L/14's sizes that depend on the words or the picture alone."""

    def __init__(self) -> None:
        self.digest, self.name, self.embed_dim, self.text_width = "c" * 64, "fake", CLIP_DIM, CLIP_DIM

    def text(self, captions: Any, *, batch_size: int = 256) -> TextEmbedding:
        seeds = [sum(caption.encode()) for caption in captions]
        rows = [torch.randn(CLIP_DIM, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        pooled = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        return TextEmbedding(pooled, pooled[:, None], torch.ones(len(rows), 1, dtype=torch.bool))

    def image(self, rgb: Any, *, batch_size: int = 64) -> Tensor:
        return torch.nn.functional.normalize(torch.ones(len(rgb), CLIP_DIM), dim=-1)

    def grid(self, rgb: Any, *, batch_size: int = 64) -> Tensor:
        seeds = torch.as_tensor(np.asarray(rgb)).long().sum((1, 2, 3)).tolist()
        return torch.stack(
            [torch.randn(256, GRID_WIDTH, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )

    def unknown_words(self, caption: str) -> list[str]:
        return []


def write_published(folder: Path) -> Path:
    """Writes small checkpoints, whose projection makes the recorded ellipsoid of every latent."""
    field = golden("nerstf_mlp")
    generator = torch.Generator().manual_seed(0)
    for name in ("transmitter", "text300M", "image300M"):
        state = {
            key: 0.2 * torch.randn(value.shape, generator=generator)
            for key, value in skeleton(name, SMALL).state_dict().items()
        }
        if name == "transmitter":
            state |= {f"renderer.{k}": v for k, v in part(field, "renderer.").items()}
            for layer, matrix in enumerate(projected(field)):
                rows = f"encoder.params_proj.projections.nerstf__mlp__{layer}__weight."
                state[f"{rows}norm.weight"].zero_()
                state[f"{rows}norm.bias"].zero_()
                state[f"{rows}proj.bias"] = matrix[0].flatten()
        torch.save(state, folder / FILES[name][0])
    return folder


def write_converted(source: Path, out: Path, model: Any = "text300M") -> Path:
    """Converts what `write_published` wrote."""
    convert(ConvertConfig(source=source, model=model, allow_other=True), out, sizes=SMALL)
    return out
