"""How a prior's denoiser is steered by the settings that users give."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor

from prior.conditions import Condition
from prior.denoiser import Prior
from shapeloom.config import Config
from shapeloom.diffusion.guidance import EVERYWHERE, autoguided, classifier_free, within
from shapeloom.diffusion.samplers import Denoise
from shapeloom.diffusion.steps import StepChoice, make_sigmas

DYNAMIC_QUANTILE = 0.995
"""Of a latent's numbers, within which a dynamic threshold brings it."""


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


def prior_sigmas(prior: Prior, num_steps: int, choice: StepChoice = "karras") -> Float[Tensor, " levels"]:
    """Returns the noise levels of a prior's steps, within the range that it was trained on."""
    low, high = prior.network.sigma_range
    return make_sigmas(choice, num_steps, sigma_min=low, sigma_max=high)


def steered(
    prior: Prior,
    negative: Condition,
    others: Sequence[tuple[Condition, float]],
    config: GuidanceConfig,
    *,
    scale: float,
    weaker: Prior | None = None,
) -> Denoise[Condition]:
    """Returns the guided denoiser.

    negative: the null condition or a negative prompt's. others: `config.mix` as conditions.
    weaker: a worse prior of the same latents, whose answer takes that of the negative condition's place.
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
    if config.threshold == "none":
        return denoise
    quantile = DYNAMIC_QUANTILE if config.threshold == "dynamic" else None
    return within(denoise, *prior.bounds(), quantile=quantile)
