"""Latents to weights: each projection, and the field evaluated for a batch at once."""

import pytest
import torch
from torch import nn

from shapeloom.fields.encoding import EncodingConfig, encode, encoding_matrix
from shapeloom.fields.mlp import ColorTrunkConfig, FieldConfig, FieldMLP, TrunkConfig, own_bumps, own_shapes
from shapeloom.fields.projection import ProjectionConfig, make_projection

FIELD = FieldConfig(
    encoding=EncodingConfig(num_octaves=2, num_random=4),
    geometry=TrunkConfig(width=8, num_layers=4, own_layers=2),
    color=ColorTrunkConfig(width=16, num_layers=2, own_layers=1),
)
BUMPY = FIELD.model_copy(
    update={
        "geometry": TrunkConfig(width=8, num_layers=4, bumps=6),
        "color": ColorTrunkConfig(width=16, num_layers=2, bumps=3),
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
    return make_projection(config, own_shapes(field), own_bumps(field))


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


@pytest.mark.parametrize(
    ("token", "reach"),
    [
        # The geometry's bumps of this cell are centred half a third from its middle and reach a third on.
        (2, 1 / 2),
        # The colour's only one is centred in its middle, and reaches the middles of its neighbours.
        (27 + 2, 2 / 3),
    ],
)
def test_a_column_changes_the_field_around_its_own_place_alone(token: int, reach: float) -> None:
    torch.manual_seed(0)
    projection, field = projection_of(KINDS[2]), FieldMLP(BUMPY)
    latent = torch.randn(1, 54, 6)
    changed = latent.clone()
    changed[0, token] += 1  # of the cell at the largest x, the smallest y and z
    points = torch.rand(1, 8000, 3) * 2 - 1
    weights, others = projection(latent), projection(changed)
    sdf = (field.geometry(weights, points).sdf - field.geometry(others, points).sdf)[0].abs()
    rgb = (field.color(weights, points).rgb - field.color(others, points).rgb)[0].abs().sum(-1)
    own, other = (sdf, rgb) if token < 27 else (rgb, sdf)
    away = points[0] - torch.tensor([2 / 3, -2 / 3, -2 / 3])
    # The outermost bumps go on to the box's faces.
    reached = (away * torch.tensor([-1.0, 1, 1]) < reach).all(dim=-1)
    assert (own[~reached] <= 1e-6).all() and (own[reached] > 1e-6).float().mean() > 0.9
    assert (other == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "rows", "num_tokens": 31}, "must be 32"),
        ({"kind": "low_rank", "num_tokens": 31}, "multiple of the field's 3 layers"),
        ({"kind": "columns", "num_tokens": 81}, "own_layers=1"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_projection(ProjectionConfig.model_validate(settings), own_shapes(FIELD), own_bumps(FIELD))


@pytest.mark.parametrize("num_tokens", [52, 16, 128])
def test_columns_want_a_grid_of_tokens_that_divides_the_bumps(num_tokens: int) -> None:
    config = ProjectionConfig(kind="columns", num_tokens=num_tokens)
    with pytest.raises(ValueError, match=r"bumps \[6, 3\] a side"):
        make_projection(config, own_shapes(BUMPY), own_bumps(BUMPY))


@pytest.mark.parametrize("axes", ["cartesian", "icosahedron"])
def test_encodings_have_the_width_that_is_announced(axes: str) -> None:
    config = EncodingConfig(axes=axes, num_octaves=4, num_random=5)
    assert encode(torch.rand(5, 3), encoding_matrix(config)).shape[-1] == config.width


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


def test_low_rank_coefficients_start_at_order_one_for_latents_of_half_their_range() -> None:
    torch.manual_seed(0)
    projection = projection_of(KINDS[1])
    numbers = projection.layers[0] * KINDS[1].channels
    made = torch.cat([layer(0.5 * torch.randn(4000, numbers)) for layer in projection.coefficients])
    assert 0.8 < float(made.detach().std()) < 1.25
