"""A field to a small, clean mesh: surface, crumbs dropped, simplified, with normals and vertex colours.

World frame (+Z up, box [-1, 1]^3), faces outward and counter-clockwise, colours 8-bit sRGB.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
    max_components: int = Key(0, ge=0, description="keep so many of the largest parts; 0: all")
    thicken: float = Key(
        0.0, ge=0, le=0.1, description="surface at sdf = this; keeps walls a young model lost"
    )
    solid: bool = Key(False, description="fill hollows, and keep the slivers that close the surface")
    normals: Literal["smooth", "sharp"] = Key(
        "smooth", description="the field's; sharp: faces that meet at 40 degrees or more have an edge"
    )


DEFAULT_MESH = MeshConfig()
CREASE_DEGREES = 40.0


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
    vertices, faces = drop_crumbs(
        vertices, faces, min_share=config.min_component, max_components=config.max_components
    )
    if config.solid:
        vertices, faces = fill_cavities(vertices, faces)
    vertices, faces = simplify(vertices, faces, max_faces=config.max_faces, keep_closed=config.solid)
    sharp = config.normals == "sharp"
    if sharp:
        vertices, faces = split_creases(vertices, faces, degrees=CREASE_DEGREES)
    normals = _normals(sdf, vertices, faces, step=2 / config.resolution, sharp=sharp, device=device)
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
    vertices: Float[np.ndarray, "vertices 3"],
    faces: Int[np.ndarray, "faces 3"],
    *,
    min_share: float,
    max_components: int = 0,
) -> tuple[Float[np.ndarray, "kept 3"], Int[np.ndarray, "kept_faces 3"]]:
    """Drops connected parts with less than `min_share` of the whole area; the largest part always stays.

    max_components: keep no more parts than this, the largest by area; 0 keeps them all.
    """
    if not len(faces):
        return vertices, faces
    part = _parts(vertices, faces)
    area = np.bincount(part, weights=trimesh.triangles.area(vertices[faces]))
    keep = area >= min(min_share * area.sum(), area.max())
    if max_components:
        keep[np.argsort(-area, kind="stable")[max_components:]] = False
    return _compact(vertices, faces[keep[part]])


def _parts(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"]
) -> Int[np.ndarray, " faces"]:
    """Returns the number of the connected part that each face belongs to."""
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    return _connected(edges, len(vertices))[faces[:, 0]]


def _connected(edges: Int[np.ndarray, "edges 2"], num: int) -> Int[np.ndarray, " num"]:
    """Returns the number of the connected component of each of `num` nodes."""
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(num, num))
    return connected_components(graph, directed=False)[1]


def fill_cavities(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"]
) -> tuple[Float[np.ndarray, "kept 3"], Int[np.ndarray, "kept_faces 3"]]:
    """Drops the closed parts that are wound inward: walls of hollows that nothing leads to."""
    if not len(faces):
        return vertices, faces
    part = _parts(vertices, faces)
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    volume = np.bincount(part, weights=(a * np.cross(b, c)).sum(axis=1))
    return _compact(vertices, faces[(volume > 0)[part]])


def simplify(
    vertices: Float[np.ndarray, "vertices 3"],
    faces: Int[np.ndarray, "faces 3"],
    *,
    max_faces: int,
    keep_closed: bool = False,
) -> tuple[Float[np.ndarray, "kept 3"], Int[np.ndarray, "kept_faces 3"]]:
    """Simplifies to about `max_faces` triangles by quadric error, and drops triangles without an area.

    keep_closed: they stay, since without them a closed mesh has pinholes.
    """
    if len(faces) > max_faces:
        vertices, faces = fast_simplification.simplify(
            vertices, faces.astype(np.int32), target_count=max_faces
        )
    if keep_closed:
        return _compact(vertices, faces)
    area = trimesh.triangles.area(vertices[faces])
    return _compact(vertices, faces[area > 1e-12])


def split_creases(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"], *, degrees: float
) -> tuple[Float[np.ndarray, "split 3"], Int[np.ndarray, "faces 3"]]:
    """Returns the same faces with vertices doubled along edges where faces turn by `degrees` or more.

    Two faces share a vertex if one can walk between them around it without crossing such an edge.
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
    corner = np.arange(faces.size).reshape(-1, 3)
    start, end = faces, np.roll(faces, -1, axis=1)
    key = np.minimum(start, end).astype(np.int64) * len(vertices) + np.maximum(start, end)
    order = np.argsort(key.ravel(), kind="stable")
    same = np.flatnonzero(key.ravel()[order][1:] == key.ravel()[order][:-1])
    first, second = order[same], order[same + 1]
    flat = (normal[first // 3] * normal[second // 3]).sum(axis=1) > math.cos(math.radians(degrees))
    first, second = first[flat], second[flat]
    following = np.roll(corner, -1, axis=1).ravel()
    # The edge's ends in the second face, in the order of the first.
    reverse = faces.ravel()[first] != faces.ravel()[second]
    near = np.where(reverse, following[second], second)
    far = np.where(reverse, second, following[second])
    pairs = np.concatenate([np.stack([first, near], 1), np.stack([following[first], far], 1)])
    group = _connected(pairs, faces.size)
    _, representative = np.unique(group, return_index=True)
    return vertices[faces.ravel()[representative]], group.reshape(-1, 3).astype(np.int64)


def _compact(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used].astype(np.float32), index.reshape(-1, 3).astype(np.int64)


def _normals(
    sdf: Field,
    vertices: np.ndarray,
    faces: np.ndarray,
    *,
    step: float,
    sharp: bool = False,
    device: torch.device | str,
) -> Float[np.ndarray, "vertices 3"]:
    """Returns the gradient's direction by central differences over a cell, which is smoother than the faces'.

    sharp: it is asked a third of the way towards the middle of the vertex's own faces, off the crease.
    Where it is weak or disagrees with the faces (thin parts, simplified edges), the faces' mean is taken.
    """
    if not len(faces):
        return np.zeros((0, 3), np.float32)
    of_faces = np.array(trimesh.Trimesh(vertices, faces, process=False).vertex_normals)
    # A vertex whose triangles cancel out has no normal of its own; any unit vector is as good as another.
    of_faces[np.linalg.norm(of_faces, axis=1) < 0.5] = (0, 0, 1)
    places = vertices
    if sharp:
        centre = np.repeat(vertices[faces].mean(axis=1), 3, axis=0)
        total = np.stack([np.bincount(faces.ravel(), centre[:, i], len(vertices)) for i in range(3)], axis=1)
        count = np.bincount(faces.ravel(), minlength=len(vertices))[:, None]
        places = (vertices + (total / count - vertices) / 3).astype(np.float32)
    points = torch.from_numpy(places).to(device)
    offsets = torch.eye(3, device=device) * (step / 2)
    probes = torch.cat([points + sign * offset for offset in offsets for sign in (1, -1)])
    values = sdf(probes.clamp(-1, 1)).detach().float().reshape(3, 2, -1)
    gradient = (values[:, 0] - values[:, 1]).T.cpu().double().numpy()
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    of_field = gradient / np.maximum(length, 1e-12)
    trusted = (length[:, 0] > 0.2 * np.median(length)) & ((of_field * of_faces).sum(axis=1) > 0.7)
    return np.where(trusted[:, None], of_field, of_faces).astype(np.float32)
