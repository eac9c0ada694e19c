"""The settings of a sample, and how a prior's denoiser is steered by them."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field as Key
from torch import Tensor

from prior.classifier import LatentClassifier
from prior.model import Prior
from shapeloom.clip import Clip
from shapeloom.config import Config, UserError
from shapeloom.decoder import Decoder, RenderConfig
from shapeloom.denoising import Condition
from shapeloom.diffusion.guidance import (
    EVERYWHERE,
    autoguided,
    classifier_free,
    classifier_guided,
    score_guided,
    within,
)
from shapeloom.diffusion.samplers import Denoise, SamplerName
from shapeloom.diffusion.steps import StepChoice, make_sigmas
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.viewpoints import fitting_distance

DYNAMIC_QUANTILE = 0.995
"""Of a latent's numbers, within which a dynamic threshold brings it."""
CLIP_FOV = math.radians(40)
CLIP_SAMPLES = RenderConfig(coarse=32, fine=16)
"""Of the rays that CLIP's gradient comes through."""
LogProbability = Callable[[Tensor, Tensor, Condition], Float[Tensor, " batch"]]
Score = Callable[[Tensor, Condition], Float[Tensor, " batch"]]


class GuidanceConfig(Config):
    """What guidance does besides its scale."""

    interval: tuple[float, float] | None = Key(
        None, description="noise levels [low, high) to guide at; none: all"
    )
    rescale: float = Key(0.0, ge=0, le=1, description="brings the spread back that a high scale adds")
    mix: dict[str, float] = Key({}, description="more prompts, each with a scale of its own")
    threshold: Literal["none", "static", "dynamic"] = Key(
        "none", description="keeps what is expected at each step within the latents' range"
    )
    classifier_scale: float = Key(
        0.0, ge=0, description="of the gradient of a noisy classifier's log p; 1: as it says"
    )
    category: str = Key(
        "", description="which class the classifier is to see; none: the one that the prompt names"
    )
    clip_scale: float = Key(
        0.0, ge=0, description="of the gradient of CLIP's similarity of the expected shape's pictures "
        "with the condition; CLIP's own log p has about 100"
    )  # fmt: skip
    clip_views: int = Key(2, ge=1, le=16, description="pictures of a shape for CLIP's gradient")
    clip_size: int = Key(32, ge=8, le=256, description="their side in pixels")


class SampleSettings(Config):
    """How a prior is sampled, wherever that is done; the defaults are these everywhere."""

    steps: int = Key(
        32,
        ge=1,
        le=4096,
        description="sampling steps; a second-order sampler calls the network twice in each",
    )
    guidance_scale: float = Key(3.0, ge=0, description="of classifier-free guidance; 1: none")
    sampler: SamplerName = Key("heun", description="the solver")
    step_choice: StepChoice = Key("karras", description="where the steps lie on the noise scale")
    negative_prompt: str = Key("", description="what to guide away from")
    guidance: GuidanceConfig = GuidanceConfig()


DEFAULTS = SampleSettings()


def prior_sigmas(prior: Prior, num_steps: int, choice: StepChoice = "karras") -> Float[Tensor, " levels"]:
    """Returns the noise levels of a prior's steps, within the range that it was trained on."""
    low, high = prior.network.sigma_range
    return make_sigmas(choice, num_steps, sigma_min=low, sigma_max=high)


def steered(
    prior: Prior, negative: Condition, others: Sequence[tuple[Condition, float]], config: GuidanceConfig, *,
    scale: float, weaker: Prior | None = None, score: Score | None = None,
    log_probability: LogProbability | None = None,
) -> Denoise[Condition]:  # fmt: skip
    """Returns the guided denoiser.

    negative: the null condition or a negative prompt's. others: `config.mix` as conditions.
    weaker: a worse prior of the same latents, whose answer takes that of the negative condition's place.
    score, log_probability: whose gradients to follow, at `config.clip_scale` and `config.classifier_scale`.
    """
    interval = config.interval or EVERYWHERE
    if weaker is not None:
        denoise = autoguided(
            prior.denoise, weaker.denoise, scale=scale, interval=interval, rescale=config.rescale
        )
    else:
        denoise = classifier_free(
            prior.denoise, negative, scale=scale, interval=interval, rescale=config.rescale, others=others
        )  # fmt: skip
    if score is not None:
        denoise = score_guided(denoise, score, scale=config.clip_scale, interval=interval)
    if log_probability is not None:
        denoise = classifier_guided(
            denoise, log_probability, scale=config.classifier_scale, interval=interval
        )
    if config.threshold == "none":
        return denoise
    quantile = DYNAMIC_QUANTILE if config.threshold == "dynamic" else None
    return within(denoise, *prior.bounds(), quantile=quantile)


def clip_score(prior: Prior, decoder: Decoder, clip: Clip, config: GuidanceConfig) -> Score | None:
    """Returns x_0 -> mean cosine of CLIP's vectors of its pictures with its condition's; none at scale 0.

    The condition's vector is its caption's, or its pictures' mean where it has no caption. What is seen are
    volume renders from fixed views around the shape, 20 degrees above the horizon.
    """
    if config.clip_scale == 0:
        return None
    size, views = config.clip_size, config.clip_views
    poses = ring(views, distance=fitting_distance(CLIP_FOV))[None].to(prior.device)
    matrix = intrinsics(CLIP_FOV, size, size).to(prior.device).expand(1, views, 3, 3)

    def score(x0: Tensor, condition: Condition) -> Float[Tensor, " batch"]:
        batch = len(x0)
        weights = decoder.weights(prior.unstandardise(x0).float())
        rendering = decoder.differentiable_render(
            weights, poses.expand(batch, -1, -1, -1), matrix.expand(batch, -1, -1, -1), size, size,
            samples=CLIP_SAMPLES,
        )  # fmt: skip
        seen = clip.differentiable_image(rendering.rgb.flatten(0, 1)).unflatten(0, (batch, views))
        return (seen.mean(1) * _wanted(condition)).sum(-1)

    return score


def _wanted(condition: Condition) -> Float[Tensor, "batch embed"]:
    """A unit vector of each row: its caption's, or of the mean of its pictures'."""
    shown = (condition.image_pooled * condition.has_view[..., None]).sum(1)
    vector = torch.where(condition.has_text[:, None], condition.text_pooled, shown)
    return torch.nn.functional.normalize(vector.float(), dim=-1)


def classifier_log_probability(
    classifier: LatentClassifier | None, prompts: Sequence[str], config: GuidanceConfig
) -> LogProbability | None:
    """Returns log p of each prompt's class; none at scale 0.

    Raises UserError if there is no classifier, or it doesn't know the class.
    """
    if config.classifier_scale == 0:
        if config.category:
            raise UserError(
                f"guidance.category={config.category} says which class to follow, but "
                "guidance.classifier_scale is 0: give it a scale, such as 2."
            )
        return None
    if classifier is None:
        raise UserError(
            "guidance.classifier_scale needs a classifier of noisy latents: train one (`make classifier`) "
            "and name it, classifier=RUN/classifier."
        )
    label = classes_of(prompts, classifier.classes, config.category)

    def log_probability(x: Tensor, sigma: Tensor, condition: Condition) -> Float[Tensor, " batch"]:
        return classifier.log_probability(x, sigma, label.to(x.device))

    return log_probability


def classes_of(
    prompts: Sequence[str], classes: Sequence[str], category: str = ""
) -> Int64[Tensor, " prompts"]:
    """Returns the number of each prompt's class: `category`'s, or of the one whose name is in the prompt.

    "a red coffee table" is a "coffee table", not a "table". Raises UserError if there is no such class, or a
    prompt names none or several.
    """
    known = ", ".join(classes)
    if category:
        if category not in classes:
            raise UserError(f"The classifier knows no class {category!r}; it knows {known}.")
        return torch.full((len(prompts),), list(classes).index(category))
    numbers = []
    for prompt in prompts:
        found = [name for name in classes if re.search(rf"\b{re.escape(name.lower())}\b", prompt.lower())]
        found = [name for name in found if not any(name != o and name in o for o in found)]
        if len(found) != 1:
            raise UserError(
                f"The prompt {prompt!r} names {' and '.join(found) or 'no class'} of the classifier's: say "
                f"which to follow, guidance.category=... It knows {known}."
            )
        numbers.append(list(classes).index(found[0]))
    return torch.tensor(numbers)
