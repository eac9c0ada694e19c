"""The view model's trainer through its command line: batches, what it learns, exact resume, files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prior import train_views
from prior.train_views import main, make_model
from prior.views import ViewTask, ViewTrainConfig, mirrored, read_pictures
from shapeloom import training_loop
from shapeloom.config import UserError, load_config
from shapeloom.rendering.cameras import Cameras
from shapeloom.shards import AssetShards
from shapeloom.view_diffusion import References, load_view_model
from shapeloom.view_network import azimuths

SIZES = (
    "network={size: 16, channels: [8, 16], head_width: 8, context_width: 16, reference_depth: 1, "
    "volume: 4, volume_width: 4}"
)
TRAIN = (
    "train={steps: 6, batch_size: 4, warmup_steps: 2, precision: fp32, log_every: 1, checkpoint_every: 2, "
    "picture_every: 6}"
)


def config(data: Path, *settings: str) -> ViewTrainConfig:
    return load_config(ViewTrainConfig, None, [f"data={data}", SIZES, TRAIN, *settings])


def task_of(data: Path, *settings: str) -> ViewTask:
    found, shards = config(data, *settings), AssetShards(data, "train")
    return ViewTask(make_model(found, shards, None, None), found, shards, AssetShards(data, "val"))


def test_every_ordered_pair_of_stored_views_is_drawn(ball_dataset: Path) -> None:
    task = task_of(ball_dataset, "views=1", "mixture.max_references=1", "mirror=false")
    shards, pairs = AssetShards(ball_dataset, "train"), set()
    poses = shards.read(0, views=range(4)).cam_to_world
    # Frames are turned about the vertical, so heights tell views apart.
    heights = poses[:, 2, 3]
    for number in range(200):
        drawn = task._draw(shards, 0, number)
        views = [
            int(np.abs(heights - float(pose[0, 2, 3])).argmin())
            for pose in (drawn["cam_to_world"], drawn["reference_pose"])
        ]
        pairs.add(tuple(views))
    assert pairs == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_conditions_come_in_the_shares_that_the_config_says(ball_dataset: Path) -> None:
    task = task_of(ball_dataset, "mixture={no_condition: 0.2, text_only: 0, text_and_references: 0}")
    batch = task.batch(range(400))
    shown = batch["has_reference"].any(1).float().mean()
    assert abs(float(shown) - 0.8) < 0.07  # three deviations of 400 draws
    first = azimuths(batch["reference_pose"])[:, 0][batch["has_reference"].any(1)]
    assert first.abs().max() < 1e-5  # azimuths count from the first reference
    assert not batch["has_text"].any()


@pytest.mark.parametrize(("mirror", "share"), [("true", 0.5), ("false", 0.0)])
def test_half_of_the_samples_are_mirrored(ball_dataset: Path, mirror: str, share: float) -> None:
    settings = ("views=1", "mixture={no_condition: 0, text_only: 0, text_and_references: 0}")
    task = task_of(ball_dataset, *settings, "mixture.max_references=1", f"mirror={mirror}")
    shards = AssetShards(ball_dataset, "train")
    poses = torch.from_numpy(shards.read(0, views=range(4)).cam_to_world)
    turned = []
    for number in range(100):
        drawn = task._draw(shards, 0, number)
        # Heights tell views apart; seen from the first one's azimuth, mirroring negates the other's.
        view, reference = (
            int((poses[:, 2, 3] - drawn[name][0, 2, 3]).abs().argmin())
            for name in ("cam_to_world", "reference_pose")
        )
        apart = azimuths(poses[view : view + 1]) - azimuths(poses[reference : reference + 1])
        turned.append(float(torch.sin(apart) * torch.sin(azimuths(drawn["cam_to_world"]))) < 0)
    assert abs(np.mean(turned) - share) <= 4 * 0.05 * (share > 0)  # deviations of a share of 100


def test_held_out_losses_do_not_depend_on_how_many_are_measured_at_once(ball_dataset: Path) -> None:
    measured = [
        (task := task_of(ball_dataset, f"train.batch_size={size}")).measure(task.model) for size in (1, 4)
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)
    assert all(0 < loss < np.inf for loss in measured[0].values())


def test_a_mirrored_asset_s_views_are_those_of_its_mirror_image() -> None:
    """A coloured corner of the world projects to where its mirror image's pixel is."""
    from shapeloom.rendering.cameras import intrinsics, ring

    poses, matrix = ring(3, distance=4.0), intrinsics(0.7, 16, 16).expand(3, 3, 3)
    matrix = matrix + torch.tensor([[0, 0, 1.5], [0, 0, 0], [0, 0, 0]])
    point = torch.tensor([0.3, 0.5, -0.2])

    def pixel(pose: torch.Tensor, k: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        local = (where - pose[:3, 3]) @ pose[:3, :3]
        return (k @ local)[:2] / local[2]

    _, moved, matrices = mirrored(torch.zeros(3, 4, 16, 16), poses, matrix)
    for view in range(3):
        x, y = pixel(poses[view], matrix[view], point)
        mirror = pixel(moved[view], matrices[view], point * torch.tensor([1.0, -1, 1]))
        torch.testing.assert_close(mirror, torch.stack([16 - x, y]), atol=1e-4, rtol=0)
    assert torch.linalg.det(moved[:, :3, :3]).min() > 0.99


def test_an_empty_picture_is_no_reference(ball_samples: Any, tmp_path: Path) -> None:
    from shapeloom.shards import finish_dataset, write_shard

    sample = ball_samples(0, split="train")
    for view in range(4):
        sample[f"rgba_{view:03d}.png"] = np.zeros((16, 16, 4), np.uint8)
    write_shard(tmp_path / "shards" / "000000.tar", [sample, ball_samples(1, split="val")])
    finish_dataset(tmp_path, kind="assets", facts={"views": 4, "resolution": 16})
    task = task_of(tmp_path)
    assert not task.batch(range(20))["has_reference"].any()


def test_a_killed_training_goes_on_bit_for_bit(
    ball_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--set", f"data={ball_dataset}", SIZES, TRAIN]
    main(["--out", str(tmp_path / "whole"), *given])
    for stop in (3, 4, 6):  # the steps at which three processes die, two of them between checkpoints
        real = training_loop.Loop._step

        def step(self: Any, number: int, batches: Any, stop: int = stop, real: Any = real) -> float:
            if number + 1 == stop:
                raise KeyboardInterrupt
            return real(self, number, batches)

        monkeypatch.setattr(training_loop.Loop, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            main(["--out", str(tmp_path / "killed"), *given])
        monkeypatch.undo()
    main(["--out", str(tmp_path / "killed"), *given])
    for name in (
        "weights.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "conditioner/model.safetensors",
    ):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    losses = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "killed")
    ]
    kept = [[(each["step"], each["train/loss"]) for each in run] for run in losses]
    assert kept[0] == kept[1]


def test_it_learns_to_tell_balls_of_two_colours_and_sizes(ball_dataset: Path, tmp_path: Path) -> None:
    settings = [
        "network={size: 16, patch: 2, channels: [16, 32], attention: 1, head_width: 8, context_width: 32, "
        "reference_depth: 1, volume: 8, volume_width: 8}",
        "train={steps: 60, batch_size: 8, warmup_steps: 10, learning_rate: 0.004, precision: fp32, "
        "ema_decay: 0.9, picture_every: 60}",
        "views=1", "diffusion={target: x0, times_mean: 1, times_std: 1}",
    ]  # fmt: skip
    main(["--out", str(tmp_path / "views"), "--set", f"data={ball_dataset}", *settings])
    model, shards = load_view_model(tmp_path / "views"), AssetShards(ball_dataset, "train")
    errors = []
    for index in range(4):
        pictures, poses, matrices = read_pictures(shards, index, [0, 2], size=16)
        first, second = (Cameras(poses[None, v : v + 1], matrices[None, v : v + 1], 16, 16) for v in (0, 1))
        condition = model.condition(cameras=second, references=References(pictures[None, :1], first))
        made = model.sample(condition, seeds=torch.tensor([index]), steps=6)
        blank = torch.tensor([1.0, 1, 1, -1]).view(1, 4, 1, 1).expand_as(made)
        errors.append([float((each - pictures[1]).square().mean()) for each in (made, blank)])
    ours, white = np.mean(errors, axis=0)
    assert ours < 0.3 * white


def test_what_it_cannot_train_on_is_refused(ball_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need 5 views an asset, but the data holds 4"):
        task_of(ball_dataset, "views=3")
    with pytest.raises(UserError, match="doesn't divide the data's resolution of 16"):
        task_of(ball_dataset, "network.size=32").batch([0])
    with pytest.raises(UserError, match="no VAE in diffusers' layout"):
        train_views.main(["--out", str(tmp_path / "v"), "--set", f"data={ball_dataset}", f"vae={tmp_path}"])


def test_a_vae_s_latents_are_diffused_and_come_back_as_pictures(ball_dataset: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4, sample_size=16,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    sizes = "size: 16, patch: 1, channels: [8, 16], head_width: 8, context_width: 16, reference_depth: 1"
    sizes += ", volume: 4, volume_width: 4"
    given = [f"data={ball_dataset}", f"vae={tmp_path / 'vae'}", TRAIN, f"network={{{sizes}}}"]
    main(["--out", str(tmp_path / "views"), "--set", *given])
    with pytest.raises(UserError, match="diffuses a VAE's latents: name its folder"):
        load_view_model(tmp_path / "views")
    model = load_view_model(tmp_path / "views", vae=tmp_path / "vae")
    assert model.shape == (8, 8, 8)
    pictures, poses, matrices = read_pictures(AssetShards(ball_dataset, "val"), 0, [0, 1], size=16)
    condition = model.condition(cameras=Cameras(poses[None], matrices[None], 16, 16))
    assert model.sample(condition, seeds=torch.arange(2), steps=2).shape == (2, 4, 16, 16)
    assert model.encode(pictures).shape == (2, 8, 8, 8)
