"""Latents to weights: each projection, and the field evaluated for a batch at once."""

import pytest
import torch
from torch import nn

from shapeloom.fields.encoding import EncodingConfig, encode, encoding_matrix
from shapeloom.fields.mlp import FieldConfig, FieldMLP, TrunkConfig, own_shapes
from shapeloom.fields.projection import ProjectionConfig, make_projection

FIELD = FieldConfig(
    encoding=EncodingConfig(num_octaves=2, num_random=4),
    geometry=TrunkConfig(width=8, num_layers=4, own_layers=2),
    color=TrunkConfig(width=16, num_layers=2, own_layers=1),
)
BUMPY = FIELD.model_copy(
    update={
        "encoding": EncodingConfig(num_octaves=2, num_random=4, bumps=3),
        "geometry": TrunkConfig(width=8, num_layers=4),
    }
)
KINDS = [
    ProjectionConfig(kind="rows", num_tokens=32, channels=6),
    ProjectionConfig(kind="low_rank", num_tokens=9, channels=6, rank=12),
    ProjectionConfig(kind="columns", num_tokens=54, channels=6),
]


def field_config(config: ProjectionConfig) -> FieldConfig:
    return BUMPY if config.kind == "columns" else FIELD


def projection_of(config: ProjectionConfig) -> nn.Module:
    field = field_config(config)
    return make_projection(config, own_shapes(field), field.encoding.bumps**3)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_a_batch_of_fields_equals_the_fields_one_by_one(config: ProjectionConfig) -> None:
    torch.manual_seed(0)
    projection, field = projection_of(config), FieldMLP(field_config(config))
    latent = torch.randn(3, config.num_tokens, config.channels).tanh()
    points = torch.rand(3, 50, 3) * 2 - 1
    sdf, rgb = field.geometry(projection(latent), points).sdf, field.color(projection(latent), points).rgb
    for i in range(3):
        weights, some = projection(latent[i : i + 1]), points[i : i + 1]
        torch.testing.assert_close(sdf[i], field.geometry(weights, some).sdf[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rgb[i], field.color(weights, some).rgb[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_every_latent_number_reaches_the_field(config: ProjectionConfig) -> None:
    torch.manual_seed(0)
    projection = projection_of(config)
    latent = torch.randn(1, config.num_tokens, config.channels).requires_grad_()
    sum((matrix**2).sum() for matrix in projection(latent)).backward()
    assert latent.grad is not None
    assert (latent.grad != 0).all()


def test_the_low_rank_projection_is_affine_in_the_latent() -> None:
    projection = projection_of(KINDS[1])
    a, b = torch.randn(2, 1, 9, 6)
    for middle, left, right in zip(projection(0.5 * (a + b)), projection(a), projection(b), strict=True):
        torch.testing.assert_close(middle, 0.5 * (left + right), atol=1e-5, rtol=1e-4)


def test_a_column_changes_the_field_around_its_own_place_alone() -> None:
    torch.manual_seed(0)
    projection, field = projection_of(KINDS[2]), FieldMLP(BUMPY)
    latent = torch.randn(1, 54, 6)
    changed = latent.clone()
    changed[0, 27 + 2] += 1  # a token of the colour's, of the bump at the largest x, the smallest y and z
    points = torch.rand(1, 4000, 3) * 2 - 1
    weights, others = projection(latent), projection(changed)
    differs = (field.color(weights, points).rgb - field.color(others, points).rgb)[0].abs().sum(-1) > 1e-6
    # The bump's centre is two thirds from the middle, and it reaches one whole (1.5 cells of two thirds).
    reached = ((points[0] - torch.tensor([2 / 3, -2 / 3, -2 / 3])).abs() < 1).all(dim=-1)
    assert not differs[~reached].any() and differs[reached].float().mean() > 0.9
    torch.testing.assert_close(field.geometry(weights, points).sdf, field.geometry(others, points).sdf)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "rows", "num_tokens": 31}, "must be 32"),
        ({"kind": "low_rank", "num_tokens": 31}, "multiple of the field's 3 layers"),
        ({"kind": "columns", "num_tokens": 54}, "own_layers must be 1"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_projection(ProjectionConfig.model_validate(settings), own_shapes(FIELD), 27)


@pytest.mark.parametrize(("num_bumps", "num_tokens"), [(27, 53), (0, 54)])
def test_columns_want_as_many_tokens_as_bumps(num_bumps: int, num_tokens: int) -> None:
    with pytest.raises(ValueError, match="one token a bump"):
        make_projection(ProjectionConfig(kind="columns", num_tokens=num_tokens), own_shapes(BUMPY), num_bumps)


@pytest.mark.parametrize("num", [1, 4, 5])
def test_bumps_sum_to_one_within_the_box(num: int) -> None:
    config = EncodingConfig(num_octaves=0, num_random=0, bumps=num)
    points = torch.rand(200, 3) * 2 - 1
    bumps = encode(points, encoding_matrix(config), num)[:, 4:]
    assert bumps.shape[1] == num**3 and bumps.min() >= 0
    torch.testing.assert_close(bumps.sum(dim=1), torch.ones(200))


@pytest.mark.parametrize("axes", ["cartesian", "icosahedron"])
def test_encodings_have_the_width_that_is_announced(axes: str) -> None:
    config = EncodingConfig(axes=axes, num_octaves=4, num_random=5, bumps=2)
    assert encode(torch.rand(5, 3), encoding_matrix(config), 2).shape[-1] == config.width


def test_density_and_signed_distance_agree_where_the_surface_is() -> None:
    torch.manual_seed(0)
    projection, field = projection_of(KINDS[1]), FieldMLP(FIELD)
    head = field.geometry_head
    with torch.no_grad():
        head.linear.weight[0] = 0  # no offset
        head.linear.bias[:] = 0
        values = field.geometry(projection(torch.randn(1, 9, 6)), torch.rand(1, 500, 3) * 2 - 1)
    assert 0 < (values.sdf < 0).float().mean() < 1
    assert ((values.density > 0.5 / head.log_beta.exp()) == (values.sdf < 0)).all()
