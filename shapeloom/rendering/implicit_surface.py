"""A mesh whose vertices are differentiable in the field: marching cubes' linear interpolation, done again.

`extract_surface` finds the triangles without gradients. Each vertex lies on an edge of the grid that the
surface crosses: with signed distances a and b at the ends p and q, it is at p + (q - p) a / (a - b). Only
those ends are evaluated again, with gradients: a few thousand points where the grid has resolution^3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shapeloom.box import HIGH, LOW, SIDE
from shapeloom.rendering.isosurface import WALL, Field, extract_surface


@dataclass(frozen=True)
class Meshes:
    """The meshes of a batch of assets, one after another; faces index all vertices, outward.

    num_faces: faces of each asset, 0 where its field has no surface.
    """

    vertices: Float[Tensor, "vertices 3"]
    faces: Int[Tensor, "faces 3"]
    num_faces: list[int]

    def nonempty(self) -> Iterator[tuple[int, Float[Tensor, "own_vertices 3"], Int[Tensor, "own_faces 3"]]]:
        """Yields number, vertices and faces (which index those) of each asset that has faces."""
        for asset, faces in enumerate(self.faces.split(self.num_faces)):
            if len(faces):
                base, last = (int(end) for end in faces.aminmax())
                yield asset, self.vertices[base : last + 1], faces - base


def differentiable_surfaces(
    fields: Sequence[Field], *, resolution: int, coarsest: int = 16, device: torch.device | str = "cpu"
) -> Meshes:
    """Returns the zero levels of fields, closed at the box, with vertices differentiable in the fields.

    fields, resolution, coarsest and what is raised: see extract_surface. A field of one sign has an empty
    mesh; one that leaves the box has a wall there, which doesn't move with the field.
    """
    vertices, faces, start = [torch.zeros(0, 3, device=device)], [], 0
    for field in fields:
        with torch.no_grad():
            found, triangles = extract_surface(field, resolution=resolution, coarsest=coarsest, device=device)
        if len(found):
            vertices.append(_on_edges(field, torch.from_numpy(found).to(device), resolution))
        faces.append(torch.from_numpy(triangles).to(device) + start)
        start += len(found)
    return Meshes(torch.cat(vertices), torch.cat(faces), [len(part) for part in faces])


def _on_edges(
    field: Field, vertices: Float[Tensor, "vertices 3"], resolution: int
) -> Float[Tensor, "vertices 3"]:
    """Returns marching cubes' vertices as a function of the field at the ends of their edges."""
    place = (vertices - LOW) * (resolution / SIDE)
    # Vertices lie on grid edges: all coordinates but one are whole.
    axis = (place - place.round()).abs().argmax(dim=1, keepdim=True)
    step = torch.zeros_like(place, dtype=torch.long).scatter_(1, axis, 1)
    low = torch.where(step == 1, place.floor(), place.round()).long()
    low = torch.minimum(low, resolution - step)  # a vertex on the box's far face
    nodes, ends = torch.cat([low, low + step]).unique(dim=0, return_inverse=True)
    points = nodes * (SIDE / resolution) + LOW
    wall = points.abs().amax(dim=-1) - (HIGH - WALL * SIDE / resolution)
    values = torch.maximum(field(points), wall)
    (p, q), (a, b) = points[ends].chunk(2), values[ends].chunk(2)
    return p + (q - p) * _share(a, b)[:, None]


def _share(a: Float[Tensor, " edges"], b: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    """Returns a / (a - b), in [0, 1]; without a gradient where rounding left both ends with one sign."""
    crosses: Bool[Tensor, " edges"] = (a > 0) != (b > 0)
    # Such a vertex lies on the end that is nearer to zero, to float32's precision.
    at_end = (a.abs() > b.abs()).to(a.dtype)
    difference = torch.where(crosses, a - b, torch.ones_like(a))
    return torch.where(crosses, a / difference, at_end)
