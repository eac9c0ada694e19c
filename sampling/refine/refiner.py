"""One step of a refinement: cameras, pictures, the 2-D model's gradient, and Adam.

All randomness is a function of the seed and the step's number, so that a run that was killed goes on as if it
hadn't been.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sampling.pipeline import ShapePipeline
from sampling.refine.config import RefineConfig
from sampling.refine.guides import Guide
from sampling.refine.own import OwnNetwork
from sampling.refine.rendering import Views, distil, random_views, rays_of
from sampling.refine.subject import Subject
from sampling.refine.words import negatives, side_of, with_view
from sampling.shape import ShapeSample
from shapeloom.decoder import with_field
from shapeloom.denoising import Condition
from shapeloom.diffusion.distillation import ism, sds, time_range, vsd
from shapeloom.diffusion.guidance import classifier_free, perp_neg
from shapeloom.diffusion.samplers import Denoise
from shapeloom.fields.unlit import UnlitField
from shapeloom.seed import torch_generator

ISM_GAP = 0.08
"""Between the last two times of ISM's path, at most."""


class Refiner:
    """A few shapes on their way to what a 2-D model expects of a prompt."""

    def __init__(
        self, pipe: ShapePipeline, guide: Guide, starts: list[ShapeSample], prompt: str, config: RefineConfig
    ) -> None:
        self.pipe, self.guide, self.prompt, self.config = pipe, guide, prompt, config
        self.subject = Subject(starts, pipe.prior, config)
        # DreamFusion's successors' settings: a second moment that forgets quickly, no floor under it.
        self.optimiser = torch.optim.Adam(self.subject.leaves, config.rate, betas=(0.9, 0.99), eps=1e-15)
        self.own = (
            OwnNetwork(guide, config.estimator, config.seed) if config.estimator.kind == "vsd" else None
        )
        self.size = config.size or guide.size
        decoder = self.subject.decoder
        self.unlit = with_field(decoder, UnlitField(decoder.field))

    def step(self, number: int) -> dict[str, float]:
        """Moves the shapes once; returns what metrics.jsonl says of it."""
        config, subject = self.config, self.subject
        generator = torch_generator("refine", config.seed, number)
        views = random_views(
            config.cameras, len(subject.starts), config.views, size=self.size, generator=generator
        )
        rays = rays_of(views).to(subject.before[0].device)
        facts: dict[str, float] = {}

        def slope(pictures: Tensor) -> Tensor:
            return self._slope(pictures, views, number, generator, facts)

        weights = subject.weights()
        unlit = config.optimise == "matrices" and float(torch.rand((), generator=generator)) < config.unlit
        decoder = self.unlit if unlit else subject.decoder
        gradients = distil(decoder, weights, rays, config.samples, slope, at_once=config.rays_at_once)
        self.optimiser.zero_grad()
        moving = [(w, g) for w, g in zip(weights, gradients, strict=True) if w.requires_grad]
        torch.autograd.backward([w for w, _ in moving], [g for _, g in moving])
        if config.prior_share:
            self._add_prior(generator)
        self.optimiser.step()
        subject.constrain()
        return facts

    def _slope(
        self, flat: Float[Tensor, "particles rays 4"], views: Views, number: int,
        generator: torch.Generator, facts: dict[str, float],
    ) -> Float[Tensor, "particles rays 4"]:  # fmt: skip
        """The gradient of the objective by the pictures, a mean over views."""
        config, size = self.config, self.size
        num = len(views.azimuth)
        pictures = flat.reshape(num, size, size, 4).permute(0, 3, 1, 2).contiguous().requires_grad_()
        background = torch.ones(num, 3, device=flat.device)
        if config.background == "random" and not self.guide.sees_alpha:
            drawn = torch.rand(num, 4, generator=generator)
            background = torch.where(drawn[:, 3:] < 0.5, drawn[:, :3], 1.0).to(flat.device)
        with torch.enable_grad():
            x = self.guide.encode(pictures, background)
            gradient = self._estimate(x.detach(), views, number, generator, facts)
            gradient = gradient.clamp(-config.estimator.clip, config.estimator.clip)
            alpha = pictures[:, 3].clamp(1e-4, 1 - 1e-4)  # whose entropy has a slope at the ends too
            entropy = -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log()).mean()
            regular = config.sparsity * (alpha**2 + 0.01).sqrt().mean() + config.entropy * entropy
            # A mean over views and numbers, as the regularisers are means over pixels.
            torch.autograd.backward(
                [x, regular], [gradient / gradient.numel(), torch.ones_like(regular)], inputs=[pictures]
            )
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError(f"the 2-D model's gradient isn't finite at step {number}")
        facts |= {"gradient": float(gradient.square().mean().sqrt()), "opacity": float(flat[..., 3].mean())}
        assert pictures.grad is not None
        return pictures.grad.permute(0, 2, 3, 1).reshape(flat.shape)

    @torch.no_grad()
    def _estimate(
        self, x: Tensor, views: Views, number: int, generator: torch.Generator, facts: dict[str, float]
    ) -> Tensor:
        """The estimator's gradient by what the 2-D model denoises."""
        how, num = self.config.estimator, len(x)
        low, high = time_range(how.times, number / max(1, self.config.iterations - 1))
        t = low + (high - low) * self._shares(views, generator)
        eps = torch.randn(x.shape, generator=generator).to(x)
        condition, null, denoise = self._guided(views)
        sigma = self.guide.sigma(t).to(x)
        if how.kind == "sds":
            return sds(denoise, x, sigma, eps, condition, weighting=how.weighting)
        if self.own is not None:
            own = self.guide.own_condition([self.prompt] * num, views, generator)
            facts["own_loss"] = self.own.learn(
                x, self.guide.sigma(0.001 + 0.998 * self._shares(views, generator)).to(x),
                torch.randn(x.shape, generator=generator).to(x), own,
            )  # fmt: skip
            return vsd(
                denoise, self.guide.own_denoise, x, sigma, eps, condition, own, weighting=how.weighting
            )
        last = torch.maximum(t - ISM_GAP, (how.times.low + t) / 2)
        share = torch.linspace(0, 1, how.path_steps - 1)[:, None]
        times = torch.cat([how.times.low + (last - how.times.low) * share, t[None]])
        levels = torch.stack([self.guide.sigma(each) for each in times]).to(x)
        return ism(
            denoise, self.guide.denoise, x, levels, eps, condition, null, weighting=how.weighting
        )  # fmt: skip

    def _shares(self, views: Views, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Uniform numbers, one a view, or one for all views of a particle where these are joined."""
        num = len(views.azimuth)
        if not self.guide.joins_views:
            return torch.rand(num, generator=generator)
        return torch.rand(num // views.each, generator=generator).repeat_interleave(views.each)

    def _guided(self, views: Views) -> tuple[Any, Any, Denoise[Any]]:
        """The condition, the null condition, and the denoiser under guidance."""
        how, guide, num = self.config.estimator, self.guide, len(views.azimuth)
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

    @torch.no_grad()
    def _add_prior(self, generator: torch.Generator) -> None:
        """Adds the latent prior's own score to the pictures' gradient, both brought to length 1."""
        prior, x = self.pipe.prior, self.subject.leaves[0]
        low, high = prior.network.sigma_range
        place = torch.rand(len(x), generator=generator)
        sigma = torch.exp(math.log(low) + place * math.log(min(high, 2.0) / low)).to(x)
        condition: Condition = prior.condition(self.pipe.clip.text([self.prompt]), batch=len(x))
        denoise = classifier_free(prior.denoise, condition.without(), scale=self.config.guidance_scale)
        eps = torch.randn(x.shape, generator=generator).to(x)
        score = sds(denoise, x, sigma, eps, condition)
        assert x.grad is not None
        x.grad = _unit(x.grad) + self.config.prior_share * _unit(score)

    def state(self) -> dict[str, Tensor]:
        """All that changes from step to step."""
        tensors = {f"leaf.{i}": leaf.detach() for i, leaf in enumerate(self.subject.leaves)}
        optimisers = {"adam": self.optimiser} | ({} if self.own is None else {"own_adam": self.own.optimiser})
        for name, optimiser in optimisers.items():
            for i, values in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{i}.{key}": value for key, value in values.items()}
        if self.own is not None:
            tensors |= {f"own.{i}": part.detach() for i, part in enumerate(self.own.parameters)}
        return {name: value.cpu().contiguous() for name, value in tensors.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what `state` returned."""
        for i, leaf in enumerate(self.subject.leaves):
            leaf.copy_(tensors[f"leaf.{i}"])
        for i, part in enumerate([] if self.own is None else self.own.parameters):
            part.copy_(tensors[f"own.{i}"])
        _load_adam(self.optimiser, tensors, "adam")
        if self.own is not None:
            _load_adam(self.own.optimiser, tensors, "own_adam")


def _load_adam(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], name: str) -> None:
    state = optimiser.state_dict()
    for key, value in tensors.items():
        owner, _, rest = key.partition(".")
        if owner == name:
            number, entry = rest.split(".")
            state["state"].setdefault(int(number), {})[entry] = value
    optimiser.load_state_dict(state)


def _unit(gradient: Tensor) -> Tensor:
    """Each particle's gradient at length 1; none where there is none."""
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient / length.reshape(-1, *(1,) * (gradient.ndim - 1))
