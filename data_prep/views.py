"""Posed RGBA and depth views by ray casting (Embree), shaded in linear light, anti-aliased.

Each pixel averages n x n rays, premultiplied by alpha and in linear light, and is stored as straight-alpha
sRGB: the colour at an edge is the object's own, without a dark or white fringe. Depth is the z of the nearest
surface along the ray through the pixel's centre.

Lighting is fixed in the world and the same for all assets: ambient light, a key light and a weaker fill light
from the other side, Lambertian on both sides of a face. Its sum never exceeds 1, so base colours never clip.
"""

from dataclasses import dataclass

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8
from numpy import ndarray
from torch import Tensor

from data_prep.mesh import Mesh, base_color, face_crosses, linear_to_srgb
from shapeloom.rendering.rays import pixel_rays

AMBIENT = 0.4
LIGHTS = (
    (np.array([0.48, -0.6, 0.64]), 0.45),
    (np.array([-0.8, 0.36, 0.48]), 0.15),
)
"""Unit direction towards the light, intensity."""
MAX_LAYERS = 8
"""Holes (cut-out texels) that a ray may pass before it counts as a miss."""


@dataclass(frozen=True)
class Hits:
    """Nearest solid surface along each ray."""

    face: Int[ndarray, "rays"]
    """-1 for a miss; the other entries are then meaningless."""
    t: Float[ndarray, "rays"]
    weights: Float[ndarray, "rays 3"]
    """Barycentric."""


class Caster:
    """Casts rays against one mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.triangles = mesh.triangles
        self.crosses = face_crosses(self.triangles)
        self.scene = EmbreeScene()
        TriangleMesh(self.scene, np.ascontiguousarray(self.triangles, np.float32))

    def cast(self, origins: Float[ndarray, "rays 3"], directions: Float[ndarray, "rays 3"]) -> Hits:
        """Nearest solid hits; holes in textures are passed through."""
        hits = self._nearest(origins, directions)
        if not self.mesh.has_holes:
            return hits
        travelled = np.zeros(len(origins))
        for _ in range(MAX_LAYERS):
            rays = np.flatnonzero((hits.face >= 0) & (self.mesh.cutoff[hits.face] != 0))
            _, alpha = base_color(self.mesh, hits.face[rays], hits.weights[rays])
            rays = rays[alpha < 0.5]
            if not len(rays):
                return hits
            travelled[rays] = hits.t[rays] + 1e-5  # beyond the hole; the asset is about 2 across
            again = self._nearest(origins[rays] + travelled[rays, None] * directions[rays], directions[rays])
            hits.face[rays], hits.weights[rays] = again.face, again.weights
            hits.t[rays] = again.t + travelled[rays]
        rays = np.flatnonzero((hits.face >= 0) & (self.mesh.cutoff[hits.face] != 0))
        _, alpha = base_color(self.mesh, hits.face[rays], hits.weights[rays])
        hits.face[rays[alpha < 0.5]] = -1
        return hits

    def _nearest(self, origins: ndarray, directions: ndarray) -> Hits:
        face = self.scene.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32)
        ).astype(np.int64)
        # Embree names the face; where the ray meets it is computed here, in float64.
        hit = np.flatnonzero(face >= 0)
        corners, cross = self.triangles[face[hit]], self.crosses[face[hit]]
        origin, direction = origins[hit], directions[hit]
        facing = np.einsum("ij,ij->i", direction, cross)
        facing = np.where(np.abs(facing) > 1e-30, facing, 1e-30)  # an edge-on face: any point of it will do
        t, weights = np.zeros(len(face)), np.zeros((len(face), 3))
        t[hit] = np.einsum("ij,ij->i", corners[:, 0] - origin, cross) / facing
        offset = origin - corners[:, 0]
        turned = np.cross(offset, direction)
        v = -np.einsum("ij,ij->i", corners[:, 2] - corners[:, 0], turned) / facing
        w = np.einsum("ij,ij->i", corners[:, 1] - corners[:, 0], turned) / facing
        v, w = np.clip(v, 0, 1), np.clip(w, 0, 1)
        over = np.maximum(v + w, 1)  # rounding may put a hit just outside its triangle
        weights[hit] = np.stack([1 - (v + w) / over, v / over, w / over], axis=1)
        return Hits(face, t, weights)


def irradiance(normals: Float[ndarray, "hits 3"]) -> Float[ndarray, "hits"]:
    """Light on a surface whose unit normal faces the viewer, in [AMBIENT, 1]."""
    light = np.full(len(normals), AMBIENT)
    for direction, intensity in LIGHTS:
        light += intensity * np.maximum(normals @ direction, 0)
    return light


def shade(caster: Caster, hits: Hits, directions: Float[ndarray, "rays 3"]) -> Float32[ndarray, "rays 4"]:
    """Lit linear RGB and alpha (0 or 1) of each ray; misses are all zero. Both sides of a face are lit."""
    mesh, rays = caster.mesh, np.flatnonzero(hits.face >= 0)
    face, weights = hits.face[rays], hits.weights[rays]
    color, _ = base_color(mesh, face, weights)
    normal = np.einsum("hc,hcd->hd", weights, mesh.shading[face])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)  # opposite corner normals
    away = np.einsum("ij,ij->i", normal, directions[rays]) > 0
    normal[away] *= -1
    result = np.zeros((len(directions), 4), np.float32)
    light = irradiance(normal)
    if mesh.unlit is not None:
        light[mesh.unlit[face]] = 1
    result[rays, :3] = color * light[:, None]
    result[rays, 3] = 1
    return result


class Film:
    """The rays of one camera's square picture in the camera's own frame; a view's rays are these, turned."""

    def __init__(self, intrinsics: Float[Tensor, "3 3"], *, size: int, supersample: int) -> None:
        self.size, self.rays_per_pixel = size, supersample**2
        y, x = np.mgrid[:size, :size]
        corners = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
        self.sub_directions, _ = _local_rays(intrinsics, corners + sub_pixels(supersample))
        self.directions, self.cosine = _local_rays(intrinsics, corners + 0.5)


def sub_pixels(n: int) -> Float64[ndarray, "rays 2"]:
    """n x n places in the unit pixel: a grid sheared so that no two share a row or column.

    Edges and rods along a picture's axes, which a plain grid resolves in n steps, are resolved in n x n.
    """
    j, i = np.mgrid[:n, :n].reshape(2, -1) + 0.5
    return np.stack([i / n + (j / n - 0.5) / n, j / n - (i / n - 0.5) / n], axis=-1)


def _local_rays(intrinsics: Tensor, pixels: ndarray) -> tuple[ndarray, ndarray]:
    """Unit directions [rays, 3] and their cosines to the z axis [rays], float64."""
    identity = torch.eye(4, dtype=torch.float64)
    flat = torch.from_numpy(pixels.reshape(-1, 2))
    _, directions, cosine = pixel_rays(identity, intrinsics.double(), flat)
    return directions.numpy(), cosine.numpy()


def render_view(
    caster: Caster, cam_to_world: Float[Tensor, "4 4"], film: Film
) -> tuple[UInt8[ndarray, "size size 4"], Float32[ndarray, "size size"]]:
    """One view: straight-alpha sRGB, and depth along the camera's z with 0 for background."""
    size = film.size
    pose = cam_to_world.double().numpy()
    eye, rotation = pose[:3, 3], pose[:3, :3]
    directions = film.sub_directions @ rotation.T
    hits = caster.cast(np.broadcast_to(eye, directions.shape), directions)
    mean = shade(caster, hits, directions).reshape(size * size, film.rays_per_pixel, 4).mean(axis=1)
    covered = np.flatnonzero(mean[:, 3])
    rgba = np.zeros((size * size, 4), np.float32)
    rgba[covered, :3] = linear_to_srgb(mean[covered, :3] / mean[covered, 3:])
    rgba[covered, 3] = mean[covered, 3]
    # The centre's own ray, cast where the pixel has colour: no pixel has depth without it.
    directions = film.directions[covered] @ rotation.T
    hits = caster.cast(np.broadcast_to(eye, directions.shape), directions)
    depth = np.zeros(size * size, np.float32)
    depth[covered] = np.where(hits.face >= 0, hits.t * film.cosine[covered], 0)
    pixels = np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)
    return pixels.reshape(size, size, 4), depth.reshape(size, size)


def render_views(
    mesh: Mesh,
    cam_to_world: Float[Tensor, "views 4 4"],
    intrinsics: Float[Tensor, "3 3"],
    *,
    size: int,
    supersample: int,
) -> tuple[UInt8[ndarray, "views size size 4"], Float32[ndarray, "views size size"]]:
    """RGBA (straight alpha, sRGB) and depth of every camera."""
    caster, film = Caster(mesh), Film(intrinsics, size=size, supersample=supersample)
    views = [render_view(caster, pose, film) for pose in cam_to_world]
    return np.stack([rgba for rgba, _ in views]), np.stack([depth for _, depth in views])


def is_covered(rgba: UInt8[ndarray, "views size size 4"]) -> Bool[ndarray, "views"]:
    """Which views show anything at all."""
    return rgba[..., 3].max(axis=(1, 2)) > 0
