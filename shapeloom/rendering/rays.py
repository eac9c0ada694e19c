"""Pixels to rays, rays against the field's box, samples along rays.

Directions have unit length; `t` is the distance along a ray from its origin; depth is along the camera's z.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shapeloom.box import HIGH, LOW


def pixel_rays(
    cam_to_world: Float[Tensor, "*batch 4 4"],
    intrinsics: Float[Tensor, "*batch 3 3"],
    pixels: Float[Tensor, "*batch rays 2"],
) -> tuple[Float[Tensor, "*batch rays 3"], Float[Tensor, "*batch rays 3"], Float[Tensor, "*batch rays"]]:
    """Returns origins, unit directions and cosines to the camera's z axis of rays through `pixels` (x, y).

    A pixel's centre is at +0.5. depth = t * cosine.
    """
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)
    centre = intrinsics[..., :2, 2]
    xy = (pixels - centre[..., None, :]) / focal[..., None, :]
    local = torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)
    cosine = 1 / local.norm(dim=-1)
    # Autocast would round directions to 8 bits.
    with torch.autocast(local.device.type, enabled=False):
        directions = (local * cosine[..., None]) @ cam_to_world[..., :3, :3].transpose(-1, -2)
    origins = cam_to_world[..., None, :3, 3].expand_as(directions)
    return origins, directions, cosine


def camera_rays(
    cam_to_world: Float[Tensor, "*batch 4 4"],
    intrinsics: Float[Tensor, "*batch 3 3"],
    height: int,
    width: int,
) -> tuple[
    Float[Tensor, "*batch height width 3"],
    Float[Tensor, "*batch height width 3"],
    Float[Tensor, "*batch height width"],
]:
    """Returns origins, unit directions and cosines of the rays through all pixel centres of a picture."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).reshape(-1, 2).to(cam_to_world)
    batch = cam_to_world.shape[:-2]
    origins, directions, cosine = pixel_rays(cam_to_world, intrinsics, pixels.expand(*batch, -1, 2))
    shape = (*batch, height, width)
    return origins.reshape(*shape, 3), directions.reshape(*shape, 3), cosine.reshape(shape)


def intersect_box(
    origins: Float[Tensor, "*rays 3"], directions: Float[Tensor, "*rays 3"]
) -> tuple[Float[Tensor, " *rays"], Float[Tensor, " *rays"], Bool[Tensor, " *rays"]]:
    """Returns t_near >= 0, t_far and whether the ray meets the box [-1, 1]^3 (slab method).

    A ray that misses gets t_near = t_far = 0, so that anything integrated along it is nothing.
    """
    # A zero component would give 0/0 on the slab's plane; 1e-9 is far below a pixel's angle.
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    t0 = (LOW - origins) / safe
    t1 = (HIGH - origins) / safe
    t_near = torch.minimum(t0, t1).amax(dim=-1).clamp(min=0)
    t_far = torch.maximum(t0, t1).amin(dim=-1)
    hit = t_far > t_near
    zero = torch.zeros_like(t_near)
    return torch.where(hit, t_near, zero), torch.where(hit, t_far, zero), hit


def edges_from_samples(
    t: Float[Tensor, "*rays samples"], t_near: Float[Tensor, " *rays"], t_far: Float[Tensor, " *rays"]
) -> Float[Tensor, "*rays edges"]:
    """Returns interval edges around sorted samples: midpoints between them, t_near and t_far at the ends."""
    middle = 0.5 * (t[..., 1:] + t[..., :-1])
    return torch.cat([t_near[..., None], middle, t_far[..., None]], dim=-1)
