"""Fields of point clouds: what nodes gather, nearest colours, gradients, and that points have no order."""

import torch

from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.fields.cloud import CloudField, CloudFieldConfig, gather, to_cloud
from shapeloom.fields.heads import Field

SMALL = CloudFieldConfig(num_points=16, grid=8, width=4, hidden=16)


def some_clouds(batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    points = 1.9 * torch.rand(batch, 16, 3, generator=generator) - 0.95
    return to_cloud(points, torch.rand(batch, 16, 3, generator=generator))


def make_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(cloud=SMALL)).eval()


def test_a_point_is_shared_out_among_the_nodes_around_it() -> None:
    # Nodes of a grid of 5 a side are 0.5 apart: the point lies a quarter of a cell from (0, 0, 0.5) along x.
    found = gather(torch.tensor([[[0.125, 0.0, 0.5]]]), 5)[0]
    assert float(found[0].sum()) == 1
    torch.testing.assert_close(found[:, 2, 2, 3], torch.tensor([0.75, 0.25, 0.0, 0.0]))
    torch.testing.assert_close(found[:, 3, 2, 3], torch.tensor([0.25, -0.75, 0.0, 0.0]))
    assert int((found[0] > 0).sum()) == 2


def test_points_at_the_box_s_walls_and_beyond_stay_on_the_grid() -> None:
    found = gather(torch.tensor([[[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [3.0, 0.0, 0.0]]]), 5)[0]
    assert float(found[0].sum()) == 3
    assert float(found[0, 4, 4, 4]) == float(found[0, 0, 0, 0]) == 1


def test_the_order_of_points_changes_nothing() -> None:
    decoder, clouds = make_decoder(), some_clouds()
    at = 1.8 * torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(1)) - 0.9
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    own, moved = decoder.weights(clouds), decoder.weights(clouds[:, order])
    torch.testing.assert_close(decoder.geometry(own, at).sdf, decoder.geometry(moved, at).sdf)
    assert torch.equal(decoder.color(own, at).texture, decoder.color(moved, at).texture)


def test_features_are_read_at_the_place_where_points_were_gathered() -> None:
    """A point alone in the box, off all its diagonals: the grid's sum of weights is largest where it lies."""
    field = CloudField(CloudFieldConfig(num_points=16, grid=8, width=4, hidden=16))
    cloud = torch.tensor([[[0.6, -0.2, -0.7, 0, 0, 0]]]).expand(1, 16, 6)
    features = gather(cloud[..., :3], 8).flatten(2)
    seen: list[torch.Tensor] = []
    field.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    places = torch.tensor([[[0.6, -0.2, -0.7], [-0.7, -0.2, 0.6], [-0.2, 0.6, -0.7]]])
    field.geometry([cloud, features], places)
    weights = seen[0][0, :, 0]
    assert float(weights[0]) > 1 and float(weights[1:].abs().max()) == 0


def test_colours_are_the_nearest_point_s() -> None:
    decoder, clouds = make_decoder(), some_clouds()
    found = decoder.color(decoder.weights(clouds), clouds[..., :3] + 1e-3)
    torch.testing.assert_close(found.texture, (clouds[..., 3:] + 1) / 2)
    assert torch.equal(found.rgb, found.texture)


def test_the_gradient_is_the_difference_of_distances() -> None:
    decoder, clouds = make_decoder().double(), some_clouds().double()
    assert isinstance(decoder.field, Field)
    at = 1.8 * torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(3)).double() - 0.9
    weights, step = decoder.weights(clouds), 1e-4
    sdf, gradient = decoder.sdf_and_gradient(weights, at)
    torch.testing.assert_close(sdf, decoder.geometry(weights, at).sdf)
    shifts = step * torch.eye(3, dtype=torch.float64)
    ahead, behind = (
        torch.stack([decoder.geometry(weights, at + sign * shift).sdf for shift in shifts], dim=-1)
        for sign in (1, -1)
    )
    # Distances are in float32, 1e-8 of some tenths over 2e-4; and a step may cross to other neighbours.
    error = (gradient - (ahead - behind) / (2 * step)).abs().detach()
    assert float(error.median()) < 0.005
