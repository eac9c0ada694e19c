"""The references' volume: where voxels are seen, what is summed along rays, what is drawn."""

import math

import pytest
import torch

from shapeloom.rendering.cameras import intrinsics, spherical
from shapeloom.rendering.rays import camera_rays
from shapeloom.view_volume import ReferenceVolume, middles, projected, summed

SIZE = 16


def pose(azimuth: float, elevation: float = 0.3) -> torch.Tensor:
    return spherical(torch.tensor([azimuth]), torch.tensor([elevation]), 4.0)


def volume(side: int = 8, width: int = 8) -> ReferenceVolume:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ReferenceVolume(size=SIZE, side=side, width=width, context_width=16).eval()


def test_points_on_a_pixel_s_ray_are_seen_at_that_pixel() -> None:
    matrix = intrinsics(0.7, SIZE, SIZE)[None]
    matrix[:, 0, 2] += 1.5  # an off-centre axis
    origins, directions, cosine = camera_rays(pose(0.4), matrix, SIZE, SIZE)
    points = (origins + 3.0 * directions).reshape(1, -1, 3)
    at, depth = projected(points, pose(0.4), matrix, size=SIZE)
    x, y = torch.meshgrid(*[(torch.arange(SIZE) + 0.5) * 2 / SIZE - 1] * 2, indexing="xy")
    torch.testing.assert_close(at.reshape(SIZE, SIZE, 2), torch.stack([x, y], dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(depth.reshape(SIZE, SIZE), 3 * cosine[0], atol=1e-5, rtol=0)


def test_grid_sample_reads_a_volume_at_its_voxels_middles() -> None:
    points = middles(4, torch.device("cpu"))
    values = points.T.reshape(1, 3, 4, 4, 4)
    found = torch.nn.functional.grid_sample(values, points[None, None, None], align_corners=False)
    torch.testing.assert_close(found[0, :, 0, 0].T, points, atol=1e-6, rtol=0)


def test_what_is_summed_along_a_ray_is_a_volume_s_colour() -> None:
    """Two halves of a ray: the first lets exp(-0.5) through, the second is opaque."""
    values, alpha = summed(torch.tensor([0.5, 50.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    through = math.exp(-0.5)
    torch.testing.assert_close(values, torch.tensor([1 - through, through]))
    torch.testing.assert_close(alpha, torch.tensor(1.0))
    values, alpha = summed(torch.zeros(3), torch.ones(3, 2))
    assert not values.any() and not alpha.any()


def test_a_red_ball_in_the_volume_is_drawn_as_a_red_disc_on_white() -> None:
    network = volume(side=16)
    inside = (middles(16, torch.device("cpu")).norm(dim=-1) < 0.6).float().reshape(16, 16, 16)
    content = torch.zeros(1, 9, 16, 16, 16)
    content[0, 0] = 40 * inside - 20
    content[0, 1] = 1
    drawn = network.drawn(content, pose(0.9)[None], intrinsics(0.7, SIZE, SIZE)[None, None], cells=32)
    assert drawn.shape == (1, 4 + 5, 32, 32)
    red, green, blue, alpha = drawn[0, :4]
    assert alpha[16, 16] == pytest.approx(1, abs=1e-3) and red[16, 16] == pytest.approx(1, abs=1e-3)
    assert green[16, 16] == pytest.approx(-1, abs=1e-3)
    assert alpha[0, 0] == pytest.approx(-1, abs=1e-3) and blue[0, 0] == pytest.approx(1, abs=1e-3)
    # A sphere of radius 0.6 at distance 4 covers tan(asin(0.15)) of the half height tan(0.35).
    radius = math.tan(math.asin(0.15)) / math.tan(0.35) * 16
    assert (alpha > 0).sum().item() == pytest.approx(math.pi * radius**2, rel=0.15)


def told(network: ReferenceVolume, there: list[bool], *, change: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(1, 2, 4, SIZE, SIZE, generator=generator)
    tokens = torch.randn(1, 2, 2, 2, 16, generator=generator)
    if change is not None:
        pictures[:, change], tokens[:, change] = 0.5, 1.0
    poses = torch.stack([pose(0.0), pose(1.0)], dim=1)
    matrices = intrinsics(0.7, SIZE, SIZE).expand(1, 2, 3, 3)
    found: torch.Tensor = network(pictures, poses, matrices, torch.tensor([there]), tokens, torch.ones(1, 16))
    return found


def test_only_references_that_are_there_count_and_each_of_them_does() -> None:
    network = volume()
    for there in ([True, False], [False, False]):
        assert torch.equal(told(network, there), told(network, there, change=1))
    assert torch.equal(told(network, [False, True]), told(network, [False, True], change=0))
    both = told(network, [True, True])
    assert not torch.equal(both, told(network, [True, True], change=0))
    assert not torch.equal(both, told(network, [True, True], change=1))
    assert torch.isfinite(told(network, [False, False])).all()
