"""Claims on shapes and the pipeline that makes them."""

import copy

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from prior.denoiser import Denoiser, NetworkConfig
from prior.description import Distilled
from prior.model import Prior
from sampling.guidance import GuidanceConfig
from sampling.mesh import MeshConfig
from sampling.pipeline import ShapePipeline, check_prompt
from sampling.shape import FOV, ShapeSample, render_shapes
from shapeloom.config import UserError
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.diffusion.samplers import SamplerName
from shapeloom.fields.heads import Color, Geometry
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.viewpoints import fitting_distance


@pytest.fixture
def shape(pipeline) -> ShapeSample:
    return ShapeSample(torch.zeros(4, 3), "a ball", 0, pipeline.decoder)


def test_a_shape_does_not_depend_on_its_batch(pipeline):
    prompts, seeds = ["a red chair", "a blue mug", "a car"], [5, 6, 5]
    together = pipeline(prompts, seeds=seeds, steps=4)
    for prompt, seed, shape in zip(prompts, seeds, together, strict=True):
        (alone,) = pipeline([prompt], seeds=[seed], steps=4)
        # Products of other batch sizes are summed in another order.
        torch.testing.assert_close(shape.latent, alone.latent, atol=1e-5, rtol=0)
        assert (shape.prompt, shape.seed) == (prompt, seed)


def test_prompt_seed_guidance_negative_prompt_and_picture_all_matter(pipeline):
    def latent(prompt="a red chair", seed=0, **options) -> torch.Tensor:
        return pipeline([prompt], seeds=[seed], steps=4, **options)[0].latent

    picture = np.full((4, 4, 3), 200, np.uint8)
    changed = [
        latent("a mug"), latent(seed=1), latent(guidance_scale=8.0), latent(negative_prompt="a mug"),
        latent(image=picture), latent("", image=picture), latent(sampler="euler"),
    ]  # fmt: skip
    for other in changed:
        assert (other - latent()).abs().max() > 1e-4
    torch.testing.assert_close(latent(), latent(), atol=0, rtol=0)


def test_seeds_are_counted_drawn_or_given(pipeline):
    counted = pipeline(["a mug", "a car"], num_samples=2, seed=5, steps=2)
    assert [(shape.prompt, shape.seed) for shape in counted] == [
        ("a mug", 5), ("a mug", 6), ("a car", 5), ("a car", 6)
    ]  # fmt: skip
    (alone,) = pipeline("a car", seed=6, steps=2)
    torch.testing.assert_close(alone.latent, counted[3].latent, atol=1e-5, rtol=0)
    drawn = [
        shape.seed
        for _ in range(2)
        for shape in pipeline("a mug", num_samples=2, generator=torch.Generator().manual_seed(3), steps=1)
    ]
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]
    with pytest.raises(ValueError, match="num_samples must be positive"):
        pipeline("a mug", num_samples=0)


def test_each_prompt_may_have_a_picture_of_its_own(pipeline):
    dark, light = np.full((4, 4, 3), 10, np.uint8), np.full((4, 4, 3), 240, np.uint8)
    both = pipeline(["", ""], image=[dark, light], steps=3)
    for picture, shape in zip((dark, light), both, strict=True):
        (alone,) = pipeline("", image=picture, steps=3)
        torch.testing.assert_close(alone.latent, shape.latent, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="an image of its own, got 1 and 2"):
        pipeline([""], image=[dark, light])
    with pytest.raises(ValueError, match="either all shapes of a batch have an image"):
        pipeline(["", ""], image=[dark, []])


def test_several_pictures_of_an_object_are_followed_together_whatever_others_have(pipeline):
    dark, light, grey = (np.full((4, 4, 3), value, np.uint8) for value in (10, 240, 99))

    def latent(*pictures: np.ndarray) -> torch.Tensor:
        return pipeline("", image=pictures, steps=3)[0].latent

    both, one, three = pipeline(["", "", ""], image=[[dark, light], grey, [dark, light, grey]], steps=3)
    torch.testing.assert_close(both.latent, latent(dark, light), atol=1e-5, rtol=0)
    torch.testing.assert_close(one.latent, latent(grey), atol=1e-5, rtol=0)
    torch.testing.assert_close(three.latent, latent(dark, light, grey), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent(dark, light), latent(light, dark), atol=1e-5, rtol=0)
    for other in (latent(dark), latent(light), latent(dark, light, grey)):
        assert (other - both.latent).abs().max() > 1e-4


def test_latents_are_saved_and_read_by_the_same_encoder_alone(pipeline, shape, tmp_path):
    shape.save(tmp_path / "ball.safetensors")
    back = pipeline.load_latent(tmp_path / "ball.safetensors")
    torch.testing.assert_close(back.latent, shape.latent, atol=0, rtol=0)
    assert (back.prompt, back.seed) == ("a ball", 0)
    (tmp_path / "text.safetensors").write_text("no latent")
    with pytest.raises(UserError, match="is no latent"):
        pipeline.load_latent(tmp_path / "text.safetensors")
    stranger = copy.copy(shape.decoder)
    stranger.digest = "another's"
    ShapeSample(shape.latent, "", 0, stranger).save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="another encoder"):
        pipeline.load_latent(tmp_path / "other.safetensors")
    ShapeSample(shape.latent / 0, "", 0, shape.decoder).save(tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="holds NaN or infinity"):
        pipeline.load_latent(tmp_path / "nan.safetensors")


def test_the_same_latent_has_the_same_bytes(shape):
    # Of safetensors' metadata alone: two entries in a random order would be equal 8 times once in 128.
    assert len({shape.latent_bytes() for _ in range(8)}) == 1


def test_latents_whose_facts_are_an_entry_each_are_read_too(pipeline, shape, tmp_path):
    facts = {"encoder": shape.decoder.digest, "prompt": "a ball", "seed": "3"}
    save_file({"latent": shape.latent}, tmp_path / "ball.safetensors", facts)
    back = pipeline.load_latent(tmp_path / "ball.safetensors")
    assert torch.equal(back.latent, shape.latent) and (back.prompt, back.seed) == ("a ball", 3)


def test_renders_with_alpha_are_the_ones_on_white(shape):
    (on_white,) = shape.render(height=24, width=40)
    (rgba,) = shape.render(height=24, width=40, alpha=True)
    assert (on_white.shape, rgba.shape) == ((24, 40, 3), (24, 40, 4))
    opacity = rgba[..., 3:] / 255
    assert set(np.unique(opacity)) >= {0.0, 1.0}
    np.testing.assert_allclose(rgba[..., :3] * opacity + 255 * (1 - opacity), on_white, atol=2)


def test_alpha_is_straight_where_a_shape_is_half_transparent(shape, monkeypatch):
    """A fog of one colour has that colour whatever its alpha."""
    fog = torch.tensor([0.2, 0.4, 0.6])

    def geometry(weights, points):
        inside = points.norm(dim=-1) < 0.8
        return Geometry(inside.float(), points.norm(dim=-1) - 0.8)

    monkeypatch.setattr(shape.decoder, "geometry", geometry)
    monkeypatch.setattr(
        shape.decoder, "color", lambda weights, points, directions=None: Color(*2 * [fog.expand_as(points)])
    )
    (rgba,) = shape.render(height=24, width=24, alpha=True)
    half = (rgba[..., 3] > 64) & (rgba[..., 3] < 250)
    assert half.sum() > 50
    np.testing.assert_allclose(rgba[half][:, :3], np.broadcast_to([51, 102, 153], (half.sum(), 3)), atol=2)


def test_shapes_are_rendered_in_one_batch_as_alone(shape):
    large = ShapeSample(torch.full((4, 3), 0.9), "a larger ball", 1, shape.decoder)
    together = render_shapes([shape, large], height=20, width=20)
    np.testing.assert_array_equal(together[0], shape.render(height=20, width=20))
    np.testing.assert_array_equal(together[1], large.render(height=20, width=20))
    with pytest.raises(ValueError, match="one decoder"):
        render_shapes([])


def test_latents_are_what_a_decoder_takes(pipeline):
    (shape,) = pipeline(["a chair"], seeds=[3], steps=3)
    assert shape.latent.shape == (4, 3)
    assert shape.latent.abs().max() <= 1


def test_steps_are_reported(pipeline):
    seen: list[int] = []
    pipeline(["a chair"], seeds=[3], steps=3, on_step=seen.append)
    assert seen == [0, 1, 2]
    assert pipeline([], seeds=[]) == []


def test_wrong_inputs_are_refused(pipeline):
    with pytest.raises(UserError, match="this one is empty"):
        pipeline(["  "], seeds=[0])
    with pytest.raises(UserError, match="at most 1000 characters"):
        pipeline(["chair" * 300], seeds=[0])
    with pytest.raises(UserError, match="A seed is a number from 0"):
        pipeline(["a chair"], seeds=[-1])
    with pytest.raises(ValueError, match="a seed of its own, got 1 and 2"):
        pipeline(["a chair"], seeds=[0, 1])
    with pytest.raises(UserError, match="either all shapes of a batch have a prompt"):
        pipeline(["a chair", ""], seeds=[0, 1], image=np.zeros((4, 4, 3), np.uint8))
    assert check_prompt(" a \n red\tchair ") == "a red chair"


def test_parts_of_other_runs_are_refused(pipeline):
    for name, part in (("encoder", pipeline.decoder), ("CLIP", pipeline.clip)):
        stranger = copy.copy(part)
        stranger.digest = "someone else's"
        decoder, clip = (stranger, pipeline.clip) if name == "encoder" else (pipeline.decoder, stranger)
        with pytest.raises(UserError, match=f"trained with the {name}"):
            ShapePipeline(pipeline.prior, decoder, clip)


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(UserError, match="is not a finished prior run"):
        ShapePipeline.load(prior=tmp_path, encoder=tmp_path, clip=tmp_path)


def test_a_render_shows_the_ball_where_it_is(shape):
    size = 64
    (picture,) = shape.turntable(1, size)
    assert picture.shape == (size, size, 3)
    ball = (picture < 250).any(axis=-1)
    # A ball of radius r at distance d is a disc of f r / sqrt(d^2 - r^2) pixels.
    distance = fitting_distance(FOV)
    radius = float(intrinsics(FOV, size, size)[0, 0]) * 0.65 / np.sqrt(distance**2 - 0.65**2)
    assert ball.sum() == pytest.approx(np.pi * radius**2, rel=0.1)
    views = shape.render(ring(2, distance=distance), intrinsics(FOV, size, size), size, size)
    np.testing.assert_array_equal(views[0], picture)
    with pytest.raises(ValueError, match="must be positive"):
        shape.turntable(0)


def test_a_mesh_has_its_texture_and_is_the_ball(shape):
    textured = shape.mesh(MeshConfig(resolution=32, max_faces=500, texture_size=64))
    assert textured.texture.shape == (64, 64, 3)
    np.testing.assert_allclose(np.linalg.norm(textured.mesh.vertices, axis=1), 0.65, atol=0.02)
    assert shape.mesh(MeshConfig(resolution=16, texture_size=0)).texture is None


def test_a_shape_without_a_surface_has_an_empty_mesh(pipeline):
    nothing = ShapeSample(-torch.ones(4, 3), "nothing", 0, pipeline.decoder)
    assert nothing.mesh(MeshConfig(resolution=16)).num_faces == 0


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj", ".stl", ".gif", ".png", ".apng", ".mp4"])
def test_shapes_are_saved_by_suffix(shape, tmp_path, suffix, monkeypatch):
    small = ShapeSample.turntable
    monkeypatch.setattr(
        ShapeSample,
        "turntable",
        lambda self, num=3, size=0, **options: small(self, min(num, 3), 31, **options),
    )
    path = tmp_path / f"ball{suffix}"
    shape.save(path, mesh=MeshConfig(resolution=16, texture_size=32))
    assert path.stat().st_size > 100
    if suffix == ".gif":
        with Image.open(path) as image:
            assert (image.n_frames, image.size) == (3, (31, 31))
    if suffix in (".png", ".apng"):
        with Image.open(path) as image:
            assert (image.n_frames, image.mode) == (1 if suffix == ".png" else 3, "RGBA")
            assert image.getextrema()[3] == (0, 255)
    if suffix == ".mp4":
        frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
        assert frames == 3


def test_unknown_suffixes_are_refused(shape, tmp_path):
    with pytest.raises(UserError, match=r"\.png, \.safetensors, not as a\.usd"):
        shape.save(tmp_path / "a.usd")


def test_a_view_prior_puts_a_picture_in_the_prompt_s_place(pipeline: ShapePipeline):
    torch.manual_seed(1)
    shapes = Shapes(tokens=2, channels=4, clip_dim=8, text_width=6)
    facts = {"digest": "v", "encoder": "any", "clip": pipeline.clip.digest, "predict": "views"}
    views = Prior(
        Denoiser(shapes, NetworkConfig(width=16, depth=1, heads=2)), shapes, DiffusionConfig(), facts
    )
    through = ShapePipeline(pipeline.prior, pipeline.decoder, pipeline.clip, view_prior=views)
    direct = pipeline(["a chair"], seeds=[0], steps=2)[0].latent
    imagined = through(["a chair"], seeds=[0], steps=2)[0].latent
    assert not torch.equal(direct, imagined)
    assert torch.equal(imagined, through(["a chair"], seeds=[0], steps=2)[0].latent)
    with pytest.raises(UserError, match="makes no shapes: name it view_prior"):
        ShapePipeline(views, pipeline.decoder, pipeline.clip)
    with pytest.raises(UserError, match="view_prior must be trained with predict=views"):
        ShapePipeline(pipeline.prior, pipeline.decoder, pipeline.clip, view_prior=pipeline.prior)


def test_ancestral_steps_take_the_variance_that_the_prior_has_learned(pipeline: ShapePipeline):
    """A share of -1 everywhere is the variance of a prior that has learned none."""
    plain = pipeline.prior

    def with_share(share: float) -> ShapePipeline:
        config = DiffusionConfig(schedule="vp_cosine", times="uniform", learned_variance=True)
        network = Denoiser(plain.shapes, plain.network.config, learned_variance=True)
        state = plain.network.state_dict()
        extra = {"out.weight": torch.zeros_like(state["out.weight"])}
        extra["out.bias"] = torch.full_like(state["out.bias"], share)
        network.load_state_dict(state | {k: torch.cat([state[k], v]) for k, v in extra.items()})
        facts = {"digest": "p", "encoder": plain.encoder_digest, "clip": plain.clip_digest}
        return ShapePipeline(Prior(network, plain.shapes, config, facts), pipeline.decoder, pipeline.clip)

    def latent(pipe: ShapePipeline, sampler: SamplerName) -> torch.Tensor:
        return pipe("a chair", steps=4, sampler=sampler)[0].latent

    expected = latent(pipeline, "ddpm")
    torch.testing.assert_close(latent(with_share(-1.0), "ddpm"), expected)
    assert not torch.allclose(latent(with_share(1.0), "ddpm"), expected, atol=1e-4)
    torch.testing.assert_close(latent(with_share(1.0), "heun"), latent(pipeline, "heun"))


def test_bfloat16_changes_a_latent_by_its_rounding_alone(pipeline: ShapePipeline, monkeypatch):
    parts = {"load_prior": pipeline.prior, "load_decoder": pipeline.decoder, "load_clip": pipeline.clip}
    for name, part in parts.items():
        monkeypatch.setattr(f"sampling.pipeline.{name}", lambda *_, part=part, **__: copy.deepcopy(part))
    folders = {"prior": "p", "encoder": "e", "clip": "c"}
    full = ShapePipeline.load(**folders)("a chair", steps=4)[0].latent
    half = ShapePipeline.load(**folders, weaker="w", bf16=True)
    assert half.weaker is not None
    assert all(prior.network.out.weight.dtype == torch.bfloat16 for prior in (half.prior, half.weaker))
    half.weaker = None
    latent = half("a chair", steps=4)[0].latent
    assert latent.dtype == torch.float32
    difference = float((latent - full).norm() / full.norm())
    assert 0 < difference < 0.05  # 8 bits, through guidance of 3


def test_guidance_s_settings_reach_the_latents(pipeline: ShapePipeline):
    def latent(**guidance) -> torch.Tensor:
        config = GuidanceConfig.model_validate(guidance)
        return pipeline("a chair", steps=3, guidance_scale=6.0, guidance=config)[0].latent

    plain = latent()
    assert torch.equal(
        latent(interval=(1e3, 1e4)), pipeline("a chair", steps=3, guidance_scale=1.0)[0].latent
    )
    for settings in ({"rescale": 1.0}, {"mix": {"a red rug": 2.0}}):
        assert not torch.allclose(latent(**settings), plain)
    for threshold in ("static", "dynamic"):
        assert latent(threshold=threshold).abs().max() <= 1


def test_a_weaker_prior_takes_the_place_of_no_condition(pipeline: ShapePipeline):
    parts = (pipeline.prior, pipeline.decoder, pipeline.clip)
    by_itself = ShapePipeline(*parts, weaker=pipeline.prior)("a chair", steps=2, guidance_scale=5.0)[0]
    unguided = pipeline("a chair", steps=2, guidance_scale=1.0)[0]
    torch.testing.assert_close(by_itself.latent, unguided.latent)


def test_a_distilled_prior_is_sampled_at_its_own_levels_and_in_no_other_way(pipeline):
    prior, seen = copy.copy(pipeline.prior), []
    prior.distilled = Distilled((80.0, 2.0, 0.0), guidance_scale=3.0)
    prior.denoise = lambda x, sigma, condition: seen.append(float(sigma[0])) or torch.zeros_like(x)
    few = ShapePipeline(prior, pipeline.decoder, pipeline.clip)
    few("a chair", steps=2, guidance_scale=1.0, sampler="euler")
    assert seen == [80, 2]
    right = {"steps": 2, "guidance_scale": 1.0, "sampler": "euler"}
    for wrong in ({"steps": 32}, {"guidance_scale": 3.0}, {"sampler": "heun"}, {"negative_prompt": "a car"},
                  {"guidance": GuidanceConfig(rescale=0.5)}):  # fmt: skip
        with pytest.raises(UserError, match="sample it with steps=2 guidance_scale=1 sampler=euler"):
            few("a chair", **(right | wrong))
