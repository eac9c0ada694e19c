"""Colours that depend on the direction, and the signed distance's gradient."""

import numpy as np
import pytest
import torch

from shapeloom.decoder import Decoder, DecoderConfig, RenderConfig, select
from shapeloom.fields.encoding import EncodingConfig, encoding_matrix
from shapeloom.fields.heads import ColorHead, GeometryHead, harmonics
from shapeloom.fields.mlp import ColorTrunkConfig, FieldConfig, TrunkConfig
from shapeloom.fields.projection import ProjectionConfig
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.viewpoints import fitting_distance


def decoder(**field: object) -> Decoder:
    torch.manual_seed(0)
    trunks = {
        "geometry": TrunkConfig(width=32, num_layers=3),
        "color": ColorTrunkConfig(width=32, num_layers=2),
    }
    config = FieldConfig.model_validate({**trunks, **field})
    return Decoder(
        DecoderConfig(projection=ProjectionConfig(num_tokens=8, channels=4, rank=16), field=config)
    )


def unit_vectors(num: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=-1)


def test_harmonics_are_orthonormal_on_the_sphere():
    values = harmonics(unit_vectors(200_000)).double()
    np.testing.assert_allclose(values.mean(0), np.zeros(8), atol=0.02)
    np.testing.assert_allclose(values.T @ values / len(values), np.eye(8), atol=0.03)


def test_harmonics_are_the_real_ones_of_degrees_one_and_two_by_hand():
    x, y, z = torch.eye(3)
    between = torch.tensor([1.0, 2.0, 2.0]) / 3
    found = harmonics(torch.stack([x, y, z, between]))
    three, five, fifteen = 3**0.5, 5**0.5, 15**0.5
    second = [fifteen * value for value in (2 / 9, 4 / 9, 2 / 9, -1.5 / 9)]
    expected = [
        [three, 0, 0, 0, 0, 0, fifteen / 2, -five / 2],
        [0, three, 0, 0, 0, 0, -fifteen / 2, -five / 2],
        [0, 0, three, 0, 0, 0, 0, five],
        [three / 3, 2 * three / 3, 2 * three / 3, *second, five / 6],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_directions_change_nothing_at_first_and_nothing_of_a_texture_ever():
    made = decoder(directional=True)
    weights, points, directions = made.weights(torch.rand(2, 8, 4)), torch.rand(2, 50, 3), unit_vectors(50)
    directions = directions.expand(2, -1, -1)
    plain, seen = made.color(weights, points), made.color(weights, points, directions)
    torch.testing.assert_close(seen.rgb, plain.rgb)
    torch.nn.init.normal_(made.field.color_head.shine.weight)
    shiny = made.color(weights, points, directions)
    assert (shiny.rgb - plain.rgb).abs().max() > 0.05
    torch.testing.assert_close(shiny.texture, plain.texture)
    torch.testing.assert_close(made.color(weights, points).rgb, plain.rgb)


def test_a_highlight_is_learnt_that_one_colour_for_all_directions_cannot_show():
    directions = unit_vectors(512)
    truth = (0.5 + 0.3 * directions[:, 2:]).expand(-1, 3)  # brighter from above, the same at every point
    features = torch.ones(1, 512, 16)
    errors = {}
    for directional in (False, True):
        torch.manual_seed(0)
        head = ColorHead(16, directional=directional)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
        for _ in range(150):
            loss = (head(features, directions[None]).rgb[0] - truth).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[directional] = float(loss.detach())
    assert errors[True] < 0.1 * errors[False]


def test_a_render_shows_the_direction():
    """From the opposite side a field that shines along +x looks different."""
    made = decoder(directional=True).eval()
    with torch.no_grad():
        made.field.color_head.linear.weight.zero_()
        made.field.color_head.linear.bias.zero_()
        made.field.geometry_head.linear.weight.zero_()
        made.field.geometry_head.linear.bias[1] = -0.5  # solid everywhere
        made.field.color_head.shine.weight.zero_()
        # The colour trunk's features are positive in sum, so that their mean can carry a coefficient.
        made.field.color_head.shine.weight[0] = 1.0
    weights = made.weights(torch.rand(1, 8, 4))
    poses = ring(2, elevation_degrees=0.0, distance=fitting_distance(0.7))[None]
    matrices = intrinsics(0.7, 8, 8).expand(1, 2, 3, 3)
    rgb = made.render(weights, poses, matrices, 8, 8, samples=RenderConfig(coarse=16, fine=8)).rgb[0]
    middle = rgb[:, 4, 4]
    assert (middle[0, 0] - middle[1, 0]).abs() > 0.02
    torch.testing.assert_close(middle[0, 1:], middle[1, 1:])


@pytest.mark.parametrize(("bumps", "own_layers"), [(0, 1), (3, 1), (0, 3)])
def test_the_closed_form_gradient_is_autograd_s_and_that_of_finite_differences(bumps, own_layers):
    made = decoder(geometry={"width": 32, "num_layers": 4, "own_layers": own_layers, "bumps": bumps})
    weights, points = made.weights(torch.rand(2, 8, 4)), (2 * torch.rand(2, 40, 3) - 1).requires_grad_()
    # A finite difference across the middle of a bump, where hats have an edge, is half of each side's.
    middles = (torch.arange(max(1, bumps)) + 0.5) * 2 / max(1, bumps) - 1
    clear = ((points.detach()[..., None] - middles).abs() > 2e-3).flatten(2).all(-1) | (bumps == 0)
    (expected,) = torch.autograd.grad(made.geometry(weights, points).sdf.sum(), points, create_graph=True)
    found = made.sdf_gradient(weights, points)
    torch.testing.assert_close(found, expected)
    step = 1e-3 * torch.eye(3)
    differences = [
        (made.geometry(weights, points + step[i]).sdf - made.geometry(weights, points - step[i]).sdf) / 2e-3
        for i in range(3)
    ]
    torch.testing.assert_close(found[clear], torch.stack(differences, -1)[clear], atol=5e-3, rtol=5e-3)
    with torch.no_grad():  # another formula of the activation's derivative
        torch.testing.assert_close(made.sdf_gradient(weights, points), expected)


def test_the_gradient_of_a_batch_is_that_of_each_asset():
    made = decoder()
    weights, points = made.weights(torch.rand(3, 8, 4)), 2 * torch.rand(3, 20, 3) - 1
    together = made.sdf_gradient(weights, points)
    alone = [made.sdf_gradient(select(weights, i), points[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone))
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_the_gradient_in_bfloat16_points_the_same_way():
    made = decoder()
    weights, points = made.weights(torch.rand(2, 8, 4)), 2 * torch.rand(2, 100, 3) - 1
    expected = made.sdf_gradient(weights, points)
    for training in (False, True):
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
            found = made.sdf_gradient(weights, points)
        # bfloat16 keeps 8 bits, and errors add up over six products.
        assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).mean() > 0.99


def test_the_gradient_can_be_trained_on():
    made = decoder()
    weights = made.weights(torch.rand(1, 8, 4))
    (made.sdf_gradient(weights, torch.rand(1, 20, 3)).norm(dim=-1) - 1).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in made.field.geometry_trunk.parameters() if p.grad is not None)
    assert made.field.geometry_head.linear.weight.grad[1].abs().sum() > 0


@torch.no_grad()
def test_the_offset_moves_density_and_leaves_the_signed_distance():
    head = GeometryHead(4)
    features = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(0))
    before = head(features)
    head.linear.bias[0] += 0.5
    after = head(features)
    assert torch.equal(after.sdf, before.sdf) and bool((after.density >= before.density).all())
    assert float((after.density - before.density).max()) > 1
    # An offset of 0.1 * 0.5 is a surface that lies 0.05 further out.
    head.linear.bias[0] -= 0.5
    head.linear.bias[1] -= 0.05
    torch.testing.assert_close(head(features).density, after.density, rtol=1e-3, atol=1e-5)


def test_icosahedral_frequencies_lie_along_axes_that_are_equally_far_from_one_another():
    matrix = encoding_matrix(EncodingConfig(axes="icosahedron", num_octaves=1, num_random=0))
    axes = torch.nn.functional.normalize(matrix, dim=-1)
    assert len(axes) == 6
    cosines = (axes @ axes.T).abs()[~torch.eye(6, dtype=torch.bool)]
    torch.testing.assert_close(cosines, torch.full((30,), 5**-0.5), atol=1e-5, rtol=0)
