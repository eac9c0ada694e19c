"""Renders of meshes as a loss: which way it pulls, and that processes with nothing to draw stay in step."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from encoder.mesh_losses import MeshLossConfig, _render, mesh_loss
from encoder.train import EncoderTask, EncoderTrainConfig, main
from shapeloom.config import UserError, load_config
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.fields.heads import Color, Geometry
from shapeloom.rendering.cameras import intrinsics, look_at, ring
from shapeloom.shards import AssetShards

SMOKE = Path("configs/encoder/smoke.yaml")
CONFIG = MeshLossConfig(from_step=0, every=2, resolution=24)


class Balls(Decoder):
    """Grey balls; an asset's weights are its radius, below 0 for none."""

    def __init__(self) -> None:
        super().__init__(DecoderConfig())
        self.grey = nn.Parameter(torch.tensor(0.5))

    def geometry(self, weights, points):
        sdf = points.norm(dim=-1) - weights[0][:, 0]
        return Geometry(density=sdf, sdf=sdf)

    def color(self, weights, points, directions=None):
        grey = self.grey.expand_as(points)
        return Color(rgb=grey, texture=grey)


def batch(num: int, size: int = 24) -> dict[str, torch.Tensor]:
    """Views of grey balls of radius 0.6, every second one drawn."""
    poses, matrix = ring(2, distance=3.0), intrinsics(0.7, size, size)
    focal, centre = float(matrix[0, 0]), torch.arange(size) + 0.5 - size / 2
    disc = centre[:, None] ** 2 + centre**2 < (focal * 0.6) ** 2 / (3.0**2 - 0.6**2)
    rgba = torch.cat([torch.full((size, size, 3), 0.5), disc[..., None].float()], dim=-1)
    return {
        "mesh_drawn": torch.arange(num) % 2 == 0,
        "mesh_rgba": rgba.expand(num, 2, size, size, 4),
        "mesh_cam_to_world": poses.expand(num, 2, 4, 4),
        "mesh_intrinsics": matrix.expand(num, 2, 3, 3),
        "mesh_background": torch.full((num, 3), 0.9),
    }


def loss(radii: list[float]) -> tuple[torch.Tensor, torch.Tensor, Balls]:
    own, decoder = torch.tensor(radii)[:, None, None].requires_grad_(), Balls()
    return mesh_loss(decoder, [own], batch(len(radii)), CONFIG), own, decoder


@pytest.mark.parametrize(("radius", "sign"), [(0.5, -1), (0.7, 1)])
def test_silhouettes_pull_a_surface_to_the_views(radius: float, sign: int) -> None:
    value, radii, _ = loss([radius, 0.3])
    value.backward()
    assert radii.grad is not None
    assert radii.grad[0] * sign > 0
    assert radii.grad[1] == 0  # isn't drawn
    assert float(value.detach()) > 3 * float(loss([0.6, 0.3])[0].detach())


def test_pictures_of_a_solid_have_no_holes() -> None:
    """From all sides, so that every face shows; of eight cells a side, each over several pixels."""
    ways = torch.cat([torch.eye(3), -torch.eye(3)])
    poses = torch.cat([look_at(eye, torch.zeros(3))[None] for eye in 3 * ways])[None]
    seen = {name: value[:1] for name, value in batch(1).items()}
    seen |= {"mesh_cam_to_world": poses, "mesh_intrinsics": seen["mesh_intrinsics"][:, :1].expand(1, 6, 3, 3)}
    config = MeshLossConfig(from_step=0, resolution=8)
    alpha = _render(Balls(), [torch.full((1, 1, 1), 0.6)], seen, config)[0, ..., 3]
    y, x = (torch.arange(24) + 0.5 - 12).abs()[:, None], (torch.arange(24) + 0.5 - 12).abs()
    # The ball is 6.9 pixels in radius; of so few cells its silhouette lies up to a pixel within.
    assert (alpha[:, y**2 + x**2 < 5.5**2] > 0.999).all()


def test_empty_and_undrawn_meshes_have_a_loss_and_zero_gradients() -> None:
    value, radii, _ = loss([-1.0, 0.5])
    value.backward()
    assert value > 0
    torch.testing.assert_close(radii.grad, torch.zeros(2, 1, 1))
    undrawn = batch(2) | {"mesh_drawn": torch.zeros(2, dtype=torch.bool)}
    radii = torch.full((2, 1, 1), 0.5, requires_grad=True)
    mesh_loss(Balls(), [radii], undrawn, CONFIG).backward()
    torch.testing.assert_close(radii.grad, torch.zeros(2, 1, 1))


def test_the_mean_of_two_processes_is_the_loss_of_one() -> None:
    radii = [0.5, 0.1, -1.0, 0.1, 0.7, 0.1]
    whole, decoder = batch(6), Balls()
    own = torch.tensor(radii)[:, None, None].requires_grad_()
    expected = mesh_loss(decoder, [own], whole, CONFIG)
    slopes = torch.autograd.grad(expected, [own, decoder.grey])
    for shares in ([[0, 2, 4], [1, 3, 5]], [[0, 1, 4], [2, 3, 5]]):  # none drawn in one, an empty mesh alone
        parts = [
            mesh_loss(decoder, [own[rows]], {k: v[rows] for k, v in whole.items()}, CONFIG) for rows in shares
        ]
        mean = sum(parts) / 2
        torch.testing.assert_close(mean, expected)
        found = torch.autograd.grad(mean, [own, decoder.grey])
        torch.testing.assert_close(found, slopes, rtol=1e-4, atol=1e-7)


def task(data: Path, *settings: str) -> EncoderTask:
    config = load_config(EncoderTrainConfig, SMOKE, [f"data={data}", *settings])
    shards = AssetShards(config.data, split="train")
    return EncoderTask(config, shards, shards)


def test_the_phase_begins_at_its_step_and_every_parameter_has_a_gradient(ball_dataset: Path) -> None:
    trained = task(ball_dataset, "meshes.from_step=3", "meshes.every=2", "losses.rays_from=0")
    assert "mesh_rgba" not in trained.batch(range(8, 12))  # steps have 4 samples
    # A new field is empty; this one is not.
    for bias in (0.3, -0.2):
        with torch.no_grad():
            trained.model.decoder.field.geometry_head.linear.bias[1] = bias
        value, parts = trained.loss(trained.model, trained.batch(range(12, 16)))
        value.backward()
        assert parts["mesh"].isfinite()
        for name, weight in trained.model.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name


def test_in_bfloat16_the_loss_is_float32s_to_its_precision(ball_dataset: Path) -> None:
    trained = task(ball_dataset, "meshes.from_step=0", "meshes.every=1")
    with torch.no_grad():
        trained.model.decoder.field.geometry_head.linear.bias[1] = -0.2
    drawn, found = trained.batch(range(4)), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value, parts = trained.loss(trained.model, drawn)
        value.backward()
        found.append(float(parts["mesh"].detach()))
    # Eight bits of mantissa, some dozens of roundings deep.
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_training_starts_from_another_runs_weights(ball_dataset: Path, tmp_path: Path) -> None:
    data = [f"data={ball_dataset}", "train.precision=fp32", "train.steps=2"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    main(["--config", str(SMOKE), "--out", first, "--set", *data])
    more = [*data, f"start={first}", "meshes.from_step=1", "meshes.every=1"]
    main(["--config", str(SMOKE), "--out", second, "--set", *more])
    digests = [yaml.safe_load((tmp_path / n / "meta.json").read_text()) for n in ("first", "second")]
    assert digests[1]["inputs"]["start"] == digests[0]["weights_digest"] != digests[1]["weights_digest"]
    with pytest.raises(UserError, match="other sizes than this config's `encoder`"):
        main(["--config", str(SMOKE), "--out", str(tmp_path / "x"), "--set", *more, "encoder.width=16"])
