"""A volume of what references and captions say, drawn from the cameras of the views that are to be made.

    every voxel's middle, projected into each reference  -> the reference's features there, averaged
    + where it is, + the pooled vector of all conditions -> a small 3-D convolutional network
    density and features of each voxel, summed on rays   -> a map of each view, RGBA among its channels

So the network need not learn from data alone where a point of one picture lies in another, and all views of
an object are drawn from the same thing. This is pixelNeRF (Yu et al. 2021, arXiv 2012.02190) as the condition
of a diffusion model (GeNVS, Chan et al. 2023, arXiv 2304.02602), on voxels: drawing a view costs no network.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shapeloom.box import HIGH, LOW
from shapeloom.rendering.rays import camera_rays, intersect_box

RGBA, OCTAVES = 4, 3
OPACITY, EMPTY = 4.0, -1.0
"""Scale and bias of density: rays through an untrained volume are about half opaque, so all of it learns."""


def projected(
    points: Float[Tensor, "batch num 3"],
    cam_to_world: Float[Tensor, "batch 4 4"],
    intrinsics: Float[Tensor, "batch 3 3"],
    *,
    size: int,
) -> tuple[Float[Tensor, "batch num 2"], Float[Tensor, "batch num"]]:
    """Returns where cameras see points, in [-1, 1] over a picture of `size` pixels a side, and how deep.

    (-1, -1) is the picture's upper left corner (`grid_sample`, align_corners=False). Depth is along the
    camera's z; what is nearer than 0.01, or behind the camera, is seen as if it were there.
    """
    with torch.autocast(points.device.type, enabled=False):  # 8 bits would be pixels
        local = (points - cam_to_world[:, None, :3, 3]) @ cam_to_world[:, :3, :3]
    depth = local[..., 2].clamp_min(0.01)
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)[:, None]
    pixels = local[..., :2] / depth[..., None] * focal + intrinsics[:, None, :2, 2]
    return pixels * (2 / size) - 1, depth


def summed(
    density: Float[Tensor, "*rays samples"], values: Float[Tensor, "*rays samples channels"]
) -> tuple[Float[Tensor, "*rays channels"], Float[Tensor, " *rays"]]:
    """Returns values and opacity along rays (Max 1995). density: times its interval's length."""
    after = density.cumsum(-1)
    weights = torch.exp(density - after) - torch.exp(-after)
    return (weights[..., None] * values).sum(-2), weights.sum(-1)


def middles(side: int, device: torch.device) -> Float[Tensor, "voxels 3"]:
    """Returns where voxels of the box are, x fastest: the order in which `grid_sample` reads a volume."""
    along = LOW + (HIGH - LOW) * (torch.arange(side, device=device) + 0.5) / side
    z, y, x = torch.meshgrid(along, along, along, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


class ReferenceVolume(nn.Module):
    """References and a vector of all conditions to a volume, and this to a map of each view."""

    def __init__(self, *, size: int, side: int, width: int, context_width: int) -> None:
        """size: of the pictures. side: voxels, even. width: features of a voxel, its colour among them."""
        super().__init__()
        self.size, self.side = size, side
        self.near = nn.Sequential(
            nn.Conv2d(RGBA, width, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.far = nn.Conv2d(context_width, width, 1)
        self.depth = nn.Linear(1, width, bias=False)
        self.place = nn.Linear(3 * (1 + 2 * OCTAVES), width)
        self.whole = nn.Linear(context_width, width)
        self.point = nn.Linear(width, width)
        self.down = nn.Conv3d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse = nn.Conv3d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv3d(2 * width, width, 1)
        self.fine = nn.Conv3d(width, width, 3, padding=1)
        self.out = nn.Conv3d(width, 1 + width, 1)

    def forward(
        self,
        references: Float[Tensor, "batch references 4 size size"],
        cam_to_world: Float[Tensor, "batch references 4 4"],
        intrinsics: Float[Tensor, "batch references 3 3"],
        there: Bool[Tensor, "batch references"],
        tokens: Float[Tensor, "batch references cells cells context_width"],
        vector: Float[Tensor, "batch context_width"],
    ) -> Float[Tensor, "batch channels side side side"]:
        """Returns each object's volume: density, then features of which the first three are a colour.

        tokens: what is known of each reference's patches. vector: of all conditions.
        """
        points = middles(self.side, references.device)
        seen = self._seen(references, cam_to_world, intrinsics, tokens, points)
        # Without references a voxel knows where it is and the vector: one reference that shows nothing.
        share = there.to(seen.dtype)[..., None, None]
        known = F.silu(self.place(waves(points)) + self.whole(vector)[:, None, None] + seen * share)
        share = torch.where(there.any(1)[:, None, None, None], share, torch.ones_like(share))
        x = self.point((known * share).sum(1) / share.sum(1))
        x = x.transpose(1, 2).unflatten(2, (self.side,) * 3)
        coarse = self.up(F.silu(self.coarse(F.silu(self.down(F.silu(x))))))
        x = F.silu(x + F.interpolate(coarse, scale_factor=2.0, mode="trilinear"))
        return self.out(F.silu(x + self.fine(x)))

    def _seen(
        self, references: Tensor, cam_to_world: Tensor, intrinsics: Tensor, tokens: Tensor, points: Tensor
    ) -> Float[Tensor, "batch references voxels width"]:
        """Each reference's features at the pixels where voxels are seen, and how deep these are."""
        batch, num = references.shape[:2]
        poses, pictures = cam_to_world.flatten(0, 1), references.flatten(0, 1)
        features = self.near(pictures)
        far = self.far(tokens.flatten(0, 1).permute(0, 3, 1, 2))
        features = features + F.interpolate(far, size=features.shape[-2:], mode="bilinear")
        at, depth = projected(
            points.expand(len(poses), -1, -1), poses, intrinsics.flatten(0, 1), size=self.size
        )
        found = F.grid_sample(
            features, at[:, None].to(features.dtype), padding_mode="border", align_corners=False
        )
        beyond = depth - poses[:, :3, 3].norm(dim=-1)[:, None]
        return (found[:, :, 0].transpose(1, 2) + self.depth(beyond[..., None])).unflatten(0, (batch, num))

    def drawn(
        self, volume: Float[Tensor, "batch channels side side side"],
        cam_to_world: Float[Tensor, "batch views 4 4"],
        intrinsics: Float[Tensor, "batch views 3 3"], *, cells: int,
    ) -> Float[Tensor, "rows channels cells cells"]:  # fmt: skip
        """Returns maps of `cells` pixels a side, a row a view: RGBA on white in [-1, 1], then features."""
        scaled, samples = intrinsics.clone(), max(4, 2 * self.side // 3)
        scaled[..., :2, :] *= cells / self.size
        origins, directions, _ = camera_rays(cam_to_world, scaled, cells, cells)
        near, far, _ = intersect_box(origins.expand_as(directions), directions)
        interval = (far - near) / samples
        t = near[..., None] + interval[..., None] * (torch.arange(samples, device=near.device) + 0.5)
        points = origins[..., None, :] + t[..., None] * directions[..., None, :]
        found = F.grid_sample(
            volume, points.flatten(1, 2).to(volume.dtype), padding_mode="border", align_corners=False
        )
        found = found.permute(0, 2, 3, 4, 1).unflatten(1, points.shape[1:3]).flatten(0, 1)
        length = interval.flatten(0, 1)[..., None]
        density = F.softplus(OPACITY * found[..., 0] + EMPTY) * OPACITY * length
        features, alpha = summed(density, found[..., 1:])
        colours = features[..., :3] + (1 - alpha[..., None])
        rgba = 2 * torch.cat([colours, alpha[..., None]], dim=-1) - 1
        return torch.cat([rgba, features[..., 3:]], dim=-1).permute(0, 3, 1, 2)


def waves(x: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch features"]:
    """Returns the numbers and their sines and cosines in OCTAVES octaves from a period of 4 on."""
    angles = (x[..., None] * (0.5 * math.pi * 2 ** torch.arange(OCTAVES, device=x.device))).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)
