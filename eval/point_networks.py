"""Networks of coloured point clouds whose features papers report, in the layouts of their published files.

    PointNet2   PointNet++ with single-scale grouping (Qi et al. 2017), as Point-E's P-FID has it: twice as
                wide, without normals; 512 features, after the last batch norm and before its ReLU
    Ulip2       ULIP-2's PointBERT (Yu et al. 2022; Xue et al. 2024): 512 patches of 32 points in 12 layers
                (positions alone) or 18 (with colours); a shape's vector in the space of its CLIP
    Uni3d       Uni3D (Zhou et al. 2024): 512 patches of 64 coloured points in a vision transformer (timm's
                EVA, without its rotary positions); a shape's vector in the space of EVA02-E-14+

Clouds are [batch, points, 6]: positions in the project's frame (+Z up), then sRGB in [0, 1]; whatever their
scale, they are centred on their mean and scaled to a largest radius of 1. Centres of patches are farthest
points from the first one. The last two want +Y up, and never choose a point within RADIUS_LEFT_OUT of the
centre, as the kernel that they were trained with.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

RADIUS_LEFT_OUT = 1e-3**0.5
NUM_PATCHES = 512
UNI3D_EMBED = 1024
UNI3D_SIZES = {
    192: ("Ti", "eva02_tiny_patch14_224"),
    384: ("S", "eva02_small_patch14_224"),
    768: ("B", "eva02_base_patch14_448"),
    1024: ("L", "eva02_large_patch14_448"),
    1408: ("g", "eva_giant_patch14_560"),
}
"""Width of a checkpoint's tokens -> the paper's name of its size, and timm's of its transformer."""


# ---------------------------------------------------------------- clouds


def centred(xyz: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
    """Returns positions about their mean, of a largest radius of 1; zeros where all are one point."""
    xyz = xyz - xyz.mean(dim=1, keepdim=True)
    radius = xyz.norm(dim=2).amax(dim=1)[:, None, None]
    return torch.where(radius < 1e-6, 0.0, xyz / radius.clamp(min=1e-6))


def farthest(
    xyz: Float[Tensor, "b n 3"], num: int, *, left_out: Bool[Tensor, "b n"] | None = None
) -> Int[Tensor, "b num"]:
    """Returns the numbers of points, each the farthest from those before it; the first is number 0.

    left_out: points that are chosen only where there are no others.
    """
    distance = torch.full(xyz.shape[:2], torch.inf)
    if left_out is not None:
        distance[left_out] = -1
    chosen = torch.zeros(len(xyz), num, dtype=torch.long)
    for i in range(1, num):
        last = pick(xyz, chosen[:, i - 1 : i])
        distance = torch.minimum(distance, (xyz - last).square().sum(dim=2))
        chosen[:, i] = distance.argmax(dim=1)
    return chosen


def pick(values: Float[Tensor, "b n c"], index: Int[Tensor, "b m *k"]) -> Float[Tensor, "b m *k c"]:
    """Returns the rows of each cloud that are numbered by `index`."""
    batch = torch.arange(len(values)).view(-1, *[1] * (index.ndim - 1))
    return values[batch, index]


def in_ball(
    xyz: Float[Tensor, "b n 3"], centres: Float[Tensor, "b m 3"], *, radius: float, num: int
) -> Int[Tensor, "b m num"]:
    """Returns the first `num` points, in the cloud's order, within the radius; the first again for fewer.

    A centre is one of the points, so that each has one.
    """
    near = torch.cdist(centres, xyz, compute_mode="donot_use_mm_for_euclid_dist") <= radius
    order = torch.where(near, torch.arange(xyz.shape[1]), xyz.shape[1]).sort(dim=2).values[..., :num]
    return torch.where(order < xyz.shape[1], order, order[..., :1])


# ---------------------------------------------------------------- PointNet++


class SetAbstraction(nn.Module):
    """What is near each of some points, by the largest of a small network's features; or of all points."""

    def __init__(self, widths: list[int], *, centres: int = 0, radius: float = 0.0, num: int = 0) -> None:
        """widths: of the input without positions, then of each layer. centres: 0: one for all points."""
        super().__init__()
        before = [widths[0] + 3, *widths[1:-1]]
        layers = list(zip(before, widths[1:], strict=True))
        self.mlp_convs = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in layers])
        self.mlp_bns = nn.ModuleList([nn.BatchNorm2d(b) for _, b in layers])
        self.centres, self.radius, self.num = centres, radius, num

    def forward(
        self, xyz: Float[Tensor, "b n 3"], features: Float[Tensor, "b n c"]
    ) -> tuple[Float[Tensor, "b m 3"], Float[Tensor, "b m d"]]:
        """Returns the centres and their features."""
        if self.centres:
            centres = pick(xyz, farthest(xyz, self.centres))
            index = in_ball(xyz, centres, radius=self.radius, num=self.num)
            near = torch.cat([pick(xyz, index) - centres[:, :, None], pick(features, index)], dim=3)
        else:
            centres = torch.zeros(len(xyz), 1, 3)
            near = torch.cat([xyz, features], dim=2)[:, None]
        x = near.permute(0, 3, 2, 1)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = norm(conv(x)).relu()
        return centres, x.amax(dim=2).transpose(1, 2)


class PointNet2(nn.Module):
    """The classifier of 40 classes whose features P-FID is of."""

    def __init__(self, width: int = 2, *, centres: tuple[int, int] = (512, 128)) -> None:
        super().__init__()
        w = width
        self.sa1 = SetAbstraction([0, 64 * w, 64 * w, 128 * w], centres=centres[0], radius=0.2, num=32)
        self.sa2 = SetAbstraction(
            [128 * w, 128 * w, 128 * w, 256 * w], centres=centres[1], radius=0.4, num=64
        )
        self.sa3 = SetAbstraction([256 * w, 256 * w, 512 * w, 1024 * w])
        self.fc1, self.bn1 = nn.Linear(1024 * w, 512 * w), nn.BatchNorm1d(512 * w)
        self.fc2, self.bn2 = nn.Linear(512 * w, 256 * w), nn.BatchNorm1d(256 * w)
        self.fc3 = nn.Linear(256 * w, 40)  # of the file's layout; the features lie before it

    def forward(self, clouds: Float[Tensor, "b n 6"]) -> Float[Tensor, "b features"]:
        """Returns a vector a cloud, of positions alone."""
        xyz = centred(clouds[..., :3])
        features = xyz[..., :0]
        for layer in (self.sa1, self.sa2, self.sa3):
            xyz, features = layer(xyz, features)
        return self.bn2(self.fc2(self.bn1(self.fc1(features[:, 0])).relu()))


# ---------------------------------------------------------------- transformers over patches


class PatchEncoder(nn.Module):
    """A patch's points to one vector, whatever their order."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(channels, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, width, 1)
        )

    def forward(self, patches: Float[Tensor, "b g n c"]) -> Float[Tensor, "b g width"]:
        """Returns a vector a patch."""
        x = self.first_conv(patches.flatten(0, 1).transpose(1, 2))
        whole = x.amax(dim=2, keepdim=True).expand_as(x)
        x = self.second_conv(torch.cat([whole, x], dim=1))
        return x.amax(dim=2).unflatten(0, patches.shape[:2])


class PatchTransformer(nn.Module):
    """Tokens of patches and their positions, after one of the whole cloud."""

    def __init__(
        self, width: int, *, channels: int, patch_width: int, patches: int, points_per_patch: int
    ) -> None:
        super().__init__()
        self.encoder = PatchEncoder(channels, patch_width)
        self.cls_token, self.cls_pos = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.channels, self.patches, self.points_per_patch = channels, patches, points_per_patch

    def tokens(
        self, clouds: Float[Tensor, "b n 6"], widen: nn.Linear
    ) -> tuple[Float[Tensor, "b t width"], Float[Tensor, "b t width"]]:
        """Returns tokens and positions, the whole cloud's first. widen: from a patch's width to theirs."""
        x, y, z = centred(clouds[..., :3]).unbind(dim=2)
        xyz = torch.stack([x, z, -y], dim=2)
        chosen = farthest(xyz, self.patches, left_out=xyz.norm(dim=2) <= RADIUS_LEFT_OUT)
        centres = pick(xyz, chosen)
        distance = torch.cdist(centres, xyz, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.topk(self.points_per_patch, dim=2, largest=False).indices
        near = torch.cat([pick(xyz, nearest) - centres[:, :, None], pick(clouds[..., 3:], nearest)], dim=3)
        own = widen(self.encoder(near[..., : self.channels]))
        first, place = (each.expand(len(xyz), -1, -1) for each in (self.cls_token, self.cls_pos))
        return torch.cat([first, own], dim=1), torch.cat([place, self.pos_embed(centres)], dim=1)


class Ulip2(PatchTransformer):
    """PointBERT: positions are added before every layer, and patches' largest features count too."""

    def __init__(
        self, *, depth: int, channels: int, embed: int, width: int = 384, heads: int = 6,
        patches: int = NUM_PATCHES, points_per_patch: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(
            width, channels=channels, patch_width=256, patches=patches, points_per_patch=points_per_patch
        )
        self.reduce_dim = nn.Linear(256, width)
        layers = [Block(width, heads, qkv_bias=False, norm_layer=nn.LayerNorm) for _ in range(depth)]
        self.blocks = nn.ModuleDict({"blocks": nn.ModuleList(layers)})
        self.norm = nn.LayerNorm(width)
        self.pc_projection = nn.Parameter(torch.zeros(2 * width, embed))

    def forward(self, clouds: Float[Tensor, "b n 6"]) -> Float[Tensor, "b embed"]:
        """Returns a vector a cloud, in the space of the CLIP that it was trained beside."""
        x, positions = self.tokens(clouds, self.reduce_dim)
        blocks: Any = self.blocks["blocks"]
        for block in blocks:
            x = block(x + positions)
        x = self.norm(x)
        return torch.cat([x[:, 0], x[:, 1:].amax(dim=1)], dim=1) @ self.pc_projection


class Uni3d(PatchTransformer):
    """Patches in the place of a picture's, in a vision transformer."""

    def __init__(
        self, trunk: nn.Module, width: int, *, embed: int = UNI3D_EMBED, patches: int = NUM_PATCHES,
        points_per_patch: int = 64,
    ) -> None:  # fmt: skip
        """trunk: timm's EVA, of whose parts those that know pictures are left out."""
        super().__init__(
            width, channels=6, patch_width=512, patches=patches, points_per_patch=points_per_patch
        )
        self.encoder2trans, self.trans2embed = nn.Linear(512, width), nn.Linear(width, embed)
        parts = {name: getattr(trunk, name) for name in ("blocks", "norm", "fc_norm")}
        self.visual = nn.ModuleDict(parts)

    def forward(self, clouds: Float[Tensor, "b n 6"]) -> Float[Tensor, "b embed"]:
        """Returns a vector a cloud, in the space of EVA02-E-14+."""
        tokens, positions = self.tokens(clouds, self.encoder2trans)
        x = tokens + positions
        blocks: Any = self.visual["blocks"]
        for block in blocks:
            x = block(x)
        return self.trans2embed(self.visual["fc_norm"](self.visual["norm"](x[:, 0])))
