"""Bumps against their definition, all of them written out."""

import pytest
import torch
from torch import Tensor

from shapeloom.fields.bumps import bump_slopes, bumps_at, weigh_columns


def all_bumps(points: Tensor, num: int) -> Tensor:
    """[batch, points, num^3]: the value of every bump, x fastest."""
    centres = (torch.arange(num) + 0.5) * 2 / num - 1
    inside = points.clamp(centres[0], centres[-1])
    x, y, z = (1 - (inside[..., None] - centres).abs() * num / 2).clamp(min=0).unbind(-2)
    return (z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]).flatten(-3)


@pytest.mark.parametrize("num", [1, 2, 5, 8])
def test_the_eight_around_a_point_are_all_that_count(num: int) -> None:
    torch.manual_seed(0)
    points, columns = torch.rand(3, 200, 3) * 2 - 1, torch.randn(3, 7, num**3)
    points[:, :8] = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    index, weight = bumps_at(points, num)
    torch.testing.assert_close(weight.sum(-1), torch.ones(3, 200))
    expected = all_bumps(points, num) @ columns.transpose(1, 2)
    torch.testing.assert_close(weigh_columns(columns, index, weight), expected, atol=1e-5, rtol=1e-5)


def test_the_same_points_serve_all_assets() -> None:
    points, columns = torch.rand(1, 20, 3), torch.randn(3, 7, 64)
    once = weigh_columns(columns, *bumps_at(points, 4))
    torch.testing.assert_close(once, weigh_columns(columns, *bumps_at(points.expand(3, -1, -1), 4)))


def test_slopes_are_the_derivatives_by_position_and_none_beyond_the_outermost() -> None:
    points = (torch.rand(1, 300, 3) * 2 - 1).requires_grad_()
    values = bumps_at(points, 4)[1]
    for number in range(8):
        (expected,) = torch.autograd.grad(values[..., number].sum(), points, retain_graph=True)
        torch.testing.assert_close(bump_slopes(points.detach(), 4)[..., number], expected)
    assert (bump_slopes(torch.full((1, 1, 3), 0.9), 4) == 0).all()


def test_gradients_reach_the_columns_and_the_weights() -> None:
    torch.manual_seed(0)
    columns = torch.randn(2, 3, 27, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(2, 5, 3, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()

    def values(columns: Tensor, points: Tensor) -> Tensor:
        index, weight = bumps_at(points, 3)
        return weigh_columns(columns, index, weight.double())

    assert torch.autograd.gradcheck(values, (columns, points), eps=1e-3, atol=1e-3)
