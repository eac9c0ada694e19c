"""Networks of points: of the published files' size, and what their papers say, in plain numpy."""

import math

import numpy as np
import pytest
import timm
import torch
from jaxtyping import Float
from numpy import ndarray
from timm.models.eva import Eva
from torch import Tensor, nn

from eval.point_networks import (
    RADIUS_LEFT_OUT,
    UNI3D_SIZES,
    PointNet2,
    Ulip2,
    Uni3d,
    centred,
    farthest,
    in_ball,
)
from shapeloom.seed import numpy_rng

UNI3D_BYTES = {192: 12835148, 384: 45713996, 768: 178008217, 1024: 614861649, 1408: 2034909361}
"""Of the published `model.pt` of each width, in half precision."""
ULIP2_BYTES = 402018241
"""Of ULIP-2-PointBERT-10k-xyzrgb-...: in single precision, with both moments of Adam."""
HEADER = 512
"""More bytes than a tensor's name and place take in a file."""


def cloud(num: int, seed: int = 0) -> Float[Tensor, "1 num 6"]:
    """Points of a bent sheet of no symmetry, off the centre, with colours."""
    u, v = numpy_rng("cloud", seed).random((2, num))
    xyz = np.stack([u + 3, 0.7 * v, u * v + 0.3 * np.sin(4 * u)], axis=1)
    return torch.from_numpy(np.concatenate([xyz, np.stack([u, v, u * v], axis=1)], axis=1)).float()[None]


def drawn(network: nn.Module, seed: int = 0) -> nn.Module:
    """With random weights and batch statistics, ready to use."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return network.eval().requires_grad_(False)


def small_ulip2(points_per_patch: int = 5, *, channels: int = 6, patches: int = 6) -> nn.Module:
    return drawn(
        Ulip2(
            depth=2, channels=channels, embed=7, width=24, heads=3, patches=patches,
            points_per_patch=points_per_patch,
        )
    )  # fmt: skip


def assert_same(found: Tensor, expected: ndarray) -> None:
    """To single precision, through a dozen layers."""
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def small_uni3d(points_per_patch: int = 5) -> nn.Module:
    trunk = Eva(
        img_size=28, patch_size=14, embed_dim=24, depth=2, num_heads=3, swiglu_mlp=True, num_classes=0,
        qkv_fused=False, use_rot_pos_emb=True,
    )  # fmt: skip
    return drawn(Uni3d(trunk, 24, embed=7, patches=6, points_per_patch=points_per_patch))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("width", UNI3D_SIZES)
def test_uni3d_holds_as_many_numbers_as_the_published_file(width: int) -> None:
    with torch.device("meta"):
        trunk = timm.create_model(UNI3D_SIZES[width][1], pretrained=False)
        own = {k: v for k, v in Uni3d(trunk, width).state_dict().items() if not k.startswith("visual.")}
    tensors = [*own.values(), *trunk.state_dict().values()]
    rest = UNI3D_BYTES[width] - 2 * sum(each.numel() for each in tensors)
    assert 0 < rest < HEADER * len(tensors)


def test_ulip2_holds_as_many_numbers_as_the_published_file() -> None:
    with torch.device("meta"):
        tensors = list(Ulip2(depth=18, channels=6, embed=1280).parameters())
    rest = ULIP2_BYTES - 3 * 4 * sum(each.numel() for each in tensors)
    assert 0 < rest < 3 * HEADER * len(tensors)


def test_pointnet2_has_the_published_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in PointNet2().state_dict().items()}
        narrow = sum(each.numel() for each in PointNet2(1).parameters())
    assert shapes["sa1.mlp_convs.0.weight"] == (128, 3, 1, 1)
    assert shapes["sa3.mlp_convs.2.weight"] == (2048, 1024, 1, 1)
    assert shapes["fc2.weight"] == shapes["bn2.weight"] + (1024,) == (512, 1024)
    assert narrow == 1_475_688  # 1.48 M, as told of the network of usual width


# ---------------------------------------------------------------- plain numpy


def np_centred(xyz: ndarray) -> ndarray:
    xyz = xyz - xyz.mean(axis=0)
    return xyz / np.sqrt((xyz**2).sum(axis=1)).max()


def np_farthest(xyz: ndarray, num: int, allowed: ndarray) -> list[int]:
    chosen = [0]
    while len(chosen) < num:
        to_chosen = np.array([min(((p - xyz[c]) ** 2).sum() for c in chosen) for p in xyz])
        chosen.append(int(np.where(allowed, to_chosen, -1).argmax()))
    return chosen


def np_norm(x: ndarray, norm: nn.Module) -> ndarray:
    """A batch norm in use, or a layer norm, over the last axis."""
    n = {name: value.double().numpy() for name, value in norm.state_dict().items()}
    mean = n.get("running_mean", x.mean(axis=-1, keepdims=True))
    var = n.get("running_var", x.var(axis=-1, keepdims=True))
    return (x - mean) / np.sqrt(var + norm.eps) * n["weight"] + n["bias"]


def np_linear(x: ndarray, layer: nn.Module) -> ndarray:
    """A linear layer, or a convolution of one pixel."""
    weight = layer.weight.double().numpy()
    bias = 0 if layer.bias is None else layer.bias.double().numpy()
    return x @ weight.reshape(len(weight), -1).T + bias


def np_gelu(x: ndarray) -> ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def np_abstraction(layer: nn.Module, xyz: ndarray, features: ndarray) -> tuple[ndarray, ndarray]:
    everywhere = np.ones(len(xyz), bool)
    centres = xyz[np_farthest(xyz, layer.centres, everywhere)] if layer.centres else np.zeros((1, 3))
    found = []
    for centre in centres:
        inside = [i for i, p in enumerate(xyz) if ((p - centre) ** 2).sum() <= layer.radius**2]
        members = inside[: layer.num] if layer.centres else range(len(xyz))
        x = np.array([[*(xyz[i] - centre), *features[i]] for i in members])
        for conv, norm in zip(layer.mlp_convs, layer.mlp_bns, strict=True):
            x = np_norm(np_linear(x, conv), norm).clip(min=0)
        found.append(x.max(axis=0))
    return centres, np.array(found)


def test_pointnet2_is_its_paper_s_formula() -> None:
    network = drawn(PointNet2(1, centres=(20, 6)))
    network.sa1.num = network.sa2.num = 4  # balls hold more, so that the first of them count
    given = cloud(60)
    xyz, x = np_centred(given[0, :, :3].double().numpy()), np.zeros((60, 0))
    for layer in (network.sa1, network.sa2, network.sa3):
        xyz, x = np_abstraction(layer, xyz, x)
    hidden = np_norm(np_linear(x[0], network.fc1), network.bn1).clip(min=0)
    expected = np_norm(np_linear(hidden, network.fc2), network.bn2)
    assert_same(network(given)[0], expected)


def np_tokens(network: nn.Module, given: Tensor, widen: nn.Module) -> tuple[ndarray, ndarray]:
    """Tokens and positions of the patches, from +Y-up clouds."""
    values = given[0].double().numpy()
    x, y, z = np_centred(values[:, :3]).T
    xyz = np.stack([x, z, -y], axis=1)
    chosen = np_farthest(xyz, network.patches, np.linalg.norm(xyz, axis=1) > RADIUS_LEFT_OUT)
    tokens = []
    for centre in xyz[chosen]:
        near = ((xyz - centre) ** 2).sum(axis=1).argsort()[: network.points_per_patch]
        patch = np.concatenate([xyz[near] - centre, values[near, 3:]], axis=1)[:, : network.channels]
        a, norm, _, b = network.encoder.first_conv
        h = np_linear(np_norm(np_linear(patch, a), norm).clip(min=0), b)
        h = np.concatenate([np.tile(h.max(axis=0), (len(h), 1)), h], axis=1)
        a, norm, _, b = network.encoder.second_conv
        tokens.append(np_linear(np_norm(np_linear(h, a), norm).clip(min=0), b).max(axis=0))
    first, _, last = network.pos_embed
    places = np_linear(np_gelu(np_linear(xyz[chosen], first)), last)
    whole, place = (each.double().numpy()[0] for each in (network.cls_token, network.cls_pos))
    return np.concatenate([whole, np_linear(np.array(tokens), widen)]), np.concatenate([place, places])


def np_attention(x: ndarray, attention: nn.Module, heads: int) -> ndarray:
    queries, keys, values = np.split(np_linear(x, attention.qkv), 3, axis=1)
    found = []
    for q, k, v in zip(*(np.split(each, heads, axis=1) for each in (queries, keys, values)), strict=True):
        weights = np.exp(q @ k.T / math.sqrt(q.shape[1]))
        found.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    return np_linear(np.concatenate(found, axis=1), attention.proj)


@pytest.mark.parametrize(("channels", "patches", "points"), [(3, 6, 50), (6, 6, 50), (6, 12, 12)])
def test_ulip2_is_its_paper_s_formula(channels: int, patches: int, points: int) -> None:
    network = small_ulip2(channels=channels, patches=patches)
    given = cloud(points)
    given[:, -1] = given[:, :-1].mean(dim=1)  # it lies at the centre, and is never a patch's
    x, positions = np_tokens(network, given, network.reduce_dim)
    for block in network.blocks["blocks"]:
        x = x + positions
        x = x + np_attention(np_norm(x, block.norm1), block.attn, 3)
        x = x + np_linear(np_gelu(np_linear(np_norm(x, block.norm2), block.mlp.fc1)), block.mlp.fc2)
    x = np_norm(x, network.norm)
    expected = np.concatenate([x[0], x[1:].max(axis=0)]) @ network.pc_projection.double().numpy()
    assert_same(network(given)[0], expected)


def test_uni3d_puts_tokens_of_patches_through_the_trunk_without_rotary_positions() -> None:
    network = small_uni3d()
    given = cloud(50)
    tokens, positions = np_tokens(network, given, network.encoder2trans)
    x = torch.from_numpy(tokens + positions).float()[None]
    for block in network.visual["blocks"]:
        x = block(x, rope=None)
    parts = network.visual
    expected = np_linear(parts["fc_norm"](parts["norm"](x[:, 0])).double().numpy(), network.trans2embed)
    assert_same(network(given), expected)


# ---------------------------------------------------------------- invariances


@pytest.mark.parametrize("make", [lambda: drawn(PointNet2(1, centres=(16, 6))), small_ulip2, small_uni3d])
def test_place_size_and_order_of_the_points_don_t_matter(make) -> None:
    network, given = make(), cloud(60)
    moved = given.clone()
    moved[..., :3] = moved[..., :3] * 7 - torch.tensor([5.0, 1.0, 2.0])
    order = torch.from_numpy(numpy_rng("order").permutation(np.arange(1, 60)))
    shuffled = given[:, torch.cat([torch.zeros(1, dtype=torch.long), order])]  # centres start at the first
    both = network(torch.cat([moved, shuffled]))
    # The largest of them is off by rounding: 3 / 7 isn't a float32.
    tolerance = 2e-3 * float(both.abs().max())
    torch.testing.assert_close(both, network(given).expand(2, -1), rtol=0, atol=tolerance)


def test_copies_of_points_count_once_in_a_ball_and_twice_among_nearest() -> None:
    given = cloud(60)
    twice = torch.cat([given, given], dim=1)
    network = drawn(PointNet2(1, centres=(16, 6)))
    torch.testing.assert_close(network(twice), network(given), rtol=1e-4, atol=1e-4)
    for make in (small_ulip2, small_uni3d):
        torch.testing.assert_close(make(10)(twice), make(5)(given), rtol=1e-3, atol=1e-4)


def test_colours_count_where_a_network_sees_them() -> None:
    given = cloud(60)
    grey = torch.cat([given[..., :3], torch.full((1, 60, 3), 0.4)], dim=2)
    for network in (drawn(PointNet2(1, centres=(16, 6))), small_ulip2(channels=3)):
        assert torch.equal(network(given), network(grey))
    for network in (small_ulip2(), small_uni3d()):
        assert not torch.allclose(network(given), network(grey), atol=1e-2)


def test_a_cloud_of_one_point_has_features() -> None:
    for network in (drawn(PointNet2(1, centres=(16, 6))), small_ulip2(), small_uni3d()):
        assert network(torch.zeros(1, 60, 6)).isfinite().all()
    assert not centred(torch.ones(1, 5, 3)).any()


# ---------------------------------------------------------------- the parts


def test_centres_near_the_middle_are_chosen_only_as_the_first() -> None:
    xyz = torch.tensor([[[0.01, 0, 0], [0, 0.02, 0], [1, 0, 0], [0, -1, 0], [0, 0, 0.5]]])
    left_out = xyz.norm(dim=2) <= RADIUS_LEFT_OUT
    assert left_out.tolist() == [[True, True, False, False, False]]
    assert farthest(xyz, 4, left_out=left_out)[0].tolist() in ([0, 2, 3, 4], [0, 3, 2, 4])


def test_a_ball_takes_the_first_in_order_and_repeats_one_for_fewer() -> None:
    xyz = torch.tensor([[[0.0, 0, 0], [5, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.05, 0, 0]]])
    assert in_ball(xyz, xyz[:, :2], radius=0.3, num=3)[0].tolist() == [[0, 2, 3], [1, 1, 1]]
    assert in_ball(xyz, xyz[:, 1:2], radius=6.0, num=3)[0].tolist() == [[0, 1, 2]]
