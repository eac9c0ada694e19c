"""A field to a small, clean, printable mesh with normals and vertex colours.

Surface, edges made sharp, crumbs and hidden walls dropped, simplified, watertight.
World frame (+Z up, box [-1, 1]^3), faces outward and counter-clockwise, colours 8-bit sRGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int, UInt8
from pydantic import Field as Key
from torch import Tensor

from sampling.faults import NOTHING, Surface, look_at
from sampling.topology import (
    drop_crumbs,
    fill_cavities,
    is_watertight,
    joined_by_place,
    part_areas,
    simplify,
    split_creases,
)
from shapeloom.box import HIGH, LOW, SIDE
from shapeloom.config import Config
from shapeloom.rendering.isosurface import Field, Gradient, extract_surface
from shapeloom.rendering.sharpen import sharpen

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
    solid: bool = Key(True, description="without walls of hollows that nothing leads to")
    sharpen: bool = Key(True, description="edges and corners where the field has them, not cut off by cells")
    normals: Literal["smooth", "sharp"] = Key(
        "smooth", description="the field's; sharp: faces that meet at 40 degrees or more have an edge"
    )


DEFAULT_MESH = MeshConfig()
CREASE_DEGREES = 40.0
# Differences of a field without a gradient of its own: this share of a cell to either side.
DIFFERENCE_CELLS = 0.02


@dataclass(frozen=True)
class Mesh:
    """Triangles with unit normals and sRGB colours at their vertices.

    surface: what was found of the field's surface before anything was dropped. num_parts: connected parts.
    watertight: whether each edge joins two faces once vertices are joined by place, as slicers do.
    """

    vertices: Float[np.ndarray, "vertices 3"]
    faces: Int[np.ndarray, "faces 3"]
    normals: Float[np.ndarray, "vertices 3"]
    colours: UInt8[np.ndarray, "vertices 3"]
    surface: Surface = NOTHING
    num_parts: int = 0
    watertight: bool = False


def field_to_mesh(
    sdf: Field, texture: Texture, config: MeshConfig = DEFAULT_MESH, *, gradient: Gradient | None = None,
    device: torch.device | str = "cpu",
) -> Mesh:  # fmt: skip
    """Returns the surface of `sdf`, coloured by `texture` (points -> sRGB in [0, 1]); it is watertight.

    gradient: of `sdf`, points [n, 3] -> [n, 3]; none: by differences, which cost more.
    The mesh has no faces if the field has no surface. Raises ValueError if the field isn't finite.
    """
    vertices, faces, surface = clean_surface(sdf, config, gradient=gradient, device=device)
    # What simplification pinched off is looked at again.
    vertices, faces = kept_parts(*simplify(vertices, faces, max_faces=config.max_faces), config)
    facts = (surface, len(part_areas(vertices, faces)), is_watertight(joined_by_place(vertices, faces)))
    sharp = config.normals == "sharp"
    if sharp:
        vertices, faces = split_creases(vertices, faces, degrees=CREASE_DEGREES)
    normals = _normals(sdf, vertices, faces, step=SIDE / config.resolution, sharp=sharp, device=device)
    return Mesh(vertices, faces, normals, sample_colours(texture, vertices, device=device), *facts)


def clean_surface(
    sdf: Field, config: MeshConfig, *, gradient: Gradient | None = None, device: torch.device | str = "cpu"
) -> tuple[Float[np.ndarray, "vertices 3"], Int[np.ndarray, "faces 3"], Surface]:
    """Returns the surface's parts that stay, at the grid's own fineness, and what was found of all of it."""
    vertices, faces = extract_surface(sdf, resolution=config.resolution, device=device)
    surface = look_at(vertices, faces, min_share=config.min_component)
    vertices, faces = kept_parts(vertices, faces, config)
    if config.sharpen:
        slope = gradient or _by_differences(sdf, DIFFERENCE_CELLS * SIDE / config.resolution)
        vertices = sharpen(sdf, slope, vertices, faces, resolution=config.resolution, device=device)
    return vertices, faces, surface


def kept_parts(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"], config: MeshConfig
) -> tuple[Float[np.ndarray, "kept 3"], Int[np.ndarray, "kept_faces 3"]]:
    """Returns a mesh without crumbs and, where it is to be solid, without what is hidden inside."""
    vertices, faces = drop_crumbs(
        vertices, faces, min_share=config.min_component, max_components=config.max_components
    )
    return fill_cavities(vertices, faces) if config.solid else (vertices, faces)


def _by_differences(sdf: Field, step: float) -> Gradient:
    """Returns the gradient of a field by central differences over `step` to either side."""

    def gradient(points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        offsets = torch.eye(3, device=points.device) * step
        probes = torch.cat([points + sign * offset for offset in offsets for sign in (1, -1)])
        values = sdf(probes.clamp(LOW, HIGH)).detach().float().reshape(3, 2, -1)
        return (values[:, 0] - values[:, 1]).T / (2 * step)

    return gradient


def sample_colours(
    texture: Texture, points: Float[np.ndarray, "points 3"], *, device: torch.device | str = "cpu"
) -> UInt8[np.ndarray, "points 3"]:
    """Returns 8-bit sRGB colours of points."""
    if not len(points):
        return np.zeros((0, 3), np.uint8)
    colours = texture(torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(device))
    return (colours.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _normals(
    sdf: Field, vertices: np.ndarray, faces: np.ndarray, *, step: float, sharp: bool = False,
    device: torch.device | str,
) -> Float[np.ndarray, "vertices 3"]:  # fmt: skip
    """Returns the gradient's direction by central differences over a cell, which is smoother than the faces'.

    sharp: it is asked a third of the way towards the middle of the vertex's own faces, off the crease, by
    differences too short to reach across it.
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
    reach = DIFFERENCE_CELLS * step if sharp else step / 2
    gradient = _by_differences(sdf, reach)(torch.from_numpy(places).to(device)).cpu().double().numpy()
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    of_field = gradient / np.maximum(length, 1e-12)
    trusted = (length[:, 0] > 0.2 * np.median(length)) & ((of_field * of_faces).sum(axis=1) > 0.7)
    return np.where(trusted[:, None], of_field, of_faces).astype(np.float32)
