"""Claims on edits of latents, with a small untrained prior."""

import copy

import pytest
import torch

from prior.description import Distilled
from sampling.edit import changing_tokens, interpolate, morph, slerp, strip, vary
from sampling.pipeline import ShapePipeline
from shapeloom.config import UserError
from shapeloom.decoder import DecoderConfig


@pytest.fixture
def shape(pipeline):
    return pipeline("a red chair", seed=3, steps=4)[0]


@pytest.fixture
def halves(monkeypatch):
    """The small prior's latents have 4 tokens: two of the geometry, two of the colour."""
    half = torch.tensor([True, True, False, False])
    masks = {"all": half | True, "geometry": half, "color": ~half}
    monkeypatch.setattr("sampling.edit.changing_tokens", lambda config, layers: masks[layers])


def test_tokens_are_the_geometrys_then_the_colours():
    config = DecoderConfig()
    geometry, color = (changing_tokens(config, layers) for layers in ("geometry", "color"))
    assert geometry.sum() == color.sum() == 32
    assert geometry[:32].all()
    assert changing_tokens(config, "all").all()


@pytest.mark.parametrize(("layers", "kept"), [("color", slice(0, 2)), ("geometry", slice(2, 4))])
def test_kept_tokens_come_out_as_they_went_in(pipeline, shape, halves, layers, kept):
    for strength in (0.5, 1.0):
        (edited,) = vary(pipeline, shape, "a mug", strength=strength, layers=layers, steps=6)
        difference = (edited.latent - shape.latent).abs()
        # They are carried through the noise of the highest level, 80, in float32.
        assert difference[kept].max() < 1e-5
        assert difference.max() > 1e-4


def test_more_strength_leaves_less_of_a_shape(pipeline, shape, halves):
    distances = [
        (vary(pipeline, shape, "a mug", strength=strength, steps=20)[0].latent - shape.latent).norm()
        for strength in (0.05, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


def test_full_strength_is_a_fresh_sample(pipeline, shape, halves):
    (edited,) = vary(pipeline, shape, "a mug", strength=1.0, seed=7, steps=5)
    (fresh,) = pipeline("a mug", seed=7, steps=5)
    torch.testing.assert_close(edited.latent, fresh.latent, atol=1e-6, rtol=0)
    assert (edited.prompt, edited.seed) == ("a mug", 7)


def test_variations_have_seeds_of_their_own(pipeline, shape, halves):
    pair = vary(pipeline, shape, "a mug", strength=0.5, seed=1, num_samples=2, steps=4)
    (second,) = vary(pipeline, shape, "a mug", strength=0.5, seed=2, steps=4)
    torch.testing.assert_close(pair[1].latent, second.latent, atol=1e-5, rtol=0)
    assert (pair[0].latent - pair[1].latent).abs().max() > 1e-5


def test_walks_begin_and_end_at_their_ends(pipeline, shape):
    other = pipeline("a mug", seed=4, steps=4)[0]
    between = interpolate(pipeline, shape, other, num_samples=3)
    morphed = morph(pipeline, ("a red chair", "a mug"), seeds=(3, 4), num_samples=3, steps=4)
    for walk in (between, morphed):
        torch.testing.assert_close(walk[0].latent, shape.latent, atol=1e-5, rtol=0)
        torch.testing.assert_close(walk[-1].latent, other.latent, atol=1e-5, rtol=0)
        assert walk[1].prompt == "a red chair - a mug"
    (same,) = {shape.prompt for shape in morph(pipeline, ("a mug", "a mug"), seeds=(0, 1), steps=1)}
    assert same == "a mug"


def test_slerp_stays_on_the_sphere_and_turns_evenly():
    first, last = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    arc = slerp(first, last, torch.linspace(0, 1, 4))
    torch.testing.assert_close(arc.norm(dim=(1, 2)), torch.full((4,), 3.0))
    torch.testing.assert_close(torch.atan2(arc[:, 0, 1], arc[:, 0, 0]), torch.linspace(0, torch.pi / 2, 4))
    torch.testing.assert_close(slerp(first, 2 * first, torch.tensor([0.5]))[0], 1.5 * first)


def test_a_strip_shows_every_shape(pipeline, shape):
    height, width, _ = strip([shape, shape, shape], size=16).shape
    assert width == 3 * 16 and height > 16  # whole labels below


def test_impossible_edits_are_refused(pipeline, shape):
    for strength in (0.0, 1.1):
        with pytest.raises(ValueError, match="0 < strength <= 1"):
            vary(pipeline, shape, "a mug", strength=strength)
    with pytest.raises(ValueError, match="a walk has 2 shapes or more"):
        interpolate(pipeline, shape, shape, num_samples=1)


def test_a_distilled_prior_only_walks_between_latents(pipeline, shape):
    prior = copy.copy(pipeline.prior)
    prior.distilled = Distilled((80.0, 2.0, 0.0), guidance_scale=3.0)
    few = ShapePipeline(prior, pipeline.decoder, pipeline.clip)
    with pytest.raises(UserError, match=r"distilled to 2 noise levels .* the prior that it was made from"):
        vary(few, shape, "a mug", strength=0.5)
    with pytest.raises(UserError, match="distilled to 2 noise levels"):
        morph(few, ("a mug", "a chair"), seeds=(0, 1))
    walk = interpolate(few, shape, shape, num_samples=2)
    torch.testing.assert_close(walk[1].latent, shape.latent)
