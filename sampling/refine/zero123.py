"""Zero-1-to-3's published layout as a guide: one picture of an object, and what its other sides may be.

The picture is taken from azimuth 0 (+X), and shows the object as large as a render at distance 1 does: the
pose is relative, so that equal sizes stand for equal distances. Distances are told in units of the object's
size. It knows no prompts, and its pictures are on white.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sampling.refine.guides import KnowsCameras, composited, resized
from sampling.refine.rendering import Views
from sampling.views import ZERO123_SIZE, ViewsConfig, read_object, turn_cameras
from shapeloom.box import ASSET_HALF_SIZE
from shapeloom.diffusion.discrete import DiscreteSchedule
from shapeloom.runs import text_digest
from shapeloom.storage import file_digest
from shapeloom.view_diffusion import to_picture
from shapeloom.zero123 import FILES, PARTS, Zero123, Zero123Condition, load_zero123, pose_difference


class Zero123Guide(KnowsCameras):
    """A `Guide` around Zero-1-to-3.

    picture: of the object, in [-1, 1] on white; its side is the side of the model's pictures.
    elevation: of the picture's camera, degrees.
    """

    reads_cameras, joins_views = True, False
    sees_alpha = True  # what it is shown lies on white, whatever is asked for

    def __init__(
        self, model: Zero123, picture: Float[Tensor, "3 size size"], *, elevation: float, digest: str = ""
    ) -> None:
        self.model, self.digest, self.size = model, digest, picture.shape[-1]
        self.schedule = DiscreteSchedule(model.process.alphas_cumprod)
        self.network: nn.Module = model.networks.unet
        self._seen = model.look(picture[None])
        taken = turn_cameras(ViewsConfig(views=1, elevation=elevation), size=self.size)
        self._given = taken.cam_to_world[0]

    def sigma(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """See `Guide`; of the nearest whole step."""
        return (self.schedule.sigma(t) / self.schedule.alpha(t)).float()

    def encode(
        self, pictures: Float[Tensor, "batch 4 height width"], background: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch 4 side side"]:
        """Scaled latents of pictures on white (their distribution's mode)."""
        shown = composited(resized(pictures, self.size), torch.ones_like(background))
        return self.model.encode(2 * shown - 1)

    def condition(self, prompts: Sequence[str], views: Views) -> Zero123Condition:
        """See `Guide`; prompts are no matter."""
        num = len(views.azimuth)
        clip, latent = (each.expand(num, *each.shape[1:]) for each in self._seen)
        poses = [self._given.expand(num, 4, 4).clone(), views.cam_to_world.cpu().clone()]
        for pose in poses:
            pose[:, :3, 3] /= 2 * ASSET_HALF_SIZE
        return self.model.told(clip, latent, pose_difference(*poses))

    def null(self, views: Views) -> Zero123Condition:
        """Nothing is shown."""
        nothing = self.condition([], views).negative
        assert nothing is not None
        return nothing

    def denoise(
        self, x: Float[Tensor, "batch 4 side side"], sigma: Float[Tensor, " batch"],
        condition: Zero123Condition,
    ) -> Float[Tensor, "batch 4 side side"]:  # fmt: skip
        """See `Guide`."""
        return self.model.denoise(x, sigma, condition)


def is_zero123(path: Path) -> bool:
    """Whether a path may be Zero-1-to-3's weights: a single file, or a folder that projects poses."""
    return path.is_file() or (path / "cc_projection").is_dir()


def load_zero123_guide(
    path: Path, image: Path, *, elevation: float, matting: Path | None, device: torch.device | str
) -> Zero123Guide:
    """Loads weights and a picture; raises UserError for what is none."""
    rgba = read_object(image, size=ZERO123_SIZE, matting=matting)
    model = load_zero123(path, device)
    files = [path] if path.is_file() else [path / part / name for part in PARTS for name in FILES]
    digest = text_digest(" ".join(file_digest(file) for file in files if file.is_file()))
    return Zero123Guide(model, to_picture(rgba)[:3], elevation=elevation, digest=digest)
