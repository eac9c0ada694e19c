"""What refinement asks of a 2-D diffusion model, whichever it is."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sampling.refine.rendering import Views


@runtime_checkable
class Guide(Protocol):
    """A diffusion model of pictures that follow a prompt; conditions are only handed through."""

    @property
    def size(self) -> int:
        """Side of its pictures in pixels."""

    @property
    def digest(self) -> str:
        """Of its weights."""

    @property
    def reads_cameras(self) -> bool:
        """Whether its conditions say where a picture is taken from; if not, prompts get words for it."""

    @property
    def sees_alpha(self) -> bool:
        """Whether the background is no matter."""

    @property
    def joins_views(self) -> bool:
        """Whether a particle's views are denoised together, at one noise level."""

    @property
    def network(self) -> nn.Module:
        """What `OwnNetwork` gives low-rank changes to."""

    def sigma(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Noise levels sigma / alpha of times in (0, 1) of its own schedule."""

    def encode(
        self, pictures: Float[Tensor, "batch 4 height width"], background: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch ..."]:
        """Returns what it denoises of pictures (premultiplied sRGB, alpha) of any size, differentiable."""

    def condition(self, prompts: Sequence[str], views: Views) -> Any:
        """The condition of a batch: a prompt for each of the views."""

    def null(self, views: Views) -> Any:
        """The condition of a batch without prompts."""

    def denoise(self, x: Tensor, sigma: Float[Tensor, " batch"], condition: Any) -> Tensor:
        """The seam of `diffusion.samplers`."""

    def own_condition(self, prompts: Sequence[str], views: Views, generator: torch.Generator) -> Any:
        """What VSD's own network is told: prompts without words of view, and the cameras."""

    def own_parts(self) -> list[nn.Parameter]:
        """Makes what VSD's own network has besides low-rank changes, such as an embedding of cameras."""

    def own_denoise(self, x: Tensor, sigma: Float[Tensor, " batch"], condition: Any) -> Tensor:
        """`denoise` with what `own_parts` made, differentiable by it and by the network's weights."""


class KnowsCameras:
    """The part of a `Guide` that VSD's own network asks for, of one that is told cameras: as the guide's."""

    condition: Callable[[Sequence[str], Views], Any]
    denoise: Callable[[Tensor, Tensor, Any], Tensor]

    def own_condition(self, prompts: Sequence[str], views: Views, generator: torch.Generator) -> Any:
        """See `Guide`."""
        return self.condition(prompts, views)

    def own_parts(self) -> list[nn.Parameter]:
        """None: cameras have an embedding already."""
        return []

    def own_denoise(self, x: Tensor, sigma: Float[Tensor, " batch"], condition: Any) -> Tensor:
        """See `Guide`."""
        return self.denoise(x, sigma, condition)


def composited(
    pictures: Float[Tensor, "batch 4 height width"], background: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch 3 height width"]:
    """Returns opaque pictures in front of colours."""
    return pictures[:, :3] + background[:, :, None, None] * (1 - pictures[:, 3:])


def resized(
    pictures: Float[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch channels size size"]:
    """Returns pictures of another size, with antialiasing."""
    if pictures.shape[-1] == size:
        return pictures
    return nn.functional.interpolate(
        pictures, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
