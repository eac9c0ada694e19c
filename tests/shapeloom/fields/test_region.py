"""A field within a box and another outside, of two fields in closed form."""

import pytest
import torch
from torch import nn

from shapeloom.fields.heads import Color, Geometry
from shapeloom.fields.region import RegionField

BOX = ((-0.5, -0.5, -0.5), (0.5, 0.5, 1.5))  # the smallest side is 1, so the ramp is 0.1 deep


class Planes(nn.Module):
    """Each asset's signed distance is w0 + w1 z, its density twice that; red is w0, and 1 of a texture."""

    def geometry(self, weights, points):
        sdf = weights[0][:, 0, :1] + weights[0][:, 0, 1:] * points[..., 2]
        return Geometry(density=2 * sdf, sdf=sdf)

    def color(self, weights, points, directions=None):
        red = weights[0][:, :, :1].expand(*points.shape)
        return Color(rgb=red + (0 if directions is None else directions), texture=red + 1)

    def sdf_and_gradient(self, weights, points):
        slope = torch.zeros_like(points)
        slope[..., 2] = weights[0][:, 0, 1:]
        return self.geometry(weights, points).sdf, slope


@pytest.fixture
def field() -> RegionField:
    return RegionField(Planes(), BOX)


BEFORE, AFTER = torch.tensor([[[0.25, 1.0]]]), torch.tensor([[[0.75, -2.0]]])
WEIGHTS = [BEFORE, AFTER]


def along_x(*places: float) -> torch.Tensor:
    return torch.tensor([[[x, 0.0, 0.3] for x in places]])


def test_outside_and_on_its_faces_it_is_the_first_field_bit_for_bit(field):
    points = torch.tensor(
        [[[0.5, 0, 0], [0, -0.5, 0], [0, 0, 1.5], [0.7, 0, 0], [0, 0, -0.6], [0.1, -0.9, 2]]]
    )
    geometry, color = field(WEIGHTS, points)
    plain = Planes()
    assert torch.equal(geometry.sdf, plain.geometry([BEFORE], points).sdf)
    assert torch.equal(geometry.density, plain.geometry([BEFORE], points).density)
    assert torch.equal(color.rgb, plain.color([BEFORE], points).rgb)
    assert torch.equal(color.texture, plain.color([BEFORE], points).texture)
    found = field.sdf_and_gradient(WEIGHTS, points)
    for one, other in zip(found, plain.sdf_and_gradient([BEFORE], points), strict=True):
        assert torch.equal(one, other)


def test_further_in_than_its_ramp_it_is_the_other_field(field):
    points = torch.tensor([[[0.0, 0, 0], [0.4, 0, 0], [-0.4, 0.4, 1.4], [0.1, -0.39, -0.39]]])
    geometry, color = field(WEIGHTS, points)
    plain = Planes()
    torch.testing.assert_close(geometry.sdf, plain.geometry([AFTER], points).sdf)
    torch.testing.assert_close(geometry.density, plain.geometry([AFTER], points).density)
    torch.testing.assert_close(color.rgb, plain.color([AFTER], points).rgb)
    torch.testing.assert_close(color.texture, plain.color([AFTER], points).texture)


def test_the_ramp_is_smooth_a_half_at_half_its_depth_and_a_tenth_of_the_smallest_side(field):
    red = field.color(WEIGHTS, along_x(0.5, 0.475, 0.45, 0.425, 0.4)).rgb[0, :, 0]
    smoothstep = torch.tensor([0, 0.15625, 0.5, 0.84375, 1])  # 3 t^2 - 2 t^3
    torch.testing.assert_close(red, 0.25 + 0.5 * smoothstep)
    mirrored = field.color(WEIGHTS, along_x(-0.475)).rgb[0, :, 0]
    torch.testing.assert_close(mirrored, red[1:2])


def test_the_nearest_face_counts(field):
    deep, shallow = [0.45, 0.0, 0.0], [0.45, 0.475, 0.0]
    red = field.color(WEIGHTS, torch.tensor([[deep, shallow]])).rgb[0, :, 0]
    torch.testing.assert_close(red, 0.25 + 0.5 * torch.tensor([0.5, 0.15625]))


def test_the_gradient_is_that_of_the_mixed_distance_by_finite_differences(field):
    field = field.double()
    weights = [each.double() for each in WEIGHTS]
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 200, 3, generator=generator, dtype=torch.float64) * 1.2 - 0.6
    sdf, gradient = field.sdf_and_gradient(weights, points)
    torch.testing.assert_close(sdf, field.geometry(weights, points).sdf)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 1e-6
        ahead, behind = (field.geometry(weights, points + sign * step).sdf for sign in (1, -1))
        torch.testing.assert_close(gradient[..., axis], (ahead - behind) / 2e-6, atol=1e-6, rtol=1e-6)
    assert not gradient.requires_grad


def test_directions_reach_both_fields(field):
    points, directions = along_x(0.0, 0.9), torch.full((1, 2, 3), 0.1)
    seen = field.color(WEIGHTS, points, directions).rgb
    torch.testing.assert_close(seen, field.color(WEIGHTS, points).rgb + 0.1)


def test_each_asset_of_a_batch_has_both_its_fields(field):
    weights = [torch.cat([BEFORE, AFTER]), torch.cat([AFTER, BEFORE])]
    red = field.color(weights, along_x(0.9, 0.0).expand(2, -1, -1)).rgb[..., 0]
    torch.testing.assert_close(red, torch.tensor([[0.25, 0.75], [0.75, 0.25]]))


@pytest.mark.parametrize("region", [((0.0, 0.0, 0.0), (1.0, 1.0, 0.0)), ((0.0, 0.5, 0.0), (1.0, 0.2, 1.0))])
def test_a_box_without_three_sides_of_some_length_is_refused(region):
    with pytest.raises(ValueError, match="low < high along x, y and z"):
        RegionField(Planes(), region)
