"""A field to a small, clean mesh: surface, crumbs dropped, simplified, with normals and vertex colours.

World frame (+Z up, box [-1, 1]^3), faces outward and counter-clockwise, colours 8-bit sRGB.
"""

from collections.abc import Callable
from dataclasses import dataclass

import fast_simplification
import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int, UInt8
from pydantic import Field as Key
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from shapeloom.config import Config
from shapeloom.rendering.isosurface import Field, extract_surface

Texture = Callable[[Float[Tensor, "points 3"]], Float[Tensor, "points 3"]]


class MeshConfig(Config):
    """How fine a mesh is."""

    resolution: int = Key(128, ge=16, le=512, description="cells a side of the isosurface grid")
    max_faces: int = Key(10_000, ge=20, description="simplify to this many triangles at most")
    texture_size: int = Key(
        512, ge=0, le=8192, description="side of the texture in pixels; 0: vertex colours alone"
    )
    min_component: float = Key(0.005, ge=0, le=1, description="drop parts below this share of the whole area")
    thicken: float = Key(
        0.0, ge=0, le=0.1, description="surface at sdf = this; keeps walls a young model lost"
    )


DEFAULT_MESH = MeshConfig()


@dataclass(frozen=True)
class Mesh:
    """Triangles with unit normals and sRGB colours at their vertices."""

    vertices: Float[np.ndarray, "vertices 3"]
    faces: Int[np.ndarray, "faces 3"]
    normals: Float[np.ndarray, "vertices 3"]
    colours: UInt8[np.ndarray, "vertices 3"]


def field_to_mesh(
    sdf: Field, texture: Texture, config: MeshConfig = DEFAULT_MESH, *, device: torch.device | str = "cpu"
) -> Mesh:
    """Returns the surface of `sdf`, coloured by `texture` (points -> sRGB in [0, 1]).

    A model that hasn't learnt walls thinner than its detail says "just outside" in them: its zero level has
    holes there that volume renders don't show, and `thicken`, half a grid cell or so, closes them.
    The mesh has no faces if the field has no surface. Raises ValueError if the field isn't finite.
    """

    def shifted(points: Tensor) -> Tensor:
        return sdf(points) - config.thicken

    vertices, faces = extract_surface(shifted, resolution=config.resolution, device=device)
    vertices, faces = drop_crumbs(vertices, faces, min_share=config.min_component)
    vertices, faces = simplify(vertices, faces, max_faces=config.max_faces)
    normals = _normals(sdf, vertices, faces, step=2 / config.resolution, device=device)
    return Mesh(vertices, faces, normals, sample_colours(texture, vertices, device=device))


def sample_colours(
    texture: Texture, points: Float[np.ndarray, "points 3"], *, device: torch.device | str = "cpu"
) -> UInt8[np.ndarray, "points 3"]:
    """Returns 8-bit sRGB colours of points."""
    if not len(points):
        return np.zeros((0, 3), np.uint8)
    colours = texture(torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(device))
    return (colours.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def drop_crumbs(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"], *, min_share: float
) -> tuple[Float[np.ndarray, "kept 3"], Int[np.ndarray, "kept_faces 3"]]:
    """Drops connected parts with less than `min_share` of the whole area; the largest part always stays."""
    if not len(faces):
        return vertices, faces
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    _, part_of_vertex = connected_components(graph, directed=False)
    part = part_of_vertex[faces[:, 0]]
    area = np.bincount(part, weights=trimesh.triangles.area(vertices[faces]))
    keep = area >= min(min_share * area.sum(), area.max())
    return _compact(vertices, faces[keep[part]])


def simplify(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"], *, max_faces: int
) -> tuple[Float[np.ndarray, "kept 3"], Int[np.ndarray, "kept_faces 3"]]:
    """Simplifies to about `max_faces` triangles by quadric error, and drops triangles without an area."""
    if len(faces) > max_faces:
        vertices, faces = fast_simplification.simplify(
            vertices, faces.astype(np.int32), target_count=max_faces
        )
    area = trimesh.triangles.area(vertices[faces])
    return _compact(vertices, faces[area > 1e-12])


def _compact(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used].astype(np.float32), index.reshape(-1, 3).astype(np.int64)


def _normals(
    sdf: Field, vertices: np.ndarray, faces: np.ndarray, *, step: float, device: torch.device | str
) -> Float[np.ndarray, "vertices 3"]:
    """Returns the gradient's direction by central differences over a cell, which is smoother than the faces'.

    Where it is weak or disagrees with the faces (thin parts, simplified edges), the faces' mean is taken.
    """
    if not len(faces):
        return np.zeros((0, 3), np.float32)
    of_faces = np.array(trimesh.Trimesh(vertices, faces, process=False).vertex_normals)
    # A vertex whose triangles cancel out has no normal of its own; any unit vector is as good as another.
    of_faces[np.linalg.norm(of_faces, axis=1) < 0.5] = (0, 0, 1)
    points = torch.from_numpy(vertices).to(device)
    offsets = torch.eye(3, device=device) * (step / 2)
    probes = torch.cat([points + sign * offset for offset in offsets for sign in (1, -1)])
    values = sdf(probes.clamp(-1, 1)).detach().float().reshape(3, 2, -1)
    gradient = (values[:, 0] - values[:, 1]).T.cpu().double().numpy()
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    of_field = gradient / np.maximum(length, 1e-12)
    trusted = (length[:, 0] > 0.2 * np.median(length)) & ((of_field * of_faces).sum(axis=1) > 0.7)
    return np.where(trusted[:, None], of_field, of_faces).astype(np.float32)
