"""What is broken is called so, and what isn't is not."""

import pytest
import torch
from torch import Tensor

from sampling.mesh import MeshConfig, clean_surface


def balls(centres: list[tuple[float, float, float]], radius: float):
    middle = torch.tensor(centres)
    return lambda p: (p[:, None] - middle).norm(dim=-1).amin(1) - radius


def grid(num: int) -> list[tuple[float, float, float]]:
    line = torch.linspace(-0.8, 0.8, num).tolist()
    return [(x, y, z) for x in line for y in line for z in line]


def nothing(p: Tensor) -> Tensor:
    return torch.ones(len(p))


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        (nothing, "empty"),
        (balls(grid(3), 0.15), "crumbled"),
        (balls([(0, 0, 0)], 0.1), "degenerate"),
        (lambda p: p[:, 2] - 0.1, "degenerate"),
        (balls([(0, 0, 0)], 0.9), ""),
        (balls([(-0.6, 0, 0), (0.6, 0, 0)], 0.3), ""),
    ],
)
def test_faults_have_their_names(field, fault: str):
    assert clean_surface(field, MeshConfig(resolution=32))[2].fault == fault


def test_a_surface_is_described_before_anything_is_dropped():
    surface = clean_surface(
        lambda p: torch.minimum(balls([(0, 0, 0)], 0.7)(p), balls([(0.9, 0.9, 0.9)], 0.05)(p)),
        MeshConfig(resolution=48),
    )[2]
    assert (surface.num_parts, surface.num_crumbs) == (2, 1)
    assert surface.largest > 0.99 and surface.on_walls == 0
    assert surface.extent == pytest.approx(1.65, abs=0.03)
