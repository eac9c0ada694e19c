"""A region by paint: a 3D file of the shape whose vertices are magenta where it may change.

Paint is the vertices' colour (COLOR_0 of glTF, red, green and blue of PLY), whatever texture there is beside
it. A face counts where all of its corners are painted. Around it the region reaches REACH into space, so that
a surface may move; towards what isn't painted it ends a little before that, so that every unpainted vertex
lies outside of it.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from data_prep.failures import AssetError
from data_prep.formats.load import SUFFIXES, load_mesh
from data_prep.geometry.normalize import normalize
from data_prep.mesh import Mesh
from sampling.refine.config import RefineConfig
from shapeloom.config import UserError
from shapeloom.fields.region import Region

SIDE = 64
"""Nodes of the grid along an axis."""
CELL = 2 / (SIDE - 1)
REACH = 0.15
"""How far from paint a surface may move, in units of the box [-1, 1]^3."""
MARGIN_NODES = 1.75
"""All nodes of the cell around a point lie within it of the point's nearest node (3^0.5)."""
RAMP_NODES = 3
"""Over which changes fade out."""
HOW = "Paint the vertices of the part that may change in magenta (255, 0, 255)"


def region_of(config: RefineConfig) -> Region | None:
    """Returns the region that a config names, read from its file; raises UserError for one without paint."""
    if not isinstance(config.region, Path):
        return config.region
    # A start that is encoded is brought into the box first, and its painted copy lies where it lay.
    encoded = config.start is not None and config.start.suffix.lower() in SUFFIXES
    try:
        mesh = load_mesh(config.region)
        mesh = normalize(mesh)[0] if encoded else mesh
    except AssetError as error:
        raise UserError(f"{config.region} can't be read ({error.message}). {HOW}, as GLB or PLY.") from error
    if not np.abs(mesh.vertices).max() <= 1:
        raise UserError(
            f"{config.region} reaches out of the box [-1, 1]^3, so it isn't the shape that is refined: paint "
            "a file that was written of it, or the one that `shape` names."
        )
    return grid_of(mesh, name=str(config.region))


def is_painted(mesh: Mesh) -> Bool[ndarray, "faces 3"]:
    """Returns which corners are magenta (linear light)."""
    red, green, blue = np.moveaxis(mesh.tint, -1, 0)
    return (red > 0.5) & (blue > 0.5) & (green < 0.25)


def grid_of(mesh: Mesh, *, name: str) -> UInt8[Tensor, "side side side"]:
    """Returns the region of a painted mesh in the box. name: of its file, for messages."""
    paint = is_painted(mesh)
    if not paint.all(axis=1).any():
        raise UserError(f"{name} has no painted face. {HOW}.")
    points, share = samples(mesh.triangles, paint, spacing=CELL / 2)
    nodes = ((points + 1) / CELL).round().astype(int)
    # What an unpainted corner has part in isn't painted.
    painted, plain = (_distance(nodes[chosen]) for chosen in (share > 1 - 1e-6, share <= 1 - 1e-6))
    inside = (painted <= REACH / CELL) & (painted < plain) & (plain > MARGIN_NODES)
    if not inside[painted == 0].any():
        raise UserError(
            f"What is painted in {name} is narrower than {2 * MARGIN_NODES * CELL:.2f}: paint more."
        )
    depth = distance_transform_edt(inside)
    return torch.from_numpy((255 * (depth / RAMP_NODES).clip(0, 1)).round().astype(np.uint8))


def _distance(nodes: Int[ndarray, "points 3"]) -> Float[ndarray, "side side side"]:
    """Each node's distance from the nearest of some, in cells."""
    away = np.ones((SIDE, SIDE, SIDE), bool)
    away[tuple(nodes.T)] = False
    return np.asarray(distance_transform_edt(away)) if len(nodes) else np.full(away.shape, np.inf)


def samples(
    triangles: Float[ndarray, "faces 3 3"], paint: Bool[ndarray, "faces 3"], *, spacing: float
) -> tuple[Float[ndarray, "points 3"], Float[ndarray, " points"]]:
    """Returns points of all faces, corners among them, at most `spacing` apart, and their paint."""
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=-1).max(axis=1)
    parts = np.ceil(edges / spacing).astype(int).clip(1)
    points, share = [], []
    for count in np.unique(parts):
        chosen = parts == count
        i, j = (each.ravel() for each in np.meshgrid(*[np.arange(count + 1)] * 2, indexing="ij"))
        weights = np.stack([i, j, count - i - j], axis=-1)[i + j <= count] / count
        points.append((weights @ triangles[chosen]).reshape(-1, 3))
        share.append((paint[chosen].astype(float) @ weights.T).ravel())
    return np.concatenate(points), np.concatenate(share)
