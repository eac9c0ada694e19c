"""Latents to weights: both projections, and the field evaluated for a batch at once."""

import pytest
import torch

from shapeloom.fields.encoding import EncodingConfig, encode, encoding_matrix
from shapeloom.fields.mlp import FieldConfig, FieldMLP, TrunkConfig, own_shapes
from shapeloom.fields.projection import ProjectionConfig, make_projection

FIELD = FieldConfig(
    encoding=EncodingConfig(num_octaves=2, num_random=4),
    geometry=TrunkConfig(width=8, num_layers=4, own_layers=2),
    color=TrunkConfig(width=16, num_layers=2, own_layers=1),
)
KINDS = [
    ProjectionConfig(kind="rows", num_tokens=32, channels=6),
    ProjectionConfig(kind="low_rank", num_tokens=9, channels=6, rank=12),
]


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_a_batch_of_fields_equals_the_fields_one_by_one(config: ProjectionConfig) -> None:
    torch.manual_seed(0)
    projection, field = make_projection(config, own_shapes(FIELD)), FieldMLP(FIELD)
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
    projection = make_projection(config, own_shapes(FIELD))
    latent = torch.randn(1, config.num_tokens, config.channels).requires_grad_()
    sum((matrix**2).sum() for matrix in projection(latent)).backward()
    assert latent.grad is not None
    assert (latent.grad != 0).all()


def test_the_low_rank_projection_is_affine_in_the_latent() -> None:
    projection = make_projection(KINDS[1], own_shapes(FIELD))
    a, b = torch.randn(2, 1, 9, 6)
    for middle, left, right in zip(projection(0.5 * (a + b)), projection(a), projection(b), strict=True):
        torch.testing.assert_close(middle, 0.5 * (left + right), atol=1e-5, rtol=1e-4)


def test_tokens_that_do_not_fit_are_refused_with_the_number_that_would() -> None:
    with pytest.raises(ValueError, match="must be 32"):
        make_projection(ProjectionConfig(kind="rows", num_tokens=31), own_shapes(FIELD))
    with pytest.raises(ValueError, match="multiple of the field's 3 layers"):
        make_projection(ProjectionConfig(kind="low_rank", num_tokens=31), own_shapes(FIELD))


@pytest.mark.parametrize("axes", ["cartesian", "icosahedron"])
def test_encodings_have_the_width_that_is_announced(axes: str) -> None:
    config = EncodingConfig(axes=axes, num_octaves=4, num_random=5)
    assert encode(torch.rand(5, 3), encoding_matrix(config)).shape[-1] == config.width


def test_density_and_signed_distance_agree_where_the_surface_is() -> None:
    torch.manual_seed(0)
    projection, field = make_projection(KINDS[1], own_shapes(FIELD)), FieldMLP(FIELD)
    head = field.geometry_head
    with torch.no_grad():
        head.linear.weight[0] = 0  # no offset
        head.linear.bias[:] = 0
        values = field.geometry(projection(torch.randn(1, 9, 6)), torch.rand(1, 500, 3) * 2 - 1)
    assert 0 < (values.sdf < 0).float().mean() < 1
    assert ((values.density > 0.5 / head.log_beta.exp()) == (values.sdf < 0)).all()
