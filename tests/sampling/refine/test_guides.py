"""2-D models behind the one seam: diffusers folders of every known kind, and our own view model."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from PIL import Image

from sampling.refine import text_to_image
from sampling.refine.config import CameraConfig, RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.guides import Guide
from sampling.refine.refiner import Refiner
from sampling.refine.rendering import random_views
from sampling.refine.text_to_image import TextToImage, load_text_encoder, load_text_to_image
from sampling.refine.words import negative_sides, side_of
from shapeloom.config import UserError, load_config
from shapeloom.diffusion.distillation import sds
from shapeloom.noise import normal

BATCH, SIDE = 2, 8


def views(particles: int = 1, each: int = BATCH, size: int = 16):
    generator = torch.Generator().manual_seed(0)
    return random_views(CameraConfig(), particles, each, size=size, generator=generator)


def letters(prompts):
    """A text encoder: two tokens of a prompt's letters."""
    codes = torch.tensor([float(sum(map(ord, prompt))) for prompt in prompts])
    return torch.sin(codes[:, None, None] * torch.arange(1.0, 33).reshape(1, 2, 16))


def make_unet(in_channels: int, *, out_channels: int | None = None):
    return UNet2DConditionModel(
        sample_size=SIDE, in_channels=in_channels, out_channels=out_channels or in_channels,
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def make_vae():
    return AutoencoderKL(
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def make_scheduler(kind: str = "epsilon", schedule: str = "scaled_linear"):
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=schedule, prediction_type=kind, clip_sample=False
    )


@pytest.fixture(params=["latent-epsilon", "latent-v_prediction", "pixel-epsilon"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    """A random model in diffusers' layout: Stable Diffusion 1's, 2.1's and IF's kinds."""
    space, prediction = kind.split("-")
    torch.manual_seed(0)
    # IF's network says a variance too, and its schedule is a cosine.
    unet = make_unet(4) if space == "latent" else make_unet(3, out_channels=6)
    unet.save_pretrained(tmp_path / "unet")
    if space == "latent":
        make_vae().save_pretrained(tmp_path / "vae")
    schedule = "scaled_linear" if space == "latent" else "squaredcos_cap_v2"
    make_scheduler(prediction, schedule).save_pretrained(tmp_path / "scheduler")
    return tmp_path


@pytest.fixture
def model(folder, monkeypatch) -> TextToImage:
    monkeypatch.setattr(text_to_image, "load_text_encoder", lambda folder, device: letters)
    return load_text_to_image(folder)


def test_a_folder_is_what_its_files_say(model, kind):
    assert isinstance(model, Guide)
    assert (model.vae is not None) == kind.startswith("latent")
    assert model.target == {"epsilon": "eps", "v_prediction": "v"}[kind.split("-")[1]]
    assert model.size == (16 if model.vae is not None else 8)
    assert len(model.digest) == 64


def test_the_seam_says_what_diffusers_own_step_says(model, kind):
    """x_0 of a noisy picture, from the very network, as the scheduler of the folder computes it."""
    theirs = DDPMScheduler.from_config(
        make_scheduler(kind.split("-")[1], "scaled_linear" if model.vae else "squaredcos_cap_v2").config
    )
    x = torch.randn(BATCH, 4 if model.vae else 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    steps = torch.tensor([250, 700])
    sigma = model.sigma(steps / 1000)
    condition = model.condition(["a chair", "a mug"], views())
    found = model.denoise(x + sigma[:, None, None, None] * eps, sigma, condition)
    noisy = theirs.add_noise(x, eps, steps)
    with torch.no_grad():
        answer = model.network(noisy, steps, condition.text).sample[:, : x.shape[1]]
    for row, step in enumerate(steps.tolist()):
        expected = theirs.step(answer[row], step, noisy[row]).pred_original_sample
        torch.testing.assert_close(found[row], expected, atol=2e-4, rtol=1e-3)


def test_sds_is_the_weighted_difference_of_the_networks_noise_and_the_one_added():
    torch.manual_seed(0)
    scheduler = make_scheduler()
    model = TextToImage(make_unet(3), None, scheduler, letters)
    x, eps = torch.rand(2, BATCH, 3, SIDE, SIDE).unbind()
    steps = torch.tensor([300, 600])
    condition = model.condition(["a chair"] * BATCH, views())
    found = sds(model.denoise, x, model.sigma(steps / 1000), eps, condition)
    with torch.no_grad():
        said = model.network(scheduler.add_noise(x, eps, steps), steps, condition.text).sample
    weight = (1 - scheduler.alphas_cumprod[steps])[:, None, None, None]
    torch.testing.assert_close(found, weight * (said - eps), atol=1e-4, rtol=1e-3)


def test_vsd_starts_from_the_pretrained_network_and_leaves_it(model, balls):
    settings = load_config(
        RefineConfig, None,
        ["guide=views", "estimator.kind=vsd", "views=2", "samples.coarse=8", "samples.fine=4",
         "estimator.clip=1"],
    )  # fmt: skip
    # The particles' network starts as the unconditional answer to a view-independent prompt.
    x = torch.rand(BATCH, 4 if model.vae else 3, SIDE, SIDE)
    sigma = torch.tensor([0.5, 2.0])
    plain = model.denoise(x, sigma, model.condition(["a ball"] * BATCH, views()))
    refiner = Refiner(balls.pipe, balls.shapes[:1], Distiller(model, "a ball", settings), settings)
    generator = torch.Generator().manual_seed(0)
    own = model.own_condition(["a ball"] * BATCH, views(), generator)
    assert own.camera is not None and own.camera.shape == (BATCH, 16)
    torch.testing.assert_close(model.own_denoise(x, sigma, own), plain)
    facts = refiner.step(0)
    assert facts["own_loss"] > 0 and facts["gradient"] > 0
    assert refiner.distiller.own is not None
    with torch.no_grad():
        assert torch.equal(
            refiner.distiller.own.guide_denoise(x, sigma, model.condition(["a ball"] * BATCH, views())), plain
        )
        assert not torch.equal(model.own_denoise(x, sigma, own), plain)


def test_each_prompt_is_embedded_once(model):
    asked: list[str] = []
    model._encode_text = lambda prompts: (asked.extend(prompts), letters(prompts))[1]
    for _ in range(3):
        model.condition(["a chair", "a chair"], views())
        model.null(views())
    assert asked == ["a chair", ""]


def test_a_picture_drawn_in_one_step_is_what_is_expected_of_noise_alone(model, kind):
    drawn = model.draw("a chair", seed=5, steps=1, scale=1.0)
    assert drawn.shape == (model.size, model.size, 3)
    channels = 3 if model.vae is None else 4
    noise = normal(torch.tensor([5]), (channels, SIDE, SIDE), stream="drawing")
    sigma = model.sigma(torch.ones(1))
    x = model.denoise(noise * sigma, sigma, model.condition(["a chair"], views()))
    with torch.no_grad():
        pixels = x if model.vae is None else model.vae.decode(x / model.vae.config.scaling_factor).sample
    expected = ((pixels[0].movedim(0, -1) + 1) / 2).clamp(0, 1) * 255
    assert np.abs(drawn - expected.numpy()).max() <= 0.51
    once, again, other = (model.draw("a chair", seed=seed, steps=3, scale=7.5) for seed in (5, 5, 6))
    assert (once == again).all() and (once != other).any()


def test_what_is_not_known_is_said(tmp_path, folder):
    with pytest.raises(UserError, match=r"no unet/config\.json"):
        load_text_to_image(tmp_path / "nowhere")
    with pytest.raises(UserError, match="predicts 'sample'"):
        TextToImage(make_unet(3), None, make_scheduler("sample"), letters)
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text(json.dumps({"architectures": ["Other"]}))
    with pytest.raises(UserError, match=r"transformers|is a 'Other'"):
        load_text_to_image(folder)


def test_a_folders_own_text_encoder_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(f"{c}</w>" for c in "abcdefgh")]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, eos_token_id=1, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    encoder = transformers.CLIPTextModel(config).eval()
    encoder.save_pretrained(tmp_path / "text_encoder")
    encode = load_text_encoder(tmp_path, "cpu")
    found = encode(["bad", "face"])
    assert found.shape == (2, 8, 16)
    ids = tokenizer("bad", padding="max_length", max_length=8, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(found[:1], encoder(ids)[0])


def test_the_camera_embedding_is_of_the_networks_own_width(model):
    model.own_parts()
    assert isinstance(model._camera, TimestepEmbedding)
    assert model._camera.linear_2.out_features == 8 * 4  # of the first block's channels, as the time's


def test_sides_have_the_names_of_where_they_are_seen_from():
    assert [side_of(float(azimuth), 10.0) for azimuth in (0, 30, -30, 90, 270, 180, 500)] == [
        "front", "front", "front", "side", "side", "back", "back",
    ]  # fmt: skip
    assert side_of(0.0, 75.0) == "overhead"
    # From the very front or back, the own side has no weight against itself.
    assert dict(negative_sides(0.0, 0.0))["front"] == pytest.approx(0, abs=0.002)
    assert dict(negative_sides(90.0, 0.0))["side"] == pytest.approx(0, abs=0.001)
    assert all(weight <= 0.002 for a in range(0, 360, 10) for _, weight in negative_sides(float(a), 0.0))


@pytest.mark.parametrize("estimator", ["sds", "vsd", "ism"])
def test_our_own_view_model_is_a_guide(balls, estimator):
    from sampling.refine.view_model import ViewGuide
    from shapeloom.view_diffusion import random_view_model

    guide = ViewGuide(random_view_model(size=16, clip=balls.pipe.clip))
    assert isinstance(guide, Guide)
    settings = load_config(
        RefineConfig, None,
        ["guide=views", f"estimator.kind={estimator}", "views=2", "particles=2", "samples.coarse=8",
         "samples.fine=4", "size=8"],
    )  # fmt: skip
    refiner = Refiner(balls.pipe, balls.shapes[:2], Distiller(guide, "a ball", settings), settings)
    before = refiner.subject.leaves[0].detach().clone()
    facts = refiner.step(0)
    assert facts["gradient"] > 0
    assert not torch.equal(refiner.subject.leaves[0].detach(), before)


def test_the_view_model_sees_colours_on_white_whatever_is_behind():
    from sampling.refine.view_model import ViewGuide
    from shapeloom.view_diffusion import random_view_model, straight_rgba

    guide = ViewGuide(random_view_model(size=16))
    pictures = torch.zeros(1, 4, 16, 16)
    pictures[:, 0, :8], pictures[:, 3, :8] = 0.5, 0.5  # the upper half: pure red, half transparent
    seen = guide.encode(pictures, torch.zeros(1, 3))
    assert seen[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert seen[0, :, 15, 0].tolist() == [1.0, 1.0, 1.0, -1.0]
    assert straight_rgba(seen)[0, 0, 0].tolist()[0] == 255


def test_the_view_model_follows_a_picture_beside_the_prompt(balls, tmp_path):
    from sampling.refine.view_model import ViewGuide, picture_of
    from shapeloom.view_diffusion import random_view_model

    picture = np.full((40, 40, 3), 255, np.uint8)
    picture[10:30, 10:30] = (200, 30, 30)
    Image.fromarray(picture).save(tmp_path / "red.png")
    model = random_view_model(size=16, clip=balls.pipe.clip)
    seen = picture_of(tmp_path / "red.png", model, elevation=20.0)
    assert seen.pictures.shape == (1, 1, 4, 16, 16)
    guides = ViewGuide(model), ViewGuide(model, seen)
    cameras = views(particles=2, each=2)
    plain, shown = (guide.condition(["a ball"] * 4, cameras) for guide in guides)
    assert len(plain) == len(shown) == 4
    assert not torch.equal(plain.vector, shown.vector)
    # Both guides start from the same null condition.
    assert torch.equal(*(guide.null(cameras).vector for guide in guides))
