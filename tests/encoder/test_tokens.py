"""Points gathered in a grid, against a loop over points."""

import torch

from encoder.model import Encoder, EncoderConfig, EncoderInputs
from encoder.tokens import CELL_NUMBERS, cell_means
from shapeloom.decoder import DecoderConfig
from shapeloom.fields.projection import ProjectionConfig


def random_points(batch: int, num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(batch, num, 3, generator=generator) * 2 - 1
    points[:, 0] = 1.0  # on the box's far corner, which belongs to the last cell
    rgb = torch.rand(batch, num, 3, generator=generator)
    return points, rgb, torch.nn.functional.normalize(rgb - 0.5, dim=-1)


def test_cell_means_are_the_means_of_each_cell() -> None:
    points, rgb, normals = random_points(2, 60)
    grid = cell_means(points, rgb, normals, 4)
    assert grid.shape == (2, CELL_NUMBERS, 4, 4, 4)
    expected = torch.zeros_like(grid)
    for asset in range(2):
        members: dict[tuple[int, int, int], list[int]] = {}
        for n, point in enumerate(points[asset]):
            x, y, z = (min(int(value), 3) for value in (point + 1) * 2)
            members.setdefault((z, y, x), []).append(n)
        for (z, y, x), those in members.items():
            centre = torch.tensor([x, y, z]) / 2 - 0.75
            place = (points[asset, those] - centre).mean(0) * 2  # in cells
            color, normal = 2 * rgb[asset, those].mean(0) - 1, normals[asset, those].mean(0)
            count = torch.tensor([float(len(those))])
            expected[asset, :, z, y, x] = torch.cat([count.log1p(), torch.ones(1), place, color, normal])
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=1e-5)


def test_the_latent_does_not_depend_on_the_order_of_points() -> None:
    torch.manual_seed(0)
    decoder = DecoderConfig(projection=ProjectionConfig(num_tokens=6, channels=4, rank=8))
    network = Encoder(EncoderConfig(width=32, heads=2, num_layers=1, grid=8), decoder).eval()
    points, rgb, normals = random_points(1, 200)
    order = torch.randperm(200)
    with torch.no_grad():
        latent = network(EncoderInputs(points, rgb, normals))
        shuffled = network(EncoderInputs(points[:, order], rgb[:, order], normals[:, order]))
    assert latent.shape == (1, 6, 4) and latent.abs().max() <= 1
    torch.testing.assert_close(latent, shuffled, atol=1e-5, rtol=1e-4)
