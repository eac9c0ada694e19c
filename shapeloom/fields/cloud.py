"""A field regressed from a cloud of coloured points: Point-E's step to a mesh (Nichol et al. 2022).

The latent is the cloud itself, one token a point, in no order: place in the box [-1, 1]^3, and sRGB as
2 rgb - 1. Signed distances come from the places alone, as there, but by a network that a CPU can train:
points are gathered at the nodes of a grid, a small U-Net of convolutions looks around (Peng et al. 2020,
"Convolutional Occupancy Networks"), and what it says, interpolated, with the distances to the nearest points,
becomes a signed distance. Colours are the nearest point's, unlit.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.box import LOW, SIDE
from shapeloom.config import Config
from shapeloom.fields.heads import Color, Directions, Geometry
from shapeloom.fields.projection import FieldWeights, LatentLayout

CHANNELS = 6
NEIGHBOURS = 4
BETA = 0.01
"""Half width of a surface in volume renders, in the box's units; nothing learns it."""


class CloudFieldConfig(Config):
    """The cloud's size and the network's."""

    num_points: int = Key(256, ge=16, le=16384, description="tokens of a latent: a point each")
    grid: int = Key(16, ge=4, le=128, multiple_of=4, description="nodes a side that points are gathered at")
    width: int = Key(
        16, ge=4, le=1024, multiple_of=4, description="channels of the finest grid; coarser ones have more"
    )
    hidden: int = Key(64, ge=4, le=1024, description="width of the layers that say a distance")

    @property
    def layout(self) -> LatentLayout:
        """A token a point."""
        return LatentLayout((self.num_points,), CHANNELS, is_set=True)


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    layer = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)
    return nn.Sequential(layer, nn.GroupNorm(4, outputs), nn.SiLU())


class CloudProjection(nn.Module):
    """A cloud to [the cloud, features at the grid's nodes], the second one [batch, width, nodes]."""

    def __init__(self, config: CloudFieldConfig) -> None:
        super().__init__()
        self.side, width = config.grid, config.width
        self.inp = _convolution(4, width)
        self.down = nn.ModuleList([_convolution(width * s, width * s * 2, stride=2) for s in (1, 2)])
        self.middle = _convolution(4 * width, 4 * width)
        self.up = nn.ModuleList([_convolution(width * s * 3, width * s) for s in (2, 1)])

    def forward(self, latent: Float[Tensor, "batch points 6"]) -> FieldWeights:
        """Returns what the field has of each cloud."""
        levels = [self.inp(gather(latent[..., :3], self.side))]
        for layer in self.down:
            levels.append(layer(levels[-1]))
        x = levels.pop()
        x = x + self.middle(x)
        for layer in self.up:
            finer = levels.pop()
            x = layer(torch.cat([F.interpolate(x, size=finer.shape[2:]), finer], dim=1))
        return [latent, x.flatten(2)]


class CloudField(nn.Module):
    """The field of a batch of clouds: see `shapeloom.fields.heads.Field`."""

    def __init__(self, config: CloudFieldConfig) -> None:
        super().__init__()
        self.side = config.grid
        self.layers = nn.Sequential(
            nn.Linear(config.width + NEIGHBOURS, config.hidden), nn.SiLU(),
            nn.Linear(config.hidden, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 2),
        )  # fmt: skip

    def forward(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """Returns everything."""
        return self.geometry(weights, points), self.color(weights, points)

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """Returns density, which has no offset or sharpness of its own, and signed distance."""
        cloud, features = weights
        grid = features.unflatten(2, (self.side,) * 3)
        # Nodes are [x, y, z]; grid_sample counts the last axis first.
        at = points.flip(-1)[:, :, None, None]
        near = F.grid_sample(grid, at, align_corners=True)[:, :, :, 0, 0].transpose(1, 2)
        nearest = torch.cdist(points, cloud[..., :3]).topk(NEIGHBOURS, dim=-1, largest=False).values
        side, correction = self.layers(torch.cat([near, nearest], dim=-1)).float().unbind(-1)
        # The nearest point says how far the surface is, but for gaps; which side of it has to be learnt.
        sdf = torch.tanh(side) * nearest[..., 0] + 0.1 * correction
        return Geometry(density=torch.sigmoid(-sdf / BETA) / BETA, sdf=sdf)

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """Returns the nearest point's colour, lit and bare alike."""
        cloud = weights[0]
        index = torch.cdist(points, cloud[..., :3]).argmin(dim=-1)
        rgb = (cloud[..., 3:].gather(1, index[..., None].expand(-1, -1, 3)).float() + 1) / 2
        return Color(rgb=rgb.clamp(0, 1), texture=rgb.clamp(0, 1))

    def sdf_and_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """Returns the signed distance and its gradient by position; the gradient has none of its own."""
        with torch.enable_grad():
            places = points.detach().requires_grad_()
            sdf = self.geometry(weights, places).sdf
            (gradient,) = torch.autograd.grad(sdf.sum(), places, retain_graph=sdf.requires_grad)
        return (sdf if torch.is_grad_enabled() else sdf.detach()), gradient


def gather(points: Float[Tensor, "batch points 3"], side: int) -> Float[Tensor, "batch 4 side side side"]:
    """Returns at each node of a grid over the box how many points are near, and where from it they lie.

    A point is shared out among the eight nodes around it by trilinear weights, which sum to one; channel 0 is
    the sum of weights, the others the weighted mean offset in cells. Nodes without points are 0.
    """
    batch = points.shape[0]
    place = ((points - LOW) / SIDE * (side - 1)).clamp(0, side - 1)
    corner = place.floor().clamp(max=side - 2)
    total = points.new_zeros(batch, side**3, 4)
    for shift in torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3):
        node = corner + shift
        offset = place - node
        weight = (1 - offset.abs()).prod(dim=-1, keepdim=True)
        index = (node.long() * torch.tensor([side * side, side, 1], device=points.device)).sum(-1)
        values = torch.cat([weight, weight * offset], dim=-1)
        total = total.scatter_add(1, index[..., None].expand(-1, -1, 4), values)
    mean = total[..., 1:] / total[..., :1].clamp_min(1e-6)
    return torch.cat([total[..., :1], mean], dim=-1).transpose(1, 2).unflatten(2, (side,) * 3)


def to_cloud(
    points: Float[Tensor, "batch points 3"], rgb: Float[Tensor, "batch points 3"]
) -> Float[Tensor, "batch points 6"]:
    """Returns the latent of points with sRGB colours in [0, 1]."""
    return torch.cat([points, 2 * rgb - 1], dim=-1)
