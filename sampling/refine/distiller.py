"""A 2-D model's gradient of pictures: what is behind them, noise, guidance, the estimator, regularisers.

A CLIP's takes the estimator's place.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sampling.refine.clip_guide import ClipGuide
from sampling.refine.config import RefineConfig
from sampling.refine.guides import Guide
from sampling.refine.own import OwnNetwork
from sampling.refine.rendering import Views
from sampling.refine.style import read_style
from sampling.refine.words import negatives, side_of, with_view
from shapeloom.diffusion.distillation import ism, sds, time_range, vsd
from shapeloom.diffusion.guidance import classifier_free, perp_neg
from shapeloom.diffusion.samplers import Denoise

ISM_GAP = 0.08
"""Between the last two times of ISM's path, at most."""


class Distiller:
    """Says of pictures which way a 2-D model and a prompt pull them.

    own: VSD's own network, None for other estimators. size: side of the pictures.
    """

    def __init__(self, guide: Guide | ClipGuide, prompt: str, config: RefineConfig) -> None:
        self.guide, self.prompt, self.config = guide, prompt, config
        self.own = None
        if config.estimator.kind == "vsd" and not isinstance(guide, ClipGuide):
            self.own = OwnNetwork(guide, config.estimator, config.seed)
        self.size = config.size or guide.size
        self.style = None if config.style is None else read_style(config.style, size=self.size)

    def slope(
        self, flat: Float[Tensor, "particles rays 4"], views: Views, progress: float,
        generator: torch.Generator, facts: dict[str, float],
    ) -> Float[Tensor, "particles rays 4"]:  # fmt: skip
        """Returns the objective's gradient by pictures (premultiplied rgb, alpha), a mean over views.

        progress: 0 at the first step, 1 at the last. facts: gets what metrics.jsonl says of the step. Raises
        FloatingPointError where the 2-D model's answer isn't finite.
        """
        config, size = self.config, self.size
        num = len(views.azimuth)
        pictures = flat.reshape(num, size, size, 4).permute(0, 3, 1, 2).contiguous().requires_grad_()
        background = torch.ones(num, 3, device=flat.device)
        if config.background == "random" and not self.guide.sees_alpha:
            drawn = torch.rand(num, 4, generator=generator)
            background = torch.where(drawn[:, 3:] < 0.5, drawn[:, :3], 1.0).to(flat.device)
        with torch.enable_grad():
            x = self.guide.encode(pictures, background)
            if isinstance(self.guide, ClipGuide):
                gradient, facts["clip"] = self.guide.gradient(x, self.prompt)
            else:
                gradient = self._estimate(self.guide, x.detach(), views, progress, generator, facts)
            if config.estimator.clip is not None:
                gradient = gradient.clamp(-config.estimator.clip, config.estimator.clip)
            alpha = pictures[:, 3].clamp(1e-4, 1 - 1e-4)  # whose entropy has a slope at the ends too
            entropy = -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log()).mean()
            regular = config.sparsity * (alpha**2 + 0.01).sqrt().mean() + config.entropy * entropy
            # A mean over views and numbers, as the regularisers are means over pixels.
            torch.autograd.backward(
                [x, regular], [gradient / gradient.numel(), torch.ones_like(regular)], inputs=[pictures]
            )
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError("the 2-D model's gradient isn't finite")
        facts |= {"gradient": float(gradient.square().mean().sqrt()), "opacity": float(flat[..., 3].mean())}
        assert pictures.grad is not None
        slope = pictures.grad
        if self.style is not None:
            slope = slope + self._towards_style(pictures.detach(), slope, views.each, facts)
        return slope.permute(0, 2, 3, 1).reshape(flat.shape)

    def _towards_style(self, pictures: Tensor, slope: Tensor, each: int, facts: dict[str, float]) -> Tensor:
        """The style's gradient, `style_share` times as long as the 2-D model's; each particle by itself."""
        assert self.style is not None
        pulls, distances = zip(*(self.style.slope(own) for own in pictures.split(each)), strict=True)
        pull = torch.cat(pulls)
        if not math.isnan(sum(distances)):
            facts["style"] = sum(distances) / len(distances)
        # Nothing pulls where nothing is seen.
        return pull * (self.config.style_share * slope.norm() / pull.norm().clamp_min(1e-30))

    @torch.no_grad()
    def _estimate(
        self, guide: Guide, x: Tensor, views: Views, progress: float, generator: torch.Generator,
        facts: dict[str, float],
    ) -> Tensor:  # fmt: skip
        """The estimator's gradient by what the 2-D model denoises."""
        how, num = self.config.estimator, len(x)
        low, high = time_range(how.times, progress)
        t = low + (high - low) * _shares(guide, views, generator)
        eps = torch.randn(x.shape, generator=generator).to(x)
        condition, null, denoise = self._guided(guide, views)
        sigma = guide.sigma(t).to(x)
        if how.kind == "sds":
            return sds(denoise, x, sigma, eps, condition, weighting=how.weighting)
        if self.own is not None:
            own = guide.own_condition([self.prompt] * num, views, generator)
            facts["own_loss"] = self.own.learn(
                x, guide.sigma(0.001 + 0.998 * _shares(guide, views, generator)).to(x),
                torch.randn(x.shape, generator=generator).to(x), own,
            )  # fmt: skip
            return vsd(denoise, guide.own_denoise, x, sigma, eps, condition, own, weighting=how.weighting)
        last = torch.maximum(t - ISM_GAP, (how.times.low + t) / 2)
        share = torch.linspace(0, 1, how.path_steps - 1)[:, None]
        times = torch.cat([how.times.low + (last - how.times.low) * share, t[None]])
        levels = torch.stack([guide.sigma(each) for each in times]).to(x)
        return ism(denoise, guide.denoise, x, levels, eps, condition, null, weighting=how.weighting)

    def _guided(self, guide: Guide, views: Views) -> tuple[Any, Any, Denoise[Any]]:
        """The condition, the null condition, and the denoiser under guidance."""
        how, num = self.config.estimator, len(views.azimuth)
        prompts = [self.prompt] * num
        needs_null = how.scale != 1 or how.perp_neg or how.kind == "ism"
        null = guide.null(views) if needs_null else None
        denoise = guide.denoise if self.own is None else self.own.guide_denoise
        angles = views.azimuth.tolist(), views.elevation.tolist()
        if not guide.reads_cameras:
            sides = [side_of(*each) for each in zip(*angles, strict=True)]
            shown = [with_view(prompt, side) for prompt, side in zip(prompts, sides, strict=True)]
        else:
            shown = prompts
        condition = guide.condition(shown, views)
        if not how.perp_neg:
            return condition, null, classifier_free(denoise, null, scale=how.scale, rescale=how.rescale)
        away = [
            (guide.condition(texts, views), torch.tensor(weights))
            for texts, weights in negatives(prompts, *angles)
        ]
        return condition, null, perp_neg(denoise, null, away, scale=how.scale, rescale=how.rescale)


def _shares(guide: Guide, views: Views, generator: torch.Generator) -> Float[Tensor, " batch"]:
    """Uniform numbers, one a view, or one for all views of a particle where these are joined."""
    num = len(views.azimuth)
    if not guide.joins_views:
        return torch.rand(num, generator=generator)
    return torch.rand(num // views.each, generator=generator).repeat_interleave(views.each)
