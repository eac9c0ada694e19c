"""Centre and scale: every asset fits the cube [-0.95, 0.95]^3, touching it along its largest extent."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.mesh import Mesh
from shapeloom.box import ASSET_HALF_SIZE


@dataclass(frozen=True)
class Placement:
    """normalised = (original - centre) * scale."""

    centre: Float64[ndarray, "3"]
    scale: float


def normalize(mesh: Mesh) -> tuple[Mesh, Placement]:
    """The mesh in the cube, and how it got there. Vertices that no face uses count for nothing.

    Raises AssetError when the asset is so small or large that float64 can't scale it.
    """
    corners = mesh.triangles.reshape(-1, 3)
    low, high = corners.min(axis=0), corners.max(axis=0)
    centre, extent = (low + high) / 2, float((high - low).max())
    # Below this ratio positions differ by a few steps of float32, the precision files store.
    if not 1e-30 < extent < 1e30 or extent < 1e-6 * np.abs(corners).max():
        raise AssetError("degenerate", f"its extent of {extent:.3g} is too small or large to be scaled")
    scale = 2 * ASSET_HALF_SIZE / extent
    return replace(mesh, vertices=(mesh.vertices - centre) * scale), Placement(centre, scale)
