"""Our own text-to-view model as a guide: it knows captions by the run's CLIP, cameras, and pictures.

The views of a particle are asked for together and agree with one another, so they share their noise level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sampling.refine.guides import KnowsCameras, composited, resized
from sampling.refine.rendering import Views
from sampling.views import ViewsConfig, read_object, turn_cameras
from shapeloom.config import UserError
from shapeloom.rendering.cameras import Cameras
from shapeloom.view_diffusion import References, ViewModel, to_picture, trained_noise
from shapeloom.view_network import ViewCondition


def picture_of(path: Path, model: ViewModel, *, elevation: float, matting: Path | None = None) -> References:
    """Returns a picture of an object, cut out or on plain white, as seen from azimuth 0 (+X).

    elevation: degrees. matting: see `sampling.cutouts`.
    Raises UserError for a picture without an object, or a model of captions alone.
    """
    if model.network.shapes.references < 1:
        raise UserError("This view model was trained without pictures to follow; leave `image` out.")
    picture = to_picture(read_object(path, size=model.size, matting=matting))
    view = ViewsConfig(views=1, elevation=elevation)
    return References(picture[None, None], turn_cameras(view, size=model.size))


@dataclass(frozen=True)
class ViewGuide(KnowsCameras):
    """A `Guide` around a `ViewModel`. references: of one object, which all views follow beside the prompt."""

    model: ViewModel
    references: References | None = None
    reads_cameras = True
    sees_alpha = True
    joins_views = True

    @property
    def size(self) -> int:
        """See `Guide`."""
        return self.model.size

    @property
    def digest(self) -> str:
        """See `Guide`."""
        return self.model.digest

    @property
    def network(self) -> nn.Module:
        """See `Guide`."""
        unet: nn.Module = self.model.network.unet
        return unet

    def sigma(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """See `Guide`: the noise level below which a share t of training's were, in the pictures' own units.

        Models that are trained on even times, as Stable Diffusion is, have that already; this one's levels
        lie high, and it knows little of the others.
        """
        return trained_noise(self.model.diffusion, t) * float(self.model.network.conditioner.std)

    def encode(
        self, pictures: Float[Tensor, "batch 4 height width"], background: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Colours on white and alpha, in [-1, 1]; or what the model's VAE makes of them."""
        pictures = resized(pictures, self.size)
        white = composited(pictures, torch.ones_like(background))
        return self.model.encode(2 * torch.cat([white, pictures[:, 3:]], dim=1) - 1)

    def condition(self, prompts: Sequence[str], views: Views) -> ViewCondition:
        """See `Guide`; a particle's prompt is that of its first view."""
        return self._told(list(prompts)[:: views.each], views, self.references)

    def null(self, views: Views) -> ViewCondition:
        """Neither prompt nor pictures; the cameras are told all the same."""
        return self._told(None, views, None)

    def _told(self, captions: list[str] | None, views: Views, references: References | None) -> ViewCondition:
        poses = views.cam_to_world.unflatten(0, (-1, views.each))
        matrices = views.intrinsics.unflatten(0, (-1, views.each)).clone()
        matrices[..., :2, :] *= self.size / views.size
        cameras = Cameras(poses, matrices, self.size, self.size)
        if references is not None:
            num = len(poses)
            at = references.cameras
            references = References(
                references.pictures.expand(num, -1, -1, -1, -1),
                Cameras(
                    at.cam_to_world.expand(num, -1, -1, -1), at.intrinsics.expand(num, -1, -1, -1),
                    at.height, at.width,
                ),
            )  # fmt: skip
        return self.model.condition(captions, cameras=cameras, references=references)

    def denoise(
        self, x: Float[Tensor, "batch channels side side"], sigma: Float[Tensor, " batch"],
        condition: ViewCondition,
    ) -> Float[Tensor, "batch channels side side"]:  # fmt: skip
        """See `Guide`."""
        return self.model.denoise(x, sigma, condition)
