"""Points gathered in a grid, against a loop over points."""

import pytest
import torch

from encoder.model import Encoder, EncoderConfig, EncoderInputs
from encoder.tokens import CELL_NUMBERS, PIXEL_NUMBERS, GridTokens, ViewTokens, cell_moments, pixel_features
from shapeloom.decoder import DecoderConfig
from shapeloom.fields.projection import ProjectionConfig
from shapeloom.rendering.cameras import intrinsics, sphere
from shapeloom.rendering.rays import camera_rays


def random_points(batch: int, num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(batch, num, 3, generator=generator) * 2 - 1
    points[:, 0] = 1.0  # on the box's far corner, which belongs to the last cell
    rgb = torch.rand(batch, num, 3, generator=generator)
    return points, rgb, torch.nn.functional.normalize(rgb - 0.5, dim=-1)


def test_cell_moments_are_the_means_of_each_cell() -> None:
    points, rgb, normals = random_points(2, 60)
    grid = cell_moments(points, rgb, normals, 4)
    assert grid.shape == (2, 4, 4, 4, CELL_NUMBERS)
    expected = torch.zeros_like(grid)
    for asset in range(2):
        members: dict[tuple[int, int, int], list[int]] = {}
        for n, point in enumerate(points[asset]):
            x, y, z = (min(int(value), 3) for value in (point + 1) * 2)
            members.setdefault((z, y, x), []).append(n)
        for (z, y, x), those in members.items():
            centre = torch.tensor([x, y, z]) / 2 - 0.75
            numbers = []
            for n in those:
                u, normal = 4 * (points[asset, n] - centre), normals[asset, n]  # 1: half a cell
                upper = torch.ones(3, 3, dtype=torch.bool).triu()
                squares = [torch.outer(v, v)[upper] for v in (normal, u)]
                across = torch.outer(u, normal).flatten()
                numbers.append(torch.cat([u, 2 * rgb[asset, n] - 1, normal, *squares, across]))
            count = torch.tensor([float(len(those))])
            expected[asset, z, y, x] = torch.cat([count.log1p(), torch.ones(1), torch.stack(numbers).mean(0)])
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=1e-5)


def test_moments_tell_a_thin_sheet_s_thickness() -> None:
    """Where the mean normal is zero whatever the thickness."""
    side = torch.tensor([1.0, -1.0]).repeat(50)
    normals = side[None, :, None] * torch.tensor([0.0, 0, 1])
    found = []
    for half in (0.01, 0.02):
        points = torch.cat([torch.full((1, 100, 2), 0.1), 0.1 + half * normals[..., 2:]], dim=-1)
        cell = cell_moments(points, torch.rand(1, 100, 3), normals, 16)[0, 8, 8, 8]
        assert cell[8:11].abs().max() < 1e-6  # the mean normal
        found.append(float(cell[-1]))  # the mean of u_z n_z: half the thickness, in half cells
    assert found == pytest.approx([0.16, 0.32], abs=1e-5)


def test_a_token_is_made_of_what_lies_in_its_own_cell() -> None:
    torch.manual_seed(0)
    network = GridTokens(8, 16, 16)
    points, rgb, normals = random_points(1, 300)
    tokens = network(points, rgb, normals)
    moved = rgb.clone()
    those = (points[0] > torch.tensor([0.5, -0.5, 0.0])).all(-1) & (
        points[0] < torch.tensor([1.0, 0, 0.5])
    ).all(-1)
    moved[0, those] = 0
    changed = (network(points, moved, normals) - tokens).abs().amax(-1)[0] > 1e-6
    assert those.any() and changed.nonzero()[:, 0].tolist() == [(2 * 4 + 1) * 4 + 3]


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


def test_a_views_token_is_of_the_pixels_of_its_patch_row_by_row() -> None:
    tokens = ViewTokens(8, patch=4)
    pixels = torch.rand(2, 3, 8, 12, PIXEL_NUMBERS, generator=torch.Generator().manual_seed(0))
    plain = tokens(pixels)
    assert plain.shape == (2, 3 * 2 * 3, 8)
    pixels[1, 2, 5, 9] += 1  # the second row and the third column of patches of the third view
    differs = (tokens(pixels) != plain).any(dim=-1)
    assert differs.nonzero().tolist() == [[1, 2 * 6 + 1 * 3 + 2]]
    with pytest.raises(ValueError, match="8x12 pixels can't be cut into patches of 5"):
        ViewTokens(8, patch=5)(pixels)


def test_a_pixel_is_told_by_its_colour_its_place_in_space_and_its_ray() -> None:
    poses, matrix = sphere(1, seed=0, distance=3.0), intrinsics(0.7, 4, 4)[None]
    generator = torch.Generator().manual_seed(0)
    origins, directions, cosine = camera_rays(poses, matrix, 4, 4)
    points = origins + 2 * directions
    stored, depth = torch.randint(256, (1, 4, 4, 4), generator=generator, dtype=torch.uint8), 2 * cosine
    depth[0, 0, 0] = 0
    found = pixel_features(stored, depth, poses, matrix)
    assert found.shape[-1] == PIXEL_NUMBERS
    rgba = stored.float() / 255
    torch.testing.assert_close(found[..., :3], rgba[..., :3] * rgba[..., 3:])
    torch.testing.assert_close(found[..., 3], rgba[..., 3])
    assert not found[0, 0, 0, 4:7].any()
    torch.testing.assert_close(found[0, 1:, 1:, 4:7], points[0, 1:, 1:])
    torch.testing.assert_close(found[..., 7:10], directions)
    # Pluecker's moment is the same for all points of the ray.
    torch.testing.assert_close(found[..., 10:], torch.linalg.cross(points, directions))
