"""What is wrong with a sampled surface, if anything: there is none, it is crumbs, or it is no object's.

All training assets are scaled to be 1.9 long in the box [-1, 1]^3, and hang together in a few parts: samples
that differ from that are broken, whatever they were meant to be.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import trimesh
from jaxtyping import Float, Int

from sampling.topology import part_areas

Fault = Literal["", "empty", "crumbled", "degenerate"]
FAULTS = {
    "empty": "its field keeps one sign, so that it has no surface",
    "crumbled": "it falls apart into many parts",
    "degenerate": "it is a speck, or cut off by the box",
}

# 88 real and embedded assets at 64^3 have 15 parts at most (fish), a largest part of 0.134 or more (grass)
# and an extent of 1.77 or more (docs/LOG.md).
MOST_PARTS = 16
LEAST_LARGEST = 0.1
LEAST_EXTENT = 1.0
MOST_ON_WALLS = 0.05
# Marching cubes closes open fields this near to the box's walls.
WALL_DISTANCE = 1e-3


@dataclass(frozen=True)
class Surface:
    """A field's surface before anything is dropped.

    num_parts, num_crumbs: connected parts, and those of them that are dropped for their size.
    largest: the largest part's share of the area. extent: the longest side of the bounding box.
    on_walls: the share of the area that lies on the box, where the field is cut off.
    """

    num_parts: int = 0
    num_crumbs: int = 0
    largest: float = 0.0
    extent: float = 0.0
    on_walls: float = 0.0

    @property
    def fault(self) -> Fault:
        """What is wrong with it; "": nothing."""
        if not self.num_parts:
            return "empty"
        if self.extent < LEAST_EXTENT or self.on_walls > MOST_ON_WALLS:
            return "degenerate"
        if self.num_parts > MOST_PARTS or self.largest < LEAST_LARGEST:
            return "crumbled"
        return ""


NOTHING = Surface()


def look_at(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"], *, min_share: float
) -> Surface:
    """Returns what a surface is like; `min_share`: of the area, below which a part is a crumb."""
    if not len(faces):
        return NOTHING
    areas = part_areas(vertices, faces)
    triangles = vertices[faces]
    on_wall = (np.abs(triangles) > 1 - WALL_DISTANCE).all(axis=1).any(axis=1)
    of_faces = trimesh.triangles.area(triangles)
    return Surface(
        num_parts=len(areas),
        num_crumbs=int((areas < min(min_share * areas.sum(), areas[0])).sum()),
        largest=round(float(areas[0] / areas.sum()), 4),
        extent=round(float(np.ptp(vertices, axis=0).max()), 4),
        on_walls=round(float(of_faces[on_wall].sum() / of_faces.sum()), 4),
    )
