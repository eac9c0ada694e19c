"""The style of a picture by reference statistics: mean and covariance of small patches' colours; no network.

A picture's patches (3 x 3 pixels, at full and at half size) are taken for samples of a Gaussian N(mu, C),
those of an object's renders for samples of another, N(m, D). Both have exact denoisers,

    x_hat(z, sigma) = mu + C (C + sigma^2)^-1 (z - mu)

and VSD between them (`shapeloom.diffusion.distillation`) vanishes where mean and covariance agree. The
denoisers are affine in z, so that eps = 0 gives the estimator's expectation over the noise.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from sampling.cutouts import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, read_picture
from shapeloom.config import UserError
from shapeloom.diffusion.distillation import vsd

PATCH = 3
SCALES = (1, 2)
LEVELS = (0.05, 0.15, 0.5)
"""Noise levels at which the statistics are compared, in units of colours in [0, 1]."""
INSIDE = 0.95
"""Alpha of all of a patch's pixels, at least: edges mix in the background."""
LEAST_PATCHES = 64
"""Fewer say nothing of a covariance of 27 numbers."""


@dataclass(frozen=True)
class Statistics:
    """A Gaussian of patches: its mean, and its covariance's variances along orthonormal axes (columns)."""

    mean: Float[Tensor, " numbers"]
    variance: Float[Tensor, " numbers"]
    axes: Float[Tensor, "numbers numbers"]

    @classmethod
    def of(cls, patches: Float[Tensor, "patches numbers"]) -> "Statistics":
        """Those of two or more patches."""
        mean = patches.mean(0)
        centred = patches - mean
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(patches))
        return cls(mean, variance.clamp_min(0), axes)

    def distance(self, other: "Statistics") -> float:
        """Returns the Wasserstein-2 distance of two Gaussians (Frechet's): a colour's, root mean square."""
        root = (self.axes * self.variance.sqrt()) @ self.axes.T
        inner = root @ (other.axes * other.variance) @ other.axes.T @ root
        shared = torch.linalg.eigvalsh(inner).clamp_min(0).sqrt().sum()
        spread = self.variance.sum() + other.variance.sum() - 2 * shared
        squared = (self.mean - other.mean).square().sum() + spread
        return float((squared.clamp_min(0) / len(self.mean)).sqrt())


def gaussian(
    z: Float[Tensor, "patches numbers"], sigma: Float[Tensor, " patches"], known: Statistics
) -> Float[Tensor, "patches numbers"]:
    """Returns the expected patch x of z = x + sigma eps: the seam of `diffusion.samplers`."""
    share = known.variance / (known.variance + sigma[:, None] ** 2)
    return known.mean + ((z - known.mean) @ known.axes * share) @ known.axes.T


def patches_of(
    pictures: Float[Tensor, "views 4 height width"], scale: int
) -> tuple[Float[Tensor, "patches numbers"], Bool[Tensor, " patches"]]:
    """Returns all patches' colours at 1/scale of the size, and which lie within the object."""
    small = F.avg_pool2d(pictures, scale)
    colours, alpha = (F.unfold(part, PATCH).movedim(1, 2).flatten(0, 1) for part in small.split([3, 1], 1))
    return colours, alpha.amin(1) >= INSIDE


class Style:
    """What pulls renders to a picture's statistics.

    picture: premultiplied sRGB and alpha in [0, 1], as large as the renders; where it is see-through it
    doesn't count. Raises UserError for one with hardly any pixels.
    """

    def __init__(self, picture: Float[Tensor, "4 height width"]) -> None:
        self._known = {}
        for scale in SCALES:
            patches, inside = patches_of(picture[None].double(), scale)
            if inside.sum() < LEAST_PATCHES:
                raise UserError(
                    "The picture of a style is see-through (nearly) all over: there is no look in it."
                )
            self._known[scale] = Statistics.of(patches[inside])

    def slope(
        self, pictures: Float[Tensor, "views 4 height width"]
    ) -> tuple[Float[Tensor, "views 4 height width"], float]:
        """Returns the gradient by one object's pictures, and how far their statistics are from the style's.

        The distance is that of full size; nan, and the gradient 0, where too little of the object is seen.
        """
        leaf, distance = pictures.detach().double().requires_grad_(), float("nan")
        for scale, known in self._known.items():
            with torch.enable_grad():
                patches, inside = patches_of(leaf, scale)
            if inside.sum() < LEAST_PATCHES:
                continue
            x = patches.detach()[inside]
            own, pull = Statistics.of(x), torch.zeros_like(patches)
            for level in LEVELS:
                sigma = x.new_full((len(x),), level)
                pull[inside] += vsd(gaussian, gaussian, x, sigma, torch.zeros_like(x), known, own)
            patches.backward(pull / len(x))
            if scale == 1:
                distance = own.distance(known)
        gradient = torch.zeros_like(pictures) if leaf.grad is None else leaf.grad.to(pictures)
        return gradient, distance


def read_style(path: Path, *, size: int) -> Style:
    """Returns the style of a PNG or JPEG, all of it that isn't see-through.

    size: of the renders; the picture's shorter side is brought to it, so that its grain is a render's.
    """
    rgba = read_picture(path, name=str(path), max_bytes=MAX_IMAGE_BYTES, max_pixels=MAX_IMAGE_PIXELS)
    return Style(_resized(rgba, size))


def _resized(rgba: UInt8[np.ndarray, "height width 4"], size: int) -> Float[Tensor, "4 h w"]:
    image = Image.fromarray(rgba).convert("RGBa")  # premultiplied
    factor = size / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    small = np.array(image.resize((width, height), Image.Resampling.BOX))
    return torch.from_numpy(small.astype(np.float32) / 255).permute(2, 0, 1)
