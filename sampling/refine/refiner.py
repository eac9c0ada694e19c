"""One step of a refinement: cameras, pictures, the 2-D model's gradient, and Adam.

All randomness is a function of the seed and the step's number, so that a run that was killed goes on as if it
hadn't been.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sampling.pipeline import ShapePipeline
from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.rendering import distil, random_views, rays_of
from sampling.refine.state import make_optimiser, pack, unpack
from sampling.refine.subject import Subject
from sampling.shape import ShapeSample
from shapeloom.decoder import with_field
from shapeloom.denoising import Condition
from shapeloom.diffusion.distillation import sds
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.fields.unlit import UnlitField
from shapeloom.noise import torch_generator


class Refiner:
    """A few shapes on their way to what a 2-D model expects of a prompt."""

    def __init__(
        self, pipe: ShapePipeline, starts: list[ShapeSample], distiller: Distiller, config: RefineConfig
    ) -> None:
        self.pipe, self.distiller, self.config = pipe, distiller, config
        self.subject = Subject(starts, pipe.prior, config)
        self.optimiser = make_optimiser([(self.subject.leaves, config.rate)])
        decoder = self.subject.decoder
        self.unlit = with_field(decoder, UnlitField(decoder.field))

    def step(self, number: int) -> dict[str, float]:
        """Moves the shapes once; returns what metrics.jsonl says of it."""
        config, subject = self.config, self.subject
        generator = torch_generator("refine", config.seed, number)
        views = random_views(
            config.cameras, len(subject.starts), config.views, size=self.distiller.size, generator=generator
        )
        rays = rays_of(views).to(subject.before[0].device)
        facts: dict[str, float] = {}
        progress = number / max(1, config.iterations - 1)

        def slope(pictures: Tensor) -> Tensor:
            return self.distiller.slope(pictures, views, progress, generator, facts)

        weights = subject.weights()
        unlit = config.optimise == "matrices" and float(torch.rand((), generator=generator)) < config.unlit
        decoder = self.unlit if unlit else subject.decoder
        gradients = distil(decoder, weights, rays, config.samples, slope, at_once=config.rays_at_once)
        self.optimiser.zero_grad()
        moving = [(w, g) for w, g in zip(weights, gradients, strict=True) if w.requires_grad]
        torch.autograd.backward([w for w, _ in moving], [g for _, g in moving])
        if config.prior_weight:
            self._add_prior(generator)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate * (1 - number / config.iterations)
        self.optimiser.step()
        subject.constrain()
        return facts

    @torch.no_grad()
    def _add_prior(self, generator: torch.Generator) -> None:
        """Adds the latent prior's own score to the pictures' gradient, both brought to length 1."""
        prior, x = self.pipe.prior, self.subject.leaves[0]
        low, high = prior.network.sigma_range
        place = torch.rand(len(x), generator=generator)
        sigma = torch.exp(math.log(low) + place * math.log(min(high, 2.0) / low)).to(x)
        condition: Condition = prior.condition(self.pipe.clip.text([self.distiller.prompt]), batch=len(x))
        denoise = classifier_free(prior.denoise, condition.without(), scale=self.config.guidance_scale)
        eps = torch.randn(x.shape, generator=generator).to(x)
        score = sds(denoise, x, sigma, eps, condition)
        assert x.grad is not None
        x.grad = _unit(x.grad) + self.config.prior_weight * _unit(score)

    def state(self) -> dict[str, Tensor]:
        """All that changes from step to step."""
        return pack(self.subject.leaves, self.optimiser, self.distiller.own)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what `state` returned."""
        unpack(tensors, self.subject.leaves, self.optimiser, self.distiller.own)

    def pictures(self, pose: Float[Tensor, "1 4 4"], size: int) -> list[UInt8[np.ndarray, "size size 3"]]:
        """Returns each particle as it is now, seen from a camera."""
        return [shape.render(pose, None, size, size)[0] for shape in self.subject.shapes("")]


def _unit(gradient: Tensor) -> Tensor:
    """Each particle's gradient at length 1; none where there is none."""
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient / length.reshape(-1, *(1,) * (gradient.ndim - 1))
