"""The view model's network and seam: cameras as rays, frames, joint views, files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapeloom.clip import TextEmbedding
from shapeloom.config import UserError
from shapeloom.diffusion.objectives import DiffusionConfig, sample_times
from shapeloom.rendering.cameras import Cameras, intrinsics, ring, spherical
from shapeloom.storage import file_digest
from shapeloom.view_diffusion import (
    CONDITIONER,
    FILE,
    UNET,
    References,
    ViewModel,
    load_view_model,
    random_view_model,
    read_layout,
    save_layout,
    straight_rgba,
    to_picture,
    trained_noise,
)
from shapeloom.view_network import JointAttention, ViewCondition, ViewNetworkConfig, azimuths, plucker, turned

SIZE = 16


def cameras(batch: int, views: int, *, start: float = 0.0) -> Cameras:
    azimuth = start + torch.arange(views) * 0.7
    pose = spherical(azimuth, torch.full((views,), 0.3), 4.0)
    return Cameras(
        pose.expand(batch, -1, -1, -1), intrinsics(0.7, SIZE, SIZE).expand(batch, views, 3, 3), SIZE, SIZE
    )


def references(batch: int, num: int, *, start: float = 0.0, seed: int = 0) -> References:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(batch, num, 4, SIZE, SIZE, generator=generator) * 2 - 1
    return References(pictures, cameras(batch, num, start=start))


def caption(batch: int, seed: int = 0) -> TextEmbedding:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, 5, 16, generator=generator)
    pooled = torch.nn.functional.normalize(tokens[:, 0], dim=-1)
    return TextEmbedding(pooled, tokens, torch.ones(batch, 5, dtype=torch.bool))


@pytest.fixture(scope="module")
def model() -> ViewModel:
    return random_view_model(size=SIZE)


def noisy(rows: int) -> torch.Tensor:
    return torch.randn(rows, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_turning_everything_about_the_vertical_changes_nothing_with_a_reference(model: ViewModel) -> None:
    x, sigma = noisy(4), torch.full((4,), 0.7)
    answers = [
        model.denoise(
            x,
            sigma,
            model.condition(cameras=cameras(2, 2, start=0.5 + turn), references=references(2, 2, start=turn)),
        )
        for turn in (0.0, 1.3)
    ]
    # Poses are turned in float32: the angles differ by some 1e-7.
    torch.testing.assert_close(answers[0], answers[1], atol=1e-4, rtol=0)


def test_without_a_reference_azimuths_are_the_asset_s_own(model: ViewModel) -> None:
    x, sigma = noisy(2), torch.full((2,), 0.7)
    front, side = (
        model.denoise(x, sigma, model.condition(caption(2), cameras=cameras(2, 1, start=turn)))
        for turn in (0.0, 1.3)
    )
    assert (front - side).abs().max() > 1e-3


@pytest.mark.parametrize("change", ["fov", "distance", "roll"])
def test_all_of_a_camera_is_told(model: ViewModel, change: str) -> None:
    plain = cameras(1, 1)
    pose, matrix = plain.cam_to_world.clone(), plain.intrinsics.clone()
    if change == "fov":
        matrix[..., :2, :2] *= 1.3
    elif change == "distance":
        pose[..., :3, 3] *= 1.2
    else:
        turn = torch.eye(4)
        turn[:2, :2] = torch.tensor([[0.9, -0.43589], [0.43589, 0.9]])
        pose = pose @ turn
    x, sigma, shown = noisy(1), torch.ones(1), references(1, 1)
    first, second = (
        model.denoise(x, sigma, model.condition(cameras=each, references=shown))
        for each in (plain, Cameras(pose, matrix, SIZE, SIZE))
    )
    assert (first - second).abs().max() > 1e-3


def test_rays_pass_through_their_pixels_and_moments_say_how_far_from_the_origin() -> None:
    pose, matrix = ring(3, distance=4.0), intrinsics(0.7, 32, 32).expand(3, 3, 3)
    rays = plucker(pose, matrix, size=32, cells=8)
    direction, moment = rays[:, :3], rays[:, 3:]
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(3, 8, 8))
    assert (direction * moment).sum(1).abs().max() < 1e-5
    # The four cells around the middle pass the origin at half a cell's diagonal, 4 units away.
    half = 4 * math.tan(0.35) / 8
    expected = 4 * math.sin(math.atan(half * math.sqrt(2) / 4))
    torch.testing.assert_close(moment[:, :, 3:5, 3:5].norm(dim=1), torch.full((3, 2, 2), expected))


def test_turned_poses_count_azimuths_from_the_new_zero() -> None:
    pose = ring(4, distance=3.0)[None]
    moved = azimuths(turned(pose, azimuths(pose[:, 1])))
    difference = torch.remainder(moved - (azimuths(pose) - azimuths(pose[:, 1])) + math.pi, 2 * math.pi)
    torch.testing.assert_close(difference, torch.full_like(difference, math.pi))


def test_views_of_one_object_hear_of_each_other_and_of_no_other_object(model: ViewModel) -> None:
    condition = model.condition(cameras=cameras(2, 3), references=references(2, 1))
    x, sigma = noisy(6), torch.ones(6)
    before = model.denoise(x, sigma, condition)
    x[0] += 1
    change = (model.denoise(x, sigma, condition) - before).abs().flatten(1).amax(1)
    assert (change[:3] > 1e-5).all()
    assert (change[3:] == 0).all()
    alone = [model.denoise(each, sigma, condition.alone()) for each in (x, noisy(6))]
    assert (alone[0] - alone[1])[1:].abs().max() == 0


def test_each_row_is_told_of_its_own_references_and_caption(model: ViewModel) -> None:
    both = references(2, 2)
    first = replace(both, pictures=both.pictures[:1], cameras=cameras(1, 2))
    x, sigma = noisy(2), torch.ones(2)
    text = caption(2)
    batched = model.denoise(x, sigma, model.condition(text, cameras=cameras(2, 1), references=both))
    own = TextEmbedding(text.pooled[:1], text.tokens[:1], text.mask[:1])
    single = model.denoise(x[:1], sigma[:1], model.condition(own, cameras=cameras(1, 1), references=first))
    torch.testing.assert_close(batched[:1], single, atol=1e-5, rtol=1e-5)  # sums of other lengths


def test_a_reference_that_is_not_there_says_nothing(model: ViewModel) -> None:
    shown = references(1, 2)
    there = torch.tensor([[True, False]])
    x, sigma, views = noisy(1), torch.ones(1), cameras(1, 1)
    other = replace(
        shown, pictures=torch.cat([shown.pictures[:, :1], -shown.pictures[:, 1:]], dim=1), there=there
    )
    first, second = (
        model.denoise(x, sigma, model.condition(cameras=views, references=each))
        for each in (replace(shown, there=there), other)
    )
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    assert (
        model.denoise(x, sigma, model.condition(cameras=views, references=shown)) - first
    ).abs().max() > 1e-4


def test_cross_attention_is_over_several_tokens_which_are_not_weighed_alike(model: ViewModel) -> None:
    """Over one token it would be a constant in the query (arXiv 2411.15706 on Zero-1-to-3)."""
    seen: list[torch.Tensor] = []
    plain = JointAttention()

    def watched(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, views=1):
        if encoder_hidden_states is not None:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            seen.append(attn.get_attention_scores(query, key, None))
        return plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, views)

    class Watching(JointAttention):
        def __call__(
            self,
            attn,
            hidden_states,
            encoder_hidden_states=None,
            attention_mask=None,
            temb=None,
            views: int = 1,
        ):
            return watched(attn, hidden_states, encoder_hidden_states, attention_mask, temb, views)

    try:
        model.network.unet.set_attn_processor(Watching())
        model.denoise(
            noisy(1), torch.ones(1), model.condition(cameras=cameras(1, 1), references=references(1, 1))
        )
    finally:
        model.network.unet.set_attn_processor(JointAttention())
    assert seen and all(weights.shape[-1] >= 5 for weights in seen)  # the null token and four patches
    assert max(float(weights.std(dim=1).max()) for weights in seen) > 1e-4


def test_samples_lie_in_range_and_do_not_depend_on_who_else_is_made(model: ViewModel) -> None:
    condition = model.condition(caption(2), cameras=cameras(2, 1))
    both = model.sample(condition, seeds=torch.tensor([3, 4]), steps=3, scale=2.0)
    assert both.abs().max() <= 1
    text = caption(2)
    own = TextEmbedding(text.pooled[1:], text.tokens[1:], text.mask[1:])
    single = model.sample(
        model.condition(own, cameras=cameras(1, 1)), seeds=torch.tensor([4]), steps=3, scale=2.0
    )
    torch.testing.assert_close(both[1:], single, atol=1e-4, rtol=0)  # sums of other lengths, over steps


def test_shares_of_training_s_noise_levels_lie_below_what_is_told() -> None:
    normal = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.05, 0.5, 0.9])
    for config in (DiffusionConfig(times_mean=2.5, times_std=1.5), DiffusionConfig(times="uniform")):
        t = sample_times(normal, config.times, mean=config.times_mean, std=config.times_std)
        below = (t / (1 - t) < trained_noise(config, shares)[:, None]).float().mean(dim=1)
        torch.testing.assert_close(below, shares, atol=0.02, rtol=0)


def test_sampling_walks_no_noise_level_that_training_hardly_saw(
    model: ViewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = DiffusionConfig(target="x0", times_mean=2.5, times_std=1.5)
    low = math.exp(2.5 - 2.3263 * 1.5)  # rectified flow's t / (1 - t) is the noise level
    asked: list[float] = []
    denoise = model.denoise

    def seen(x: torch.Tensor, sigma: torch.Tensor, condition: ViewCondition) -> torch.Tensor:
        asked.append(float(sigma[0]))
        return denoise(x, sigma, condition)

    monkeypatch.setattr(model, "diffusion", trained)
    monkeypatch.setattr(model, "denoise", seen)
    condition = model.condition(cameras=cameras(1, 1), references=references(1, 1))
    model.sample(condition, seeds=torch.tensor([0]), steps=5)
    std = float(model.network.conditioner.std)
    assert (min(asked), max(asked)) == pytest.approx((low * std, 80 * std), rel=1e-4)


def test_gradients_reach_the_pictures(model: ViewModel) -> None:
    x = noisy(2).requires_grad_()
    model.denoise(
        x, torch.ones(2), model.condition(caption(1), cameras=cameras(2, 1))
    ).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    assert not any(p.requires_grad for p in model.network.parameters())


def test_pictures_come_back_with_straight_alpha() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 4), dtype=np.uint8)
    rgba[0, :2, :, 3] = 0
    back = straight_rgba(to_picture(rgba))
    assert (back[..., 3] == rgba[..., 3]).all()
    solid = rgba[..., 3] > 100
    # Colours are stored on white at float precision: half a level of rounding either way.
    assert np.abs(back[solid].astype(int) - rgba[solid].astype(int)).max() <= 1
    assert (back[rgba[..., 3] == 0] == 0).all()


def test_saved_in_diffusers_layout_it_comes_back_and_plain_diffusers_loads_its_unet(
    model: ViewModel, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel

    network = model.network
    save_layout(tmp_path, network.shapes, network.config, model.diffusion, network.state_dict())
    meta = {
        "stage": "views", "status": "done", "seconds": 1, "inputs": {"data": "d"},
        "layout_digests": {name: file_digest(tmp_path / name) for name in (UNET, CONDITIONER)},
    }  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    back = load_view_model(tmp_path)
    x, sigma = noisy(2), torch.ones(2)
    asked = {"cameras": cameras(1, 2), "references": references(1, 1)}
    first, second = (each.denoise(x, sigma, each.condition(**asked)) for each in (model, back))
    assert torch.equal(first, second)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", use_safetensors=True)
    assert sorted(unet.state_dict()) == sorted(network.unet.state_dict())
    told = model.condition(**asked).alone()
    cells = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    inputs = torch.cat([cells, told.maps], dim=1), torch.full((2,), 500.0), told.context
    kept = {"class_labels": told.vector, "encoder_attention_mask": told.mask}
    theirs, ours = (each(*inputs, **kept).sample for each in (unet, network.unet))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused_with_a_word(model: ViewModel, tmp_path: Path) -> None:
    wrong = Cameras(cameras(1, 1).cam_to_world, cameras(1, 1).intrinsics, 32, 32)
    with pytest.raises(ValueError, match="are 16 x 16, but the cameras are of 32"):
        model.condition(cameras=wrong)
    with pytest.raises(UserError, match="without its CLIP"):
        model.condition(["a chair"], cameras=cameras(1, 1))
    with pytest.raises(ValueError, match="expected 1 or 3 captions, got 2"):
        model.condition(caption(2), cameras=cameras(3, 1))
    with pytest.raises(ValueError, match="references must be"):
        model.condition(cameras=cameras(2, 1), references=references(1, 1))
    (tmp_path / FILE).write_text('{"shapes": {"channels": 0}, "network": {}, "diffusion": {}}')
    with pytest.raises(UserError, match="doesn't describe a view model"):
        read_layout(tmp_path)
    with pytest.raises(ValueError, match="size must be a multiple of 16"):
        ViewNetworkConfig(size=60)


def test_a_weight_file_that_was_changed_is_refused(model: ViewModel, tmp_path: Path) -> None:
    network = model.network
    save_layout(tmp_path, network.shapes, network.config, model.diffusion, network.state_dict())
    meta = {
        "stage": "views",
        "status": "done",
        "seconds": 1,
        "inputs": {},
        "layout_digests": {UNET: "0" * 64, CONDITIONER: ""},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="isn't the file that its run wrote"):
        load_view_model(tmp_path)
