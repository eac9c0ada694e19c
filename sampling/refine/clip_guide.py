"""A CLIP as what refinement follows: pictures that fit the prompt. No diffusion model, and no noise.

    x     pictures in front of a background, sRGB in [0, 1]: [batch, 3, side, side]
    cos   cosine of CLIP's vectors of a picture and of the prompt

The gradient is that of -cos, a mean over views (Jain et al. 2022, "Dream Fields"). Pictures can please a CLIP
and nobody else. Here a latent that moves stays a shape that the decoder knows, the latent prior's own score
can be added (`prior_share`), and another CLIP judges.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sampling.refine.guides import composited, resized
from shapeloom.clip import Clip


@dataclass(frozen=True)
class ClipGuide:
    """Stands where a `Guide` stands, and is asked for `gradient` instead of expected pictures."""

    clip: Clip
    sees_alpha = False

    @property
    def size(self) -> int:
        """Side of its pictures in pixels."""
        return self.clip.image_size

    @property
    def digest(self) -> str:
        """Of its weights."""
        return self.clip.digest

    def encode(
        self, pictures: Float[Tensor, "batch 4 height width"], background: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch 3 side side"]:
        """Returns what it sees of pictures (premultiplied sRGB, alpha) of any size, differentiable."""
        return composited(resized(pictures, self.size), background)

    def gradient(
        self, x: Float[Tensor, "batch 3 side side"], prompt: str
    ) -> tuple[Float[Tensor, "batch 3 side side"], float]:
        """Returns the slope of -cos, times the numbers of a picture, and the mean cosine.

        So the mean over all numbers of gradient times change is the change of the mean of -cos.
        """
        wanted = self.clip.text([prompt]).pooled[0]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            cosine = self.clip.differentiable_image(leaf.movedim(1, -1)) @ wanted
            (slope,) = torch.autograd.grad(-cosine.sum(), leaf)
        return slope * x[0].numel(), float(cosine.detach().mean())
