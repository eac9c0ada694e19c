"""Losses of signed distance and colour: by hand, zero or least at the truth, blind where it is a bound."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from encoder.losses import (
    LossConfig,
    point_losses,
    ray_losses,
    standard_divergence,
    stratified_samples,
    total_loss,
)
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.fields.heads import Color, Geometry
from shapeloom.fields.mlp import FieldConfig
from shapeloom.fields.projection import ProjectionConfig
from shapeloom.rendering.cameras import intrinsics, look_at
from shapeloom.rendering.rays import edges_from_samples

CONFIG = LossConfig()


class Shifted(Decoder):
    """A ball of radius 0.5 whose signed distance is off by a learnable shift at each point; it is grey."""

    def __init__(self, shift: torch.Tensor) -> None:
        super().__init__(DecoderConfig())
        self.shift = torch.nn.Parameter(shift)

    def geometry(self, weights, points):
        sdf = points.norm(dim=-1) - 0.5
        if sdf.shape[1] == 4:  # the points off the surface
            sdf = sdf + self.shift
        return Geometry(density=torch.sigmoid(-sdf / 0.01) / 0.01, sdf=sdf)

    def sdf_and_gradient(self, weights, points):
        return self.geometry(weights, points).sdf, points / points.norm(dim=-1, keepdim=True)

    def query(self, weights, points, directions=None):
        return self.geometry(weights, points), self.color(weights, points)

    def color(self, weights, points, directions=None):
        grey = torch.full_like(points, 0.5)
        return Color(rgb=grey, texture=grey)


def ball_batch() -> dict[str, torch.Tensor]:
    directions = torch.nn.functional.normalize(torch.randn(1, 8, 3), dim=-1)
    points = torch.tensor([[[0.1, 0, 0], [0.45, 0, 0], [0, 0.55, 0], [0, 0, 0.9]]])
    return {
        "surface_points": 0.5 * directions,
        "surface_normals": directions,
        "surface_rgb": torch.full((1, 8, 3), 0.25),
        "sdf_points": points,
        "sdf": points.norm(dim=-1) - 0.5,
        "sdf_at_most": points.norm(dim=-1) - 0.5,
    }


def losses_and_slopes(shift: list[float]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    decoder = Shifted(torch.tensor(shift))
    parts = point_losses(decoder, [], ball_batch(), CONFIG)
    slopes = {
        name: torch.autograd.grad(parts[name], decoder.shift, retain_graph=True)[0]
        for name in ("sdf", "occupancy")
    }
    return {name: value.detach() for name, value in parts.items()}, slopes


def test_the_truth_has_no_error_and_no_slope() -> None:
    parts, slopes = losses_and_slopes([0.0] * 4)
    assert float(parts["sdf"]) == pytest.approx(0, abs=1e-6)
    assert float(parts["texture"]) == pytest.approx(0.25)
    assert float(parts["normal"]) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(slopes["occupancy"], torch.zeros(4), atol=1e-5, rtol=0)


def test_a_value_deeper_inside_than_the_nearest_face_is_no_error() -> None:
    parts, slopes = losses_and_slopes([-0.3, -0.3, 0.0, 0.0])
    assert float(parts["sdf"]) == pytest.approx(0, abs=1e-6)
    assert (slopes["sdf"][:2] == 0).all() and (slopes["occupancy"][:2].abs() < 1e-5).all()


def test_errors_are_pulled_back_from_both_sides() -> None:
    _, slopes = losses_and_slopes([0.2, 0.2, -0.2, 0.2])
    for name in ("sdf", "occupancy"):
        assert (slopes[name][:2] > 0).all() and slopes[name][2] < 0
    # Far outside, how far matters to the distance alone.
    assert slopes["sdf"][3] > 0
    assert slopes["occupancy"][3] == pytest.approx(0, abs=1e-3)


def test_between_its_bounds_a_distance_outside_has_no_error() -> None:
    """Outside alone: within, the nearest face bounds it from one side anyway."""
    batch = ball_batch()
    batch["sdf_at_most"] = 1.5 * batch["sdf"]
    errors = [float(point_losses(Shifted(torch.tensor([0.0, 0, 0, s])), [], batch, CONFIG)["sdf"].detach())
              for s in (-0.1, 0.0, 0.15, 0.2, 0.3)]  # fmt: skip
    assert errors[0] > 1e-3 and errors[1:4] == pytest.approx([0] * 3, abs=1e-7) and errors[4] > 1e-3


def test_the_normal_loss_is_the_length_of_the_difference() -> None:
    batch = ball_batch()
    batch["surface_normals"] = 3 * batch["surface_normals"]
    assert float(point_losses(Shifted(torch.zeros(4)), [], batch, CONFIG)["normal"]) == pytest.approx(2)


def test_an_error_of_distance_counts_fully_at_the_surface_and_less_far_from_it() -> None:
    parts, _ = losses_and_slopes([0.2, 0.1, -0.2, 0.3])
    # 0.1 / (0.1 + |distance|), at distances of -0.4, -0.05, 0.05 and 0.4; and 8 surface points without error.
    weighted = 0.2 * 0.2 + 2 / 3 * 0.1 + 2 / 3 * 0.2 + 0.2 * 0.3
    assert float(parts["sdf"]) == pytest.approx(weighted / 12)


class Fog(Decoder):
    """Everywhere as dense, and of one colour: its alpha after a path is known whatever the samples are."""

    def geometry(self, weights, points):
        return Geometry(density=torch.full(points.shape[:-1], math.log(2)), sdf=points[..., 0])

    def query(self, weights, points, directions=None):
        rgb = torch.tensor([0.2, 0.4, 0.8]).expand(points.shape)
        return self.geometry(weights, points), Color(rgb=rgb, texture=rgb)


def test_colours_and_alphas_losses_by_hand() -> None:
    """Along a path of 1 the fog lets half through, along one of 2 a quarter."""
    t_near, t_far = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 3.0]])
    t, edges = stratified_samples(t_near, t_far, torch.rand(1, 2, 8))
    batch = {
        "ray_t": t, "ray_edges": edges,
        "ray_origins": torch.tensor([0.0, -2, 0]).expand(1, 2, 3),
        "ray_directions": torch.tensor([0.0, 1, 0]).expand(1, 2, 3),
        "ray_rgba": torch.tensor([[[0.4, 0.4, 0.4, 1], [0.6, 0.2, 0.2, 0.5]]]),
        "ray_background": torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]),
    }  # fmt: skip
    # Seen: (0.1, 0.2, 0.4) + 0.5 * background, (0.15, 0.3, 0.6) + 0.25 * background.
    # True: (0.4, 0.4, 0.4), and (0.3, 0.1, 0.1) + 0.5 * background.
    errors = torch.tensor([0.2, -0.2, 0, -0.15, -0.05, 0.5])
    by_share = {0.0: errors.abs().mean(), 1.0: 4 * errors.square().mean()}
    by_share[0.25] = 0.75 * by_share[0.0] + 0.25 * by_share[1.0]
    for share, expected in by_share.items():
        parts = ray_losses(Fog(DecoderConfig()), [], batch, LossConfig(squared_share=share))
        torch.testing.assert_close(parts["color"], expected)
        torch.testing.assert_close(parts["alpha"], torch.tensor((0.5 + 0.25) / 2))


def test_the_total_is_the_sum_of_the_losses_by_their_weights() -> None:
    config = LossConfig(color=1, alpha=2, texture=3, sdf=4, normal=5, occupancy=6, eikonal=7)
    names = ("color", "alpha", "texture", "sdf", "normal", "occupancy", "eikonal")
    parts = {name: torch.tensor(10.0**power) for power, name in enumerate(names)}
    assert float(total_loss(parts, config)) == 7654321


def test_rays_come_with_the_last_part_of_the_steps() -> None:
    config = LossConfig(rays_from=0.6)
    assert [config.draws_rays(step, 10) for step in (0, 5, 6, 9)] == [False, False, True, True]
    assert CONFIG.draws_rays(0, 10)


def test_rays_see_a_ball_without_being_told_its_depth() -> None:
    """With many samples."""
    decoder = Shifted(torch.zeros(4))
    origins, directions = torch.tensor([[[0.0, -2, 0], [0, -2, 0.8]]]), torch.tensor([[[0.0, 1, 0]] * 2])
    t, edges = stratified_samples(torch.tensor([[1.0, 1]]), torch.tensor([[3.0, 3]]), torch.rand(1, 2, 64))
    batch = {
        "ray_t": t, "ray_edges": edges, "ray_origins": origins, "ray_directions": directions,
        "ray_rgba": torch.tensor([[[0.5, 0.5, 0.5, 1], [0, 0, 0, 0]]]),
        "ray_background": torch.ones(1, 2, 3),
    }  # fmt: skip
    parts = ray_losses(decoder, [], batch, LossConfig(surface_samples=128, squared_share=0))
    assert max(float(value.detach()) for value in parts.values()) < 0.02


def test_there_is_a_sample_in_each_of_equal_intervals() -> None:
    t_near, t_far = torch.tensor([1.0, 1.0]), torch.tensor([1.8, 1.0])  # the second ray only touches the box
    t, edges = stratified_samples(t_near, t_far, torch.rand(2, 8))
    assert (((t[0] - 1.0) / 0.1).floor() == torch.arange(8)).all() and (t[1] == 1).all()
    assert (edges.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(edges[:, [0, -1]], torch.stack([t_near, t_far], dim=1))


def test_the_divergence_from_a_standard_normal() -> None:
    mean, log_std = torch.tensor([0.0, 1.0, -0.5]), torch.tensor([0.0, -1.0, 0.5])
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(standard_divergence(mean, log_std), expected)


def test_rays_in_chunks_have_the_same_losses_and_slopes_in_less_memory() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig())
    latent = torch.randn(2, 64, 16).tanh()
    t = (torch.rand(2, 40, 8) * 2 + 1).sort(dim=-1).values
    near, far = torch.full((2, 40), 1.0), torch.full((2, 40), 3.0)
    aim = torch.tensor([0.0, 1, 0]) + 0.2 * torch.randn(2, 40, 3)
    batch = {
        "ray_t": t, "ray_edges": edges_from_samples(t, near, far),
        "ray_origins": torch.tensor([0.0, -2, 0]).expand(2, 40, 3),
        "ray_directions": torch.nn.functional.normalize(aim, dim=-1),
        "ray_rgba": torch.rand(2, 40, 4), "ray_background": torch.rand(2, 40, 3),
    }  # fmt: skip
    found = {}
    for at_once in (0, 12):  # 40 rays: the last chunk is shorter
        kept: list[int] = []
        config = LossConfig(rays_at_once=at_once, surface_samples=8)
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x
        )
        with hooks:
            parts = ray_losses(decoder, decoder.weights(latent), batch, config)
        slopes = torch.autograd.grad(sum(parts.values()), list(decoder.parameters()), allow_unused=True)
        found[at_once] = (parts, slopes, sum(kept))
    torch.testing.assert_close(found[12][0], found[0][0])
    for chunked, whole in zip(found[12][1], found[0][1], strict=True):
        # A sum over chunks rounds otherwise than one over all.
        torch.testing.assert_close(chunked, whole, rtol=1e-3, atol=1e-5)
    assert found[12][2] < 0.5 * found[0][2]


def rays_at_a_shiny_ball(num: int) -> dict[str, torch.Tensor]:
    """Each point of a ball of radius 0.5 from all sides: grey, and brighter the more it is seen from +x."""
    outward = torch.nn.functional.normalize(torch.randn(1, num, 3), dim=-1)
    tilt = torch.nn.functional.normalize(torch.randn(1, num, 3), dim=-1)
    directions = -torch.nn.functional.normalize(outward + 0.9 * tilt, dim=-1)
    t_near, t_far = (torch.full((1, num), t) for t in (0.7, 2.0))
    t, edges = stratified_samples(t_near, t_far, torch.rand(1, num, 8))
    grey = (0.4 + 0.4 * (-directions[..., :1]).clamp(min=0)).expand(-1, -1, 3)
    points = 1.8 * torch.rand(1, num, 3) - 0.9
    return {
        "ray_t": t, "ray_edges": edges, "ray_origins": 0.5 * outward - 1.5 * directions,
        "ray_directions": directions, "ray_rgba": torch.cat([grey, torch.ones(1, num, 1)], dim=-1),
        "ray_background": torch.rand(1, num, 3), "surface_points": 0.5 * outward,
        "surface_normals": outward, "surface_rgb": torch.full((1, num, 3), 0.4), "sdf_points": points,
        "sdf": points.norm(dim=-1) - 0.5, "sdf_at_most": points.norm(dim=-1) - 0.5,
    }  # fmt: skip


def test_a_fitted_field_shows_a_highlight_that_depends_on_the_direction() -> None:
    """From a latent through projection, losses and renders; the texture, a mesh's colour, stays grey.

    A field without directions is no contrast: its soft shell can show other colours at other depths, which
    imitate a part of the highlight. So the direction's own share is asked for at one and the same point.
    """
    torch.manual_seed(0)
    trunk = {"width": 32, "num_layers": 2}
    field = FieldConfig.model_validate({"geometry": trunk, "color": trunk, "directional": True})
    projection = ProjectionConfig(num_tokens=8, channels=4, rank=16)
    decoder, latent = Decoder(DecoderConfig(projection=projection, field=field)), torch.rand(1, 8, 4)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(150):
        weights, batch = decoder.weights(latent), rays_at_a_shiny_ball(128)
        parts = ray_losses(decoder, weights, batch, CONFIG) | point_losses(decoder, weights, batch, CONFIG)
        optimizer.zero_grad()
        total_loss(parts, CONFIG).backward()
        optimizer.step()
    weights = [matrix.detach() for matrix in decoder.weights(latent)]
    top = torch.tensor([0.0, 0.0, 0.5])
    eyes = torch.tensor([[2.0, 0.0, 2.5], [-2.0, 0.0, 2.5]])
    lens = intrinsics(0.7, 9, 9).expand(1, 2, 3, 3)
    poses = look_at(eyes, top.expand(2, 3))[None]
    lit, dark = decoder.render(weights, poses, lens, 9, 9).rgb[0, :, 4, 4].mean(dim=-1).tolist()
    toward = torch.nn.functional.normalize(top - eyes, dim=-1)
    own = decoder.color(weights, top.expand(1, 2, 3), toward[None]).rgb[0].mean(dim=-1)
    assert (lit, dark) == pytest.approx((0.4 + 0.4 * 0.5**0.5, 0.4), abs=0.04)
    assert own[0] - own[1] > 0.2
    assert decoder.texture(weights, top[None]).mean() == pytest.approx(0.4, abs=0.05)
