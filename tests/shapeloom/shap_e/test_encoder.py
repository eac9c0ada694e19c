"""Shap-E's encoder against recorded numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shapeloom.shap_e.encoder import ShapEEncoder, ball_query, fold_convolutions
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shap_e.inputs import ShapEEncoderConfig, ShapEInputs, pixel_numbers
from shapeloom.shap_e.rendering import official_rays
from tests.golden_data import assert_same, golden, part, published_shapes

SMALL = ShapEEncoderConfig(
    width=64, heads=4, num_layers=2, num_points=256, num_centres=64, num_views=2, size=32
)
FIELD = ShapEFieldConfig(width=32, channels=16)


@pytest.fixture(scope="module")
def data() -> dict[str, Tensor]:
    return golden("encoder")


@pytest.fixture(scope="module")
def encoder(data: dict[str, Tensor]) -> ShapEEncoder:
    model = ShapEEncoder(SMALL, FIELD).eval()
    model.load_state_dict(part(data, "encoder."))
    return model


def inputs_of(data: dict[str, Tensor]) -> ShapEInputs:
    poses = torch.eye(4).repeat(2, 2, 1, 1)
    for column, name in enumerate(("x", "y", "z", "origin")):
        poses[..., :3, column] = data[f"in.camera.{name}"]
    return ShapEInputs(
        points=data["in.points"].transpose(1, 2).contiguous(),
        rgb=data["in.views"].float(),
        seen=data["in.view_alphas"] / 255 >= 0.999,
        depth=data["in.depths"],
        cam_to_world=poses,
        tangents=(data["in.camera.fov_xy"] / 2).tan().expand(2, 2, 2),
    )


@torch.no_grad()
def test_golden_encoder(data: dict[str, Tensor], encoder: ShapEEncoder) -> None:
    inputs = inputs_of(data)
    seen = data["mid.pixel_mask"][:, :, 0].bool()
    assert torch.equal(inputs.seen, seen)
    directions, cosine = official_rays(inputs.cam_to_world, inputs.tangents, 32, 32)
    distance = inputs.depth.clamp(max=9.0) / cosine
    position = inputs.cam_to_world[..., None, None, :3, 3] + distance[..., None] * directions
    assert torch.equal(position[seen], data["mid.pixel_position"].permute(0, 1, 3, 4, 2)[seen])
    xyz = inputs.points[..., :3]
    assert torch.equal(ball_query(xyz, xyz[:, :64]).int(), data["mid.ball_query"])
    kept: dict[str, Tensor] = {}
    for name, module in (
        ("input_proj", encoder.input_proj), ("data_tokens", encoder.point_conv), ("ln_pre", encoder.ln_pre),
        ("after_xattn_points", encoder.encoder[0]), ("after_xattn_views", encoder.encoder[1]),
        ("processor.0", encoder.processor.resblocks[0]), ("processor.1", encoder.processor.resblocks[1]),
        ("channels", encoder.output_proj), ("conv0", encoder.point_conv.mlp_convs[0]),
        ("conv1", encoder.point_conv.mlp_convs[1]),
    ):  # fmt: skip
        module.register_forward_hook(lambda _m, _i, out, name=name: kept.__setitem__(name, out))
    latent = encoder(inputs)
    for name, value in kept.items():
        assert_same(value, data[f"mid.{name}"])
    assert_same(encoder.view_tokens(inputs), data["mid.view_tokens"].flatten(1, 2))
    assert_same(latent, data["out.latent"].view(2, 128, 16))
    for layer, matrix in enumerate(encoder.params_proj(latent)):
        assert_same(matrix, data[f"out.projected.nerstf.mlp.{layer}.weight"])


@torch.no_grad()
def test_golden_pixels(data: dict[str, Tensor], encoder: ShapEEncoder) -> None:
    inputs, convolution = inputs_of(data), encoder.mv_pcl_embed
    views = [pixel_numbers(inputs, view, convolution.unk_token)[0] for view in range(2)]
    assert_same(convolution(torch.stack(views).permute(0, 3, 1, 2))[None], data["mid.mv_pcl_embed"])


@torch.no_grad()
def test_golden_shuffled_encoder(data: dict[str, Tensor], encoder: ShapEEncoder) -> None:
    permutations = [data["shuffled.perm_conv0"], data["shuffled.perm_conv1"]]
    assert_same(encoder(inputs_of(data), permutations), data["shuffled.latent"].view(2, 128, 16))


@torch.no_grad()
def test_the_folded_convolution_is_both_after_each_other() -> None:
    first, second = torch.nn.Conv2d(5, 6, 3, padding=1), torch.nn.Conv2d(6, 7, 8, stride=8)
    picture = torch.randn(2, 5, 24, 16)
    kernel, bias = fold_convolutions(first.weight, first.bias, second.weight, second.bias)
    folded = kernel.view(10, 10, 5, 7).permute(3, 2, 0, 1)
    ours = F.conv2d(F.pad(picture, (1, 1, 1, 1)), folded, bias, stride=8)
    torch.testing.assert_close(ours, second(first(picture)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_taps_by_point_are_taps_by_neighbour(data: dict[str, Tensor], encoder: ShapEEncoder) -> None:
    inputs = inputs_of(data)
    unmoved = [torch.arange(samples).expand(2, channels, -1) for channels, samples in ((67, 64), (64, 17))]
    torch.testing.assert_close(encoder(inputs), encoder(inputs, unmoved), rtol=1e-5, atol=1e-5)


def test_the_full_size_encoder_is_the_published_one() -> None:
    with torch.device("meta"):
        model = ShapEEncoder(ShapEEncoderConfig(), ShapEFieldConfig())
    published, _ = published_shapes("transmitter")
    theirs = {key.removeprefix("encoder."): shape for key, shape in published.items() if key[0] == "e"}
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == theirs
