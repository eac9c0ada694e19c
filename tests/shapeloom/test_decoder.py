"""Rendering fields without knowing where their surface is."""

import pytest
import torch

from shapeloom.decoder import Decoder, DecoderConfig, RenderConfig, select
from shapeloom.fields.encoding import EncodingConfig
from shapeloom.fields.heads import Color, Directions, Field, Geometry
from shapeloom.fields.mlp import FieldConfig
from shapeloom.fields.projection import FieldWeights, ProjectionConfig
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.rendering.occupancy import in_occupied, occupancy_resolution, occupied_cells
from shapeloom.rendering.rays import camera_rays
from shapeloom.viewpoints import fitting_distance

SMALL = DecoderConfig(
    projection=ProjectionConfig(num_tokens=8, channels=4, rank=8),
    field=FieldConfig(encoding=EncodingConfig(num_octaves=1, num_random=0)),
)
FOV = 0.7


class Ball(Decoder):
    """A decoder whose fields are spheres of radius 0.5 (asset 0) and 0.8 (asset 1), coloured by position."""

    def geometry(self, weights: FieldWeights, points: torch.Tensor) -> Geometry:
        sdf = points.norm(dim=-1) - weights[0][:, :1, 0]
        return Geometry(density=torch.sigmoid(-sdf / 0.0005) / 0.0005, sdf=sdf)

    def color(self, weights: FieldWeights, points: torch.Tensor, directions: object = None) -> Color:
        rgb = (0.5 + 0.5 * points).clamp(0, 1)
        return Color(rgb=rgb, texture=rgb)


class Slab(torch.nn.Module):
    """A field of another kind: solid where z is below what an asset says, and green."""

    def forward(
        self, weights: FieldWeights, points: torch.Tensor, directions: Directions = None
    ) -> tuple[Geometry, Color]:
        return self.geometry(weights, points), self.color(weights, points, directions)

    def geometry(self, weights: FieldWeights, points: torch.Tensor) -> Geometry:
        sdf = points[..., 2] - weights[0][:, :1, 0]
        return Geometry(density=200 * torch.sigmoid(-200 * sdf), sdf=sdf)

    def color(self, weights: FieldWeights, points: torch.Tensor, directions: Directions = None) -> Color:
        rgb = torch.tensor([0.0, 1.0, 0.0]).expand_as(points)
        return Color(rgb=rgb, texture=rgb)

    def sdf_and_gradient(
        self, weights: FieldWeights, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.geometry(weights, points).sdf, torch.tensor([0.0, 0.0, 1.0]).expand_as(points)


def test_a_field_of_another_kind_is_decoded_like_ours() -> None:
    decoder, weights = Decoder(SMALL), [torch.full((1, 1, 1), 0.25)]
    decoder.field = Slab()
    assert isinstance(decoder.field, Field)
    points = torch.tensor([[0.1, 0.2, 0.5], [0.0, 0.0, -0.5]])
    torch.testing.assert_close(decoder.sdf(weights, points), torch.tensor([0.25, -0.75]))
    torch.testing.assert_close(decoder.gradient(weights, points), torch.tensor([[0.0, 0, 1], [0, 0, 1]]))
    poses, matrices = cameras(1, 24)
    picture = decoder.render(weights, poses, matrices, 24, 24)
    torch.testing.assert_close(picture.rgb[0, 0, 14, 12], torch.tensor([0.0, 1, 0]), atol=0.02, rtol=0)
    assert float(picture.alpha[0, 0, 0, 0]) == 0


def cameras(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    poses = ring(2, distance=fitting_distance(FOV)).expand(batch, 2, 4, 4)
    return poses, intrinsics(FOV, size, size).expand(batch, 2, 3, 3)


def balls() -> tuple[Ball, FieldWeights]:
    return Ball(SMALL), [torch.tensor([0.5, 0.8])[:, None, None].expand(2, 4, 4)]


def test_a_sphere_covers_the_pixels_that_geometry_says() -> None:
    decoder, weights = balls()
    poses, matrices = cameras(2, 96)
    picture = decoder.render(weights, poses, matrices, 96, 96, samples=RenderConfig(coarse=96, fine=32))
    distance = fitting_distance(FOV)
    for asset, radius in enumerate((0.5, 0.8)):
        # A sphere's outline is a circle of this many pixels' radius.
        outline = radius / (distance**2 - radius**2) ** 0.5 * float(matrices[0, 0, 0, 0])
        area = (picture.alpha[asset] > 0.5).float().sum(dim=(1, 2))
        torch.testing.assert_close(area, torch.full((2,), 3.14159 * outline**2), rtol=0.03, atol=0)


def test_depth_is_along_the_camera_axis_and_zero_where_empty() -> None:
    decoder, weights = balls()
    poses, matrices = cameras(2, 33)
    picture = decoder.render(weights, poses, matrices, 33, 33, samples=RenderConfig(coarse=64, fine=64))
    expected = torch.tensor([0.5, 0.8])
    torch.testing.assert_close(
        picture.depth[:, 0, 16, 16], fitting_distance(FOV) - expected, atol=0.02, rtol=0
    )
    assert (picture.depth[:, :, 0, 0] == 0).all()
    torch.testing.assert_close(picture.rgb[:, :, 0, 0], torch.ones(2, 2, 3))


def test_an_asset_looks_the_same_whatever_its_batch() -> None:
    decoder, weights = balls()
    poses, matrices = cameras(2, 24)
    together = decoder.render(weights, poses, matrices, 24, 24)
    alone = decoder.render(select(weights, 1), poses[1:], matrices[1:], 24, 24)
    torch.testing.assert_close(together.rgb[1:], alone.rgb)


def test_skipping_empty_space_changes_nothing_visible(monkeypatch) -> None:
    decoder, weights = balls()
    poses, matrices = cameras(2, 24)
    skipped = decoder.render(weights, poses, matrices, 24, 24)
    everywhere = torch.ones(2, 32, 32, 32, dtype=torch.bool)
    monkeypatch.setattr(decoder, "occupancy", lambda weights, num_rays: everywhere)
    torch.testing.assert_close(
        skipped.rgb, decoder.render(weights, poses, matrices, 24, 24).rgb, atol=0.01, rtol=0
    )


def test_an_empty_field_renders_as_background() -> None:
    decoder = Ball(SMALL)
    poses, matrices = cameras(1, 8)
    picture = decoder.render([torch.full((1, 4, 4), -5.0)], poses, matrices, 8, 8, background=0.25)
    torch.testing.assert_close(picture.rgb, torch.full((1, 2, 8, 8, 3), 0.25))
    assert (picture.alpha == 0).all()


def test_colour_is_asked_for_only_where_it_shows() -> None:
    asked: list[torch.Tensor] = []

    class Counting(Ball):
        def color(self, weights: FieldWeights, points: torch.Tensor, directions: object = None) -> Color:
            asked.append(points)
            return super().color(weights, points)

    _, weights = balls()
    poses, matrices = cameras(2, 24)
    Counting(SMALL).render(weights, poses, matrices, 24, 24)
    # A ball of radius 0.5 hides its inside, and the box around it is empty.
    radius = torch.cat([points[0] for points in asked]).norm(dim=-1)
    assert (radius > 0.4).all()
    assert len(radius) < 0.2 * 2 * 24 * 24 * 80


def test_constant_fog_absorbs_by_the_length_of_its_slab_whatever_the_picture() -> None:
    class Fog(Ball):
        """Density 0.8 where |z| < 0.5."""

        def geometry(self, weights: FieldWeights, points: torch.Tensor) -> Geometry:
            sdf = points[..., 2].abs() - 0.5
            return Geometry(density=torch.where(sdf < 0, 0.8, 0.0), sdf=sdf)

    down = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    down[2, 3] = 4.0
    for batch, views, height, width in ((1, 1, 1, 1), (2, 3, 5, 2)):
        poses = down.expand(batch, views, 4, 4)
        matrices = intrinsics(0.2, height, width).expand(batch, views, 3, 3)
        weights = [torch.ones(batch, 4, 4)]
        picture = Fog(SMALL).render(
            weights, poses, matrices, height, width, samples=RenderConfig(coarse=200, fine=0), background=0.0
        )
        _, _, cosine = camera_rays(poses, matrices, height, width)
        # A slab's edge falls between samples 2 / 200 apart: an error of density times that, at most twice.
        torch.testing.assert_close(picture.alpha, 1 - torch.exp(-0.8 / cosine), atol=0.01, rtol=0)


def test_rays_end_where_they_are_hidden() -> None:
    asked: list[torch.Tensor] = []

    class Counting(Ball):
        def geometry(self, weights: FieldWeights, points: torch.Tensor) -> Geometry:
            asked.append(points)
            return super().geometry(weights, points)

    _, weights = balls()
    poses, matrices = cameras(2, 24)
    Counting(SMALL).render(select(weights, 1), poses[1:], matrices[1:], 24, 24)
    points = torch.cat([points[0] for points in asked])
    on_grid = ((points * 8) % 1 == 0).all(dim=-1)  # the occupancy grid's
    assert (points[~on_grid].norm(dim=-1) > 0.2).all()
    assert len(points) < 0.3 * 2 * 24 * 24 * 80


def test_a_finer_occupancy_grid_is_worth_it_for_larger_pictures_alone() -> None:
    resolutions = [occupancy_resolution(size**2) for size in (16, 64, 128, 256, 512)]
    assert resolutions == [16, 16, 32, 64, 64]


def test_cells_are_occupied_up_to_where_a_hundredth_of_their_diagonals_light_is_stopped() -> None:
    seen = 0.01 / (3**0.5 * 2 / 16)  # of density
    occupied = occupied_cells(lambda points: seen * torch.exp(-2 * (points[:, 0] - 0.3)), resolution=16)
    starts = torch.arange(16) / 8 - 1
    assert torch.equal(occupied, (starts <= 0.3)[:, None, None].expand(16, 16, 16))


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_a_needle_thinner_than_a_cell_is_occupied(resolution: int) -> None:
    def density(points: torch.Tensor) -> torch.Tensor:
        sdf = (points[:, :2] - 0.03).norm(dim=-1) - 0.02
        return torch.sigmoid(-sdf / 0.01) / 0.01

    occupied = occupied_cells(density, resolution=resolution)
    needle = torch.tensor([0.03, 0.03, 0.0]) + torch.linspace(-1, 1, 101)[:, None] * torch.tensor([0, 0, 1.0])
    assert in_occupied(occupied[None], needle[None]).all()
    assert occupied.float().mean() < 0.2


def test_a_picture_s_gradient_is_that_of_finite_differences() -> None:
    class Cloud(Ball):
        """A ball of soft density, whose colour's red is a number of the latent's."""

        def geometry(self, weights: FieldWeights, points: torch.Tensor) -> Geometry:
            sdf = points.norm(dim=-1) - weights[0][:, :1, 0]
            return Geometry(density=20 * torch.sigmoid(-sdf / 0.05), sdf=sdf)

        def color(self, weights: FieldWeights, points: torch.Tensor, directions: object = None) -> Color:
            red = weights[0][:, :1, 1].expand(points.shape[:2])
            rgb = torch.stack([red, 0.5 + 0.5 * points[..., 0], torch.zeros_like(red)], dim=-1)
            return Color(rgb=rgb, texture=rgb)

    decoder, samples = Cloud(SMALL), RenderConfig(coarse=48, fine=0)
    poses, matrices = cameras(2, 16)
    values = torch.tensor([[0.5, 0.2], [0.7, 0.9]])

    def means(values: torch.Tensor) -> torch.Tensor:
        weights = [values[:, None].expand(2, 4, 2)]
        rendering = decoder.differentiable_render(weights, poses, matrices, 16, 16, samples=samples)
        return rendering.rgb.mean((1, 2, 3))[:, 0]

    given = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(means(given).sum(), given)
    for i in range(2):
        change = torch.zeros(2, 2)
        change[:, i] = 0.01
        numeric = (means(values + change) - means(values - change)) / 0.02
        # Points at the edge of the cells that count as empty come and go.
        torch.testing.assert_close(slope[:, i], numeric, rtol=0.03, atol=1e-3)


def test_gradients_change_no_pixel() -> None:
    decoder, weights = balls()
    poses, matrices = cameras(2, 24)
    plain = decoder.render(weights, poses, matrices, 24, 24)
    torch.testing.assert_close(plain.rgb, decoder.differentiable_render(weights, poses, matrices, 24, 24).rgb)
    assert not plain.rgb.requires_grad
