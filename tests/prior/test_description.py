"""prior.json: what is written is read again, and makes the network that it names."""

from pathlib import Path

import pytest

from prior.denoiser import NetworkConfig
from prior.description import Description, Distilled, make_network, read_description
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig

SHAPES = Shapes(8, 4, 6, 5, grid_width=3, classes=("chair", "mug"), layers=(6, 2))


@pytest.mark.parametrize("distilled", [None, Distilled((80.0, 1.5, 0.0), 2.0)])
def test_what_it_says_comes_back(tmp_path: Path, distilled: Distilled | None) -> None:
    described = Description(
        SHAPES, NetworkConfig(width=16, heads=2, group=2), DiffusionConfig(target="x0"), "views", distilled,
        max_views=3,
    )  # fmt: skip
    described.write(tmp_path)
    assert read_description(tmp_path) == described
    assert distilled is None or distilled.steps == 2


@pytest.mark.parametrize(("kind", "reads"), [("shap_e_text", "text"), ("shap_e_image", "image")])
def test_shap_e_s_networks_read_what_their_names_say(kind: str, reads: str) -> None:
    model = make_network(SHAPES, NetworkConfig(kind=kind, width=16, depth=1, heads=2))
    assert model.reads == reads and model.config.kind == kind
