"""Do views of one object agree on a shape? The visual hull of their masks, seen again by their cameras.

The hull (Laurentini 1994) is what lies inside of every mask; of views of one solid it fills each mask again.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from shapeloom.metrics import mask_iou
from shapeloom.rendering.rays import camera_rays, intersect_box
from shapeloom.view_volume import middles, projected

VOXELS, SAMPLES = 64, 128


def hull_agreement(
    alpha: Float[ndarray, "views size size"],
    cam_to_world: Float[Tensor, "views 4 4"],
    intrinsics: Float[Tensor, "views 3 3"],
) -> float:
    """Returns the mean IoU of masks (alpha > 0.5) with the silhouettes of their visual hull; 1: they agree.

    Carved of 64 voxels a side of the box, so that views of a real object have some 0.95.
    """
    num, size = len(alpha), alpha.shape[-1]
    masks = torch.from_numpy(np.ascontiguousarray(alpha, np.float32))
    points = middles(VOXELS, masks.device)
    at, _ = projected(points.expand(num, -1, -1), cam_to_world, intrinsics, size=size)
    seen = F.grid_sample(masks[:, None], at[:, None], align_corners=False)[:, 0, 0]
    hull = seen.amin(0).reshape(1, 1, VOXELS, VOXELS, VOXELS)
    found = []
    for pose, matrix, mask in zip(cam_to_world, intrinsics, masks, strict=True):
        origins, directions, _ = camera_rays(pose, matrix, size, size)
        near, far, _ = intersect_box(origins.expand_as(directions), directions)
        t = near[..., None] + (far - near)[..., None] * torch.linspace(0, 1, SAMPLES)
        points = origins[..., None, :] + t[..., None] * directions[..., None, :]
        # Voxels' middles are half a voxel inside of the box: beyond them nothing is carved.
        silhouette = F.grid_sample(hull, points[None], align_corners=False)[0, 0].amax(-1)
        found.append(mask_iou(silhouette.numpy(), mask.numpy()))
    return float(np.mean(found))
