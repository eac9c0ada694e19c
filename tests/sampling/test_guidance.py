"""Gradients that samples follow: a classifier's, CLIP's through a decoder; and what is refused."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prior.classifier import Classifier, ClassifierSize, LatentClassifier
from sampling.guidance import GuidanceConfig, classes_of, clip_score
from sampling.pipeline import ShapePipeline
from shapeloom.clip import Clip
from shapeloom.config import UserError
from shapeloom.fields.heads import Color, Geometry
from tests.sampling.conftest import CHANNELS, EMBED, TOKENS, BallDecoder, WordClip

CLASSES = ("mug", "table", "coffee table")


class Bayes(Classifier):
    """Of three standard normal classes: an untrained network adds nothing to what is exact for them."""

    def __init__(self) -> None:
        super().__init__(TOKENS, CHANNELS, 3, ClassifierSize(width=8, depth=1, heads=1))
        self.standard_std.fill_(0.01)
        self.centres.copy_(3 * torch.randn(self.centres.shape, generator=torch.Generator().manual_seed(1)))


class SoftBall(BallDecoder):
    """A ball of soft edge, as red as the latent's first number says."""

    def geometry(self, weights, points):
        sdf = points.norm(dim=-1) - 0.6
        return Geometry(20 * torch.sigmoid(-sdf / 0.05), sdf)

    def color(self, weights, points, directions=None):
        red = (0.5 + 0.4 * weights[0][:, :1, :1]).expand(*points.shape[:2], 1)
        rgb = torch.cat([red, torch.full_like(red, 0.5), torch.full_like(red, 0.5)], dim=-1)
        return Color(rgb, rgb)


class ColourClip(WordClip):
    """Sees pictures by their mean colour, and "red" in any caption."""

    def text(self, captions):
        found = super().text(captions)
        red = nn.functional.one_hot(torch.zeros(len(captions), dtype=torch.long), EMBED).float()
        return type(found)(red, found.tokens, found.mask)

    def differentiable_image(self, rgb: Tensor) -> Tensor:
        mean = rgb.mean((1, 2))
        return nn.functional.normalize(
            nn.functional.pad(mean - mean[:, 1:2], (0, EMBED - 3), value=0.1), dim=-1
        )


@pytest.fixture
def classifier(pipeline: ShapePipeline) -> LatentClassifier:
    return LatentClassifier(Bayes(), CLASSES, digest="c", encoder=pipeline.decoder.digest)


def with_classifier(pipeline: ShapePipeline, classifier: LatentClassifier) -> ShapePipeline:
    return ShapePipeline(pipeline.prior, pipeline.decoder, pipeline.clip, classifier=classifier)


def test_an_unconditional_prior_makes_what_the_classifier_is_asked_for(pipeline, classifier):
    network, prior = classifier.network, copy.copy(pipeline.prior)
    centres = network.centres.unflatten(1, (TOKENS, CHANNELS))

    def mixture(x: Tensor, sigma: Tensor, condition: object) -> Tensor:
        share = network(x, sigma).softmax(1)
        of_class = (x[:, None] + sigma[:, None, None, None] ** 2 * centres) / (1 + sigma**2)[
            :, None, None, None
        ]
        return (share[..., None, None] * of_class).sum(1)

    prior.denoise = mixture
    guided = ShapePipeline(prior, pipeline.decoder, pipeline.clip, classifier=classifier)
    prompts = ["a red mug", "a table", "a coffee table"]
    label, level = torch.arange(3).repeat_interleave(8), torch.full((24,), 0.02)

    def share_right(scale: float) -> float:
        follow = GuidanceConfig(classifier_scale=scale)
        made = guided(prompts, num_samples=8, steps=24, guidance=follow)
        x0 = prior.standardise(torch.stack([shape.latent for shape in made]))
        return float((classifier.log_probability(x0, level, label).exp() > 0.5).float().mean())

    assert share_right(0.0) < 0.7
    assert share_right(1.0) > 0.95


def test_the_class_is_the_one_that_the_prompt_names_or_category_does(pipeline, classifier):
    assert classes_of(["A Coffee Table", "two tables, no: a mug"], CLASSES).tolist() == [2, 0]
    assert classes_of(["a rocket", "a mug"], CLASSES, "table").tolist() == [1, 1]
    guided = with_classifier(pipeline, classifier)
    asked = guided("a mug", steps=2, guidance=GuidanceConfig(classifier_scale=1, category="table"))[0]
    named = guided("a mug", steps=2, guidance=GuidanceConfig(classifier_scale=1))[0]
    assert (asked.latent - named.latent).abs().max() > 1e-4


def test_what_no_classifier_can_follow_is_refused(pipeline, classifier):
    follow = GuidanceConfig(classifier_scale=1)
    with pytest.raises(UserError, match=r"train one \(`make classifier`\) and name it"):
        pipeline("a mug", steps=2, guidance=follow)
    guided = with_classifier(pipeline, classifier)
    with pytest.raises(UserError, match=r"'a rocket' names no class .* It knows mug, table, coffee table"):
        guided("a rocket", steps=2, guidance=follow)
    with pytest.raises(UserError, match="names mug and table"):
        guided("a mug on a table", steps=2, guidance=follow)
    with pytest.raises(UserError, match="knows no class 'rocket'"):
        guided("a mug", steps=2, guidance=GuidanceConfig(classifier_scale=1, category="rocket"))
    with pytest.raises(UserError, match="classifier_scale is 0"):
        guided("a mug", steps=2, guidance=GuidanceConfig(category="mug"))
    classifier.encoder_digest = "another's"
    with pytest.raises(UserError, match="latents of the encoder another's"):
        with_classifier(pipeline, classifier)


def test_clip_s_gradient_is_that_of_finite_differences(pipeline):
    config = GuidanceConfig(clip_scale=1, clip_size=8, clip_views=2)
    score = clip_score(pipeline.prior, SoftBall(), ColourClip(), config)
    assert score is not None
    condition = pipeline.prior.condition(ColourClip().text(["red", "red"]))
    # A latent is a hundredth of a standardised x_0.
    x0 = torch.tensor([10.0, -40.0])[:, None, None].expand(2, TOKENS, CHANNELS).clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(x0, condition).sum(), x0)
    change = torch.zeros_like(x0)
    change[:, 0, 0] = 1
    numeric = (score(x0 + change, condition) - score(x0 - change, condition)) / 2
    torch.testing.assert_close(slope[:, 0, 0], numeric.detach(), rtol=0.02, atol=1e-6)
    assert (slope[:, 1:] == 0).all()


def test_samples_under_clip_s_gradient_look_more_like_the_prompt(pipeline):
    clip: Clip = ColourClip()
    parts = ShapePipeline(pipeline.prior, SoftBall(), clip)
    prompts = ["a red ball", "another"]
    reds = [
        torch.stack([
            shape.latent[0, 0]
            for shape in parts(prompts, steps=6, guidance_scale=1.0,
                               guidance=GuidanceConfig(clip_scale=scale, clip_size=8, clip_views=1))
        ])
        for scale in (0.0, 3000.0)
    ]  # fmt: skip
    assert (reds[1] > reds[0]).all()
