"""Editing on latents: variations, new looks for a shape and new shapes for a look, walks between shapes.

All of it goes through the one seam, `denoise(x, sigma, condition) -> x0`. Latents here are standardised, as
the prior sees them; shapes come as `ShapeSample`s: sampled ones, or read by `ShapePipeline.load_latent`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sampling.guidance import DEFAULTS, prior_sigmas
from sampling.pictures import contact_sheet
from sampling.pipeline import ShapePipeline, check_prompt
from sampling.shape import ShapeSample, render_shapes
from shapeloom.config import UserError
from shapeloom.decoder import DecoderConfig
from shapeloom.denoising import Condition
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.samplers import Denoise, SamplerName, initial_noise, sample

Layers = Literal["all", "geometry", "color"]


def vary(
    pipe: ShapePipeline, shape: ShapeSample, prompt: str, *, strength: float, layers: Layers = "all",
    num_samples: int = 1, seed: int = 0, steps: int = DEFAULTS.steps,
    guidance_scale: float = DEFAULTS.guidance_scale, sampler: SamplerName = DEFAULTS.sampler,
    on_step: Callable[[int], None] | None = None,
) -> list[ShapeSample]:  # fmt: skip
    """Returns `num_samples` variations of a shape that follow `prompt` (SDEdit, Meng et al. 2022).

    strength: in (0, 1], the share of the noise levels that are walked again; 1 forgets what is changed.
    layers: which tokens change. "color" keeps the shape's surface exactly and changes its look, "geometry"
        the other way round; what is kept guides what changes.
    seed: of the first one; the next have seed + 1, ...
    on_step: called with 0, 1, ... as the steps are taken.

    The kept tokens are answered with their known values at every level. On the sampler's path they are then
    x_0 + sigma eps throughout, just as the network saw them in training.
    Raises ValueError for a strength outside (0, 1], UserError for a distilled prior.
    """
    check_levels(pipe)
    check_latents([shape])
    if not 0 < strength <= 1 or num_samples < 1:
        raise ValueError(f"expected 0 < strength <= 1 and num_samples >= 1, got {strength}, {num_samples}.")
    text = check_prompt(prompt)
    condition = pipe.prior.condition(pipe.clip.text([text]), batch=num_samples)
    known = pipe.prior.standardise(shape.latent.to(pipe.prior.device)[None]).expand(num_samples, -1, -1)
    sigmas = prior_sigmas(pipe.prior, steps)[steps - max(1, round(strength * steps)) :]
    seeds = range(seed, seed + num_samples)
    denoise = classifier_free(pipe.prior.denoise, condition.without(), scale=guidance_scale)
    changes = changing_tokens(shape.decoder.config, layers).to(pipe.prior.device)
    # At full strength what changes starts from noise alone, as a fresh sample does.
    start = torch.where(changes[:, None], torch.zeros_like(known), known) if strength == 1 else known
    x0 = sample(
        keeping(denoise, known, ~changes),
        start + initial_noise(pipe.noise(seeds), sigmas),
        sigmas,
        condition,
        method=sampler,
        on_step=on_step,
    )
    return pipe.shapes(x0, [text] * num_samples, seeds)


def check_levels(pipe: ShapePipeline) -> None:
    """Raises UserError if the prior was distilled: edits need an answer at any noise level, and guidance."""
    if pipe.prior.distilled is not None:
        raise UserError(
            f"This prior was distilled to {pipe.prior.distilled.steps} noise levels of its own, and edits "
            "start and walk at others. Edit with the prior that it was made from: its latents are the same."
        )


def check_latents(shapes: Sequence[ShapeSample]) -> None:
    """Raises UserError for shapes whose matrices were refined: their latents say what they were before."""
    if any(shape.matrices is not None for shape in shapes):
        raise UserError(
            "This shape's matrices were refined, so no latent says what it is, and the prior can't edit it. "
            "Save it as .glb and start from that, which is encoded; or change it by sampling.refine."
        )


def changing_tokens(config: DecoderConfig, layers: Layers) -> Bool[Tensor, " tokens"]:
    """Returns which tokens of a latent hold the matrices of these layers: geometry's first, then colour's.

    Raises UserError for parts of a field (Shap-E's is one) whose layers serve both.
    """
    layout = config.layout
    if layout.num_geometry is None and layers != "all":
        raise UserError("This model's field has no layers of geometry or color alone: edit all layers.")
    share = sum(layout.layers[: layout.num_geometry])
    is_geometry = torch.arange(layout.shape[0]) < share
    return {"all": torch.ones_like(is_geometry), "geometry": is_geometry, "color": ~is_geometry}[layers]


def keeping(
    denoise: Denoise[Condition], known: Float[Tensor, "batch tokens channels"], kept: Bool[Tensor, " tokens"]
) -> Denoise[Condition]:
    """Returns a denoiser that answers the `kept` tokens with their known values."""

    def denoise_others(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return torch.where(kept[:, None], known, denoise(x, sigma, condition))

    return denoise_others


def interpolate(
    pipe: ShapePipeline, first: ShapeSample, last: ShapeSample, *, num_samples: int = 7
) -> list[ShapeSample]:
    """Returns shapes from `first` to `last`, both included, by spherical steps between their latents."""
    check_latents([first, last])
    ends = pipe.prior.standardise(torch.stack([first.latent, last.latent]).to(pipe.prior.device))
    x0 = slerp(ends[0], ends[1], _shares(num_samples))
    return pipe.shapes(x0, [_words(first.prompt, last.prompt)] * num_samples, [first.seed] * num_samples)


def morph(
    pipe: ShapePipeline, prompts: tuple[str, str], *, seeds: tuple[int, int], num_samples: int = 7,
    steps: int = DEFAULTS.steps, guidance_scale: float = DEFAULTS.guidance_scale,
    sampler: SamplerName = DEFAULTS.sampler,
) -> list[ShapeSample]:  # fmt: skip
    """Returns shapes from one prompt and seed to another; all of them are samples, unlike `interpolate`'s.

    The noise goes from one seed's to the other's on the sphere, and what the denoiser says of each prompt is
    mixed in proportion. Equal seeds make a walk between prompts alone, equal prompts one between seeds.
    Raises UserError for a distilled prior.
    """
    check_levels(pipe)
    texts = [check_prompt(prompt) for prompt in prompts]
    share = _shares(num_samples)
    first, last = (pipe.prior.condition(pipe.clip.text([text]), batch=num_samples) for text in texts)
    ends = pipe.noise(seeds)
    one, other = (
        classifier_free(pipe.prior.denoise, end.without(), scale=guidance_scale) for end in (first, last)
    )
    weight = share.to(pipe.prior.device)[:, None, None]

    def mixed(x: Tensor, sigma: Tensor, _: None) -> Tensor:
        return torch.lerp(one(x, sigma, first), other(x, sigma, last), weight)

    sigmas = prior_sigmas(pipe.prior, steps)
    start = initial_noise(slerp(ends[0], ends[1], share), sigmas)
    x0 = sample(mixed, start, sigmas, None, method=sampler)
    return pipe.shapes(x0, [_words(texts[0], texts[1])] * num_samples, [seeds[0]] * num_samples)


def slerp(
    first: Float[Tensor, "tokens channels"],
    last: Float[Tensor, "tokens channels"],
    share: Float[Tensor, " num"],
) -> Float[Tensor, "num tokens channels"]:
    """Returns points on the arc between two vectors, whose lengths change in proportion (Shoemake 1985).

    share: 0 gives `first`, 1 `last`. Vectors that (nearly) point the same way are joined by a straight line.
    """
    share = share.to(first.device)[:, None, None]
    lengths = first.norm(), last.norm()
    cosine = (first * last).sum() / (lengths[0] * lengths[1]).clamp_min(1e-12)
    if float(cosine) > 0.9999:
        return torch.lerp(first, last, share)
    angle = cosine.clamp(-0.9999, 1).acos()
    direction = first / lengths[0] * ((1 - share) * angle).sin() + last / lengths[1] * (share * angle).sin()
    return direction / angle.sin() * torch.lerp(lengths[0], lengths[1], share)


def strip(
    shapes: Sequence[ShapeSample], labels: Sequence[str] | None = None, *, size: int = 128
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns one row with a picture of each shape, labelled with its prompt unless `labels` are given."""
    pictures = render_shapes(shapes, height=size, width=size)[:, 0]
    words = [shape.prompt for shape in shapes] if labels is None else labels
    return contact_sheet(list(pictures), list(words), size=size, columns=len(shapes))


def _shares(num: int) -> Float[Tensor, " num"]:
    if num < 2:
        raise ValueError(f"a walk has 2 shapes or more, its ends, not {num}.")
    return torch.linspace(0, 1, num)


def _words(first: str, last: str) -> str:
    return first if first == last else f"{first} - {last}"
