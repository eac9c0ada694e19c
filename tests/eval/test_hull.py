"""The visual hull of views of one thing fills their masks; of views of several it doesn't."""

import numpy as np
import pytest
import torch

from eval.hull import hull_agreement
from shapeloom.rendering.cameras import intrinsics, spherical
from shapeloom.rendering.rays import camera_rays

SIZE = 32


def ball_masks(
    centres: list[list[float]], radius: float = 0.5
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """A ball's masks from all around, one view of it at each centre; exact."""
    num = len(centres)
    poses = spherical(torch.arange(num) * 2 * torch.pi / num, torch.full((num,), 0.4), 4.0)
    matrices = intrinsics(0.6, SIZE, SIZE).expand(num, 3, 3)
    origins, directions, _ = camera_rays(poses, matrices, SIZE, SIZE)
    to_ball = torch.tensor(centres)[:, None, None] - origins
    along = (to_ball * directions).sum(-1, keepdim=True)
    return ((to_ball - along * directions).norm(dim=-1) < 0.5).float().numpy(), poses, matrices


def test_views_of_one_ball_agree() -> None:
    assert hull_agreement(*ball_masks([[0.1, 0.0, 0.1]] * 5)) > 0.93


def test_a_ball_that_moves_between_views_does_not() -> None:
    places = [[0.3, 0.0, 0.0], [-0.3, 0.2, 0.0], [0.0, 0.0, 0.3], [0.0, 0.3, -0.2], [0.2, -0.3, 0.0]]
    assert hull_agreement(*ball_masks(places)) < 0.75


def test_nothing_agrees_with_nothing_and_not_with_something() -> None:
    masks, poses, matrices = ball_masks([[0.0, 0.0, 0.0]] * 4)
    assert hull_agreement(np.zeros_like(masks), poses, matrices) == pytest.approx(1)
    masks[0] = 0
    assert hull_agreement(masks, poses, matrices) == pytest.approx(0.25)
