"""One sheet of held-out shapes without texture, which hides what a surface is like, and with it.

Each asset is a column of four tiles: the truth and ours without texture, then both with it, all from one
camera. The true textured tile is a stored view, as coarse as that is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from data_prep.mesh import Mesh
from eval.pictures import render_mesh
from shapeloom.pictures import Views, to_uint8
from shapeloom.rendering.cameras import Cameras
from shapeloom.surface_metrics import normal_maps
from shapeloom.surfaces import Surface

TILE, SUPERSAMPLE = 128, 2
COLUMNS = 12
LIGHT = np.array([-0.4, -0.7, -0.6])
"""Towards the light in the camera's axes: from the upper left, on the viewer's side."""


def clay(
    surface: Surface, cam_to_world: Float[ndarray, "4 4"], matrix: Float[ndarray, "3 3"], *, size: int
) -> Float[ndarray, "size size 3"]:
    """Returns a grey matt picture on white. matrix: the camera's intrinsics for `size` pixels."""
    fine = size * SUPERSAMPLE
    lens = matrix.copy()
    lens[:2] *= SUPERSAMPLE
    pose, matrices = (torch.from_numpy(array)[None, None].float() for array in (cam_to_world, lens))
    cameras = Cameras(pose, matrices, fine, fine)
    normals = normal_maps(surface, cameras)[0].astype(np.float64)
    light = cam_to_world[:3, :3] @ (LIGHT / np.linalg.norm(LIGHT))
    shade = 0.25 + 0.65 * np.clip(normals @ light, 0, 1)
    picture = np.where(np.linalg.norm(normals, axis=-1) > 0, shade, 1.0)
    grey = picture.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE).mean(axis=(1, 3))
    return np.repeat(grey[..., None], 3, axis=-1)


def save_tile(path: Path, truth: Surface, ours: Surface, views: Views, mesh: Mesh) -> None:
    """Writes one asset's column, from the first of the true views."""
    pose, matrix = views.cam_to_world[0], views.intrinsics[0].copy()
    matrix[:2] *= TILE / views.rgb.shape[1]
    stored = Image.fromarray(to_uint8(views.rgb[0])).resize((TILE, TILE), Image.Resampling.BICUBIC)
    textured, _ = render_mesh(mesh, pose[None], matrix[None], size=TILE)
    plain = [to_uint8(clay(surface, pose, matrix, size=TILE)) for surface in (truth, ours)]
    path.parent.mkdir(parents=True, exist_ok=True)
    column: UInt8[ndarray, "height width 3"] = np.concatenate(
        [*plain, np.asarray(stored), to_uint8(textured[0])]
    )
    Image.fromarray(column).save(path, optimize=True)


def save_sheet(path: Path, tiles: Sequence[Path]) -> None:
    """Writes the assets' columns side by side, COLUMNS in a row; nothing for none."""
    if not tiles:
        return
    columns = [np.asarray(Image.open(tile)) for tile in tiles]
    rows = [columns[i : i + COLUMNS] for i in range(0, len(columns), COLUMNS)]
    width = max(len(row) for row in rows) * TILE
    sheet = np.full((len(rows) * 4 * TILE, width, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        top = number * 4 * TILE
        sheet[top : top + 4 * TILE, : len(row) * TILE] = np.concatenate(row, axis=1)
    Image.fromarray(sheet).save(path, optimize=True)
