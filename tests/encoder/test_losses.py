"""Losses of signed distance and colour: zero or least at the truth, blind where the truth is a bound."""

import pytest
import torch

from encoder.losses import LossConfig, point_losses
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.fields.heads import Color, Geometry

CONFIG = LossConfig()


class Shifted(Decoder):
    """A ball of radius 0.5 whose signed distance is off by a learnable shift at each point; it is grey."""

    def __init__(self, shift: torch.Tensor) -> None:
        super().__init__(DecoderConfig())
        self.shift = torch.nn.Parameter(shift)

    def geometry(self, weights, points):
        sdf = points.norm(dim=-1) - 0.5
        sdf = torch.cat([sdf[:, :-4], sdf[:, -4:] + self.shift], dim=1)
        return Geometry(density=torch.sigmoid(-sdf / 0.01) / 0.01, sdf=sdf)

    def color(self, weights, points):
        grey = torch.full_like(points, 0.5)
        return Color(rgb=grey, texture=grey)


def ball_batch() -> dict[str, torch.Tensor]:
    directions = torch.nn.functional.normalize(torch.randn(1, 8, 3), dim=-1)
    points = torch.tensor([[[0.1, 0, 0], [0.45, 0, 0], [0, 0.55, 0], [0, 0, 0.9]]])
    return {
        "surface_points": 0.5 * directions,
        "surface_rgb": torch.full((1, 8, 3), 0.25),
        "sdf_points": points,
        "sdf": points.norm(dim=-1) - 0.5,
    }


def losses_and_slopes(shift: list[float]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    decoder = Shifted(torch.tensor(shift))
    parts = point_losses(decoder, [], ball_batch(), CONFIG)
    slopes = {
        name: torch.autograd.grad(parts[name], decoder.shift, retain_graph=True)[0]
        for name in ("sdf", "occupancy")
    }
    return {name: value.detach() for name, value in parts.items()}, slopes


def test_the_truth_has_no_error_and_no_slope() -> None:
    parts, slopes = losses_and_slopes([0.0] * 4)
    assert float(parts["sdf"]) == pytest.approx(0, abs=1e-6)
    assert float(parts["texture"]) == pytest.approx(0.25)
    torch.testing.assert_close(slopes["occupancy"], torch.zeros(4), atol=1e-5, rtol=0)


def test_a_value_deeper_inside_than_the_nearest_face_is_no_error() -> None:
    parts, slopes = losses_and_slopes([-0.3, -0.3, 0.0, 0.0])
    assert float(parts["sdf"]) == pytest.approx(0, abs=1e-6)
    assert (slopes["sdf"][:2] == 0).all() and (slopes["occupancy"][:2].abs() < 1e-5).all()


def test_errors_are_pulled_back_from_both_sides() -> None:
    _, slopes = losses_and_slopes([0.2, 0.2, -0.2, 0.2])
    for name in ("sdf", "occupancy"):
        assert (slopes[name][:2] > 0).all() and slopes[name][2] < 0
    # Far outside, how far matters to the distance alone.
    assert slopes["sdf"][3] > 0
    assert slopes["occupancy"][3] == pytest.approx(0, abs=1e-3)
