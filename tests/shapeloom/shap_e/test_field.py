"""Shap-E's field and projection against recorded numbers, and at our border."""

import torch

from shapeloom.shap_e.field import (
    COARSE_RGB,
    FINE_RGB,
    TEXTURE,
    ShapEField,
    ShapEFieldConfig,
    ShapEProjection,
    encode_octaves,
)
from tests.golden_data import assert_same, golden, part, projected

SMALL = ShapEFieldConfig(width=32, channels=16)


def small_field(data: dict[str, torch.Tensor]) -> ShapEField:
    field = ShapEField(SMALL)
    field.load_state_dict(part(data, "renderer."))
    return field


def test_golden_projection() -> None:
    data = golden("params_projection")
    projection = ShapEProjection(SMALL)
    projection.load_state_dict(part(data, "encoder.params_proj."))
    with torch.no_grad():
        matrices = projection(data["latent"].reshape(2, 128, 16))
    for ours, theirs in zip(matrices, projected(data), strict=True):
        assert_same(ours, theirs, tolerance=1e-5)


@torch.no_grad()
def test_golden_field() -> None:
    data = golden("nerstf_mlp")
    field, weights, points = small_field(data), projected(data), data["position"]
    assert_same(encode_octaves(points, 15), data["posenc_position"])
    assert_same(encode_octaves(data["direction"], 8), data["posenc_direction"])
    for name, directions in (("nodir", None), ("dir", data["direction"])):
        raw = field.raw(weights, points, directions)
        assert_same(raw, data[f"{name}.raw"])
        for head, density, channels in (("nerf_coarse", 1, COARSE_RGB), ("nerf_fine", 2, FINE_RGB)):
            assert_same(raw[..., :1].tanh(), data[f"{name}.{head}.signed_distance"])
            assert_same(raw[..., density : density + 1].relu(), data[f"{name}.{head}.density"])
            assert_same(raw[..., channels].sigmoid(), data[f"{name}.{head}.channels"])
    raw = field.raw(weights, points)
    assert_same(raw[..., TEXTURE].sigmoid(), data["nodir.stf.channels"])
    assert_same(raw[..., 2:3].relu(), data["nodir.stf.density"])


@torch.no_grad()
def test_the_border_turns_official_values_into_ours() -> None:
    data = golden("nerstf_mlp")
    field, weights = small_field(data), projected(data)
    inside = data["position"].abs().amax(-1) < 0.99
    geometry = field.geometry(weights, 0.95 * data["position"])
    official = data["nodir.stf.signed_distance"][..., 0]
    # Lengths are 0.95 as long, densities that much higher; close to the box its wall takes over.
    expected = torch.maximum(-0.95 * official, 0.95 * (data["position"].abs().amax(-1) - 1))
    assert_same(geometry.sdf[inside], expected[inside], tolerance=2e-3)  # points move by a float's last digit
    assert_same(geometry.density[inside], data["nodir.stf.density"][..., 0][inside] / 0.95, tolerance=2e-3)


@torch.no_grad()
def test_gradients_are_the_slopes_of_signed_distances() -> None:
    data = golden("nerstf_mlp")
    field, weights, points = small_field(data), projected(data), 0.5 * data["position"]
    low = torch.zeros(93)
    low[:12] = low[48:57] = 1  # three octaves, slow enough for finite differences in float32
    weights = [weights[0] * low, *weights[1:]]
    sdf, gradient = field.sdf_and_gradient(weights, points)
    torch.testing.assert_close(sdf, field.geometry(weights, points).sdf)
    for axis in range(3):
        step = torch.zeros(3)
        step[axis] = 1e-3
        ahead, behind = (field.geometry(weights, points + sign * step).sdf for sign in (1, -1))
        assert_same((ahead - behind) / 2e-3, gradient[..., axis], tolerance=5e-3)


@torch.no_grad()
def test_there_is_nothing_beyond_the_official_box() -> None:
    data = golden("nerstf_mlp")
    points = torch.tensor([[[0.96, 0, 0], [0, -0.99, 0.5], [1, 1, 1]]]).expand(2, -1, -1)
    geometry = small_field(data).geometry(projected(data), points)
    assert (geometry.density == 0).all() and (geometry.sdf > 0).all()
