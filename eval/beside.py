"""A sample and the training asset nearest to it, large, filling the frame alike, with colours and without."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from data_prep.mesh import Mesh
from eval.nearest import drawn_points
from sampling.mesh import MeshConfig
from sampling.pictures import png
from sampling.portraits import CLAY, framed, lit_picture, portrait, viewpoint
from sampling.shape import ShapeSample
from shapeloom.decoder import Decoder, RenderConfig
from shapeloom.pictures import on_white
from shapeloom.shards import AssetSample
from shapeloom.storage import write_atomic

SIZE = 192
MESH = MeshConfig(resolution=96, max_faces=10_000, texture_size=512)


def draw_beside(
    decoder: Decoder,
    latent: Float[Tensor, "tokens channels"],
    asset: AssetSample,
    path: Path,
    *,
    samples: RenderConfig,
) -> dict[str, Any]:
    """Writes a picture of two rows and returns its name and the sample's fault.

    Above: the sample's volume, textured mesh and bare surface. Beneath: the asset's view that is most like
    theirs, and its points from the very same one, coloured and bare. asset: read with points and all views.
    """
    shape = ShapeSample(latent.cpu(), "", 0, decoder)
    mesh = shape.mesh(MESH)
    rows = [portrait(shape, mesh, size=SIZE, samples=samples), asset_pictures(asset)]
    write_atomic(path, png(np.vstack(rows)))
    return {"beside": path.name, "fault": mesh.mesh.surface.fault}


def asset_pictures(asset: AssetSample) -> UInt8[ndarray, "size width 3"]:
    """Returns an asset's own view, its points, and its points without colour: [SIZE, 3 * SIZE, 3]."""
    assert asset.points is not None and asset.rgba is not None
    pose, points = viewpoint(), drawn_points(asset)
    matrix = framed(points.vertices, pose, size=SIZE)
    bare: Mesh = replace(points, tint=np.full_like(points.tint, CLAY))
    drawn = [lit_picture(soup, pose, matrix, size=SIZE) for soup in (points, bare)]
    return np.hstack([_own_view(asset, pose), *drawn])


def _own_view(asset: AssetSample, pose: Float[Tensor, "1 4 4"]) -> UInt8[ndarray, "size size 3"]:
    """Returns the stored view from the most similar direction, cropped to the asset."""
    assert asset.rgba is not None
    towards = asset.cam_to_world[:, :3, 3] / np.linalg.norm(
        asset.cam_to_world[:, :3, 3], axis=1, keepdims=True
    )
    ours = torch.nn.functional.normalize(pose[0, :3, 3], dim=0).numpy()
    rgba = asset.rgba[int((towards @ ours).argmax())]
    picture, solid = on_white(rgba), np.argwhere(rgba[..., 3] > 0)
    if len(solid):
        low, high = solid.min(axis=0), solid.max(axis=0) + 1
        half = int(np.ceil((high - low).max() / 1.8))
        middle = (low + high) // 2 + half
        padded = np.pad(picture, ((half, half), (half, half), (0, 0)), constant_values=255)
        picture = padded[middle[0] - half : middle[0] + half, middle[1] - half : middle[1] + half]
    return np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
