"""Pictures by ray casting (Embree), anti-aliased where it shows: the renderer that needs no graphics library.

One ray goes through each pixel's centre. Pixels that differ in colour from a neighbour, or that hold a mesh
edge which their centres missed (thin rods, specks), are cast again with n x n rays.
Everything is float32; rays have a z of 1 in the camera's frame, so that Embree's distance is the depth.
"""

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Float32
from numpy import ndarray

from data_prep.mesh import Mesh, base_color
from data_prep.render.lighting import Lighting

MAX_LAYERS = 16
"""See-through surfaces that a ray may pass."""
OPAQUE = 0.995
"""Coverage from which nothing behind can change an 8-bit colour."""
BATCH = 1 << 15
"""Rays at once: their arrays stay in the caches."""
COLOR_STEP = 0.06
"""Neighbours differ by more than this in the square root of linear colour (about sRGB) or alpha."""
DEPTH_STEP = 3.0
"""An edge is before what a pixel's centre saw if it is so many pixels' sizes nearer."""


@dataclass(frozen=True)
class Samples:
    """What each ray, or the middle of each pixel, sees; zero where it sees nothing."""

    color: Float32[ndarray, "*rays 7"]
    """Lit linear RGB times alpha, alpha, and unlit linear RGB times alpha."""
    depth: Float32[ndarray, " *rays"]
    """Along the camera's z, of the surface that contributes most."""
    normal: Float32[ndarray, "*rays 3"]
    """Of that surface: unit, in world axes, on the viewer's side."""


class Caster:
    """Casts rays against one mesh under one light."""

    def __init__(self, mesh: Mesh, lighting: Lighting) -> None:
        self.mesh, self.lighting = mesh, lighting
        self.see_through = mesh.cutoff != 0
        self.triangles = np.ascontiguousarray(mesh.triangles, np.float32)
        self.scene = EmbreeScene()
        TriangleMesh(self.scene, self.triangles)

    def trace(self, eye: Float32[ndarray, "3"], directions: Float32[ndarray, "rays 3"]) -> Samples:
        """What rays from `eye` see; see-through surfaces are laid over one another, front to back.

        directions: of z = 1 in the camera's frame.
        """
        num = len(directions)
        result = Samples(*(np.zeros((num, *tail), np.float32) for tail in ((7,), (), (3,))))
        most = np.zeros(num, np.float32)
        rays, origins, start = np.arange(num), np.tile(eye, (num, 1)), np.zeros(num, np.float32)
        for _ in range(MAX_LAYERS):
            found = self.scene.run(origins, directions, output=True)
            hit = np.flatnonzero(found["primID"] >= 0)
            rays, face, depth = rays[hit], found["primID"][hit], found["tfar"][hit] + start[hit]
            u, v, directions = found["u"][hit], found["v"][hit], directions[hit]
            weights = np.stack([1 - u - v, u, v], axis=1)
            color, alpha = base_color(self.mesh, face, weights)
            normal = self._normals(face, weights, found["Ng"][hit], directions)
            share = (1 - result.color[rays, 3]) * alpha
            result.color[rays] += self._layer(face, normal, color, share)
            front = share > most[rays]
            seen = rays[front]
            most[seen], result.depth[seen], result.normal[seen] = share[front], depth[front], normal[front]
            left = np.flatnonzero(self.see_through[face])
            left = left[result.color[rays[left], 3] < OPAQUE]
            if not len(left):
                break
            start = depth[left] * np.float32(1 + 2e-6) + np.float32(1e-5)  # beyond this surface
            rays, directions = rays[left], directions[left]
            origins = eye + start[:, None] * directions
        return result

    def _layer(self, face: ndarray, normal: ndarray, color: ndarray, share: ndarray) -> ndarray:
        """What a surface that covers `share` of its rays adds to them [hits, 7]."""
        light = self.lighting.irradiance(normal)
        if self.mesh.unlit is not None:
            light[self.mesh.unlit[face]] = 1
        added = np.empty((len(face), 7), np.float32)
        np.multiply(color, (share * light)[:, None], out=added[:, :3])
        added[:, 3] = share
        np.multiply(color, share[:, None], out=added[:, 4:])
        return added

    def _normals(self, face: ndarray, weights: ndarray, flat: ndarray, directions: ndarray) -> ndarray:
        """Interpolated unit normals, turned to the side of the face that is seen."""
        normal = np.einsum("hc,hcd->hd", weights, self.mesh.shading[face])
        length = np.sqrt(np.einsum("ij,ij->i", normal, normal))
        behind = np.einsum("ij,ij->i", flat, directions) > 0
        opposed = np.einsum("ij,ij->i", flat, normal) < 0
        factor = np.where(behind != opposed, np.float32(-1), np.float32(1)) / np.maximum(length, 1e-12)
        return normal * factor[:, None]


# ---------------------------------------------------------------- pictures


def edge_points(
    triangles: Float[ndarray, "faces 3 3"], *, spacing: float, most: int
) -> Float32[ndarray, "points 3"]:
    """Points along all edges, `spacing` apart or as far as `most` points allow."""
    start = triangles.reshape(-1, 3)
    along = triangles.take([1, 2, 0], axis=1).reshape(-1, 3) - start
    cumulative = np.cumsum(np.sqrt(np.einsum("ij,ij->i", along, along)), dtype=np.float64)
    num = int(np.clip(cumulative[-1] / spacing, 1, most))
    places = (np.arange(num) + 0.5) / num * cumulative[-1]
    edge = np.minimum(np.searchsorted(cumulative, places, side="right"), len(along) - 1)
    length = np.diff(cumulative, prepend=0)[edge]
    t = 1 - (cumulative[edge] - places) / np.maximum(length, 1e-30)
    return (start.take(edge, axis=0) + t[:, None] * along.take(edge, axis=0)).astype(np.float32)


class Painter:
    """Square pictures of one mesh under one light, by ray casting."""

    def __init__(self, mesh: Mesh, lighting: Lighting, *, size: int, supersample: int, pixel: float) -> None:
        """pixel: its size on the object, world units; only how much is refined depends on it."""
        self.caster, self.size, self.supersample = Caster(mesh, lighting), size, supersample
        self.splats = edge_points(self.caster.triangles, spacing=pixel / 2, most=size**2 + 4096)
        corners = mesh.triangles.reshape(-1, 3)
        ends = np.stack([corners.min(axis=0), corners.max(axis=0)])
        self.box = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(8, 3)

    def paint(self, pose: Float[ndarray, "4 4"], intrinsics: Float[ndarray, "3 3"]) -> Samples:
        """One view [size, size]: colours are means over the pixels, depth and normal are seen through their
        centres."""
        size, lens = self.size, _Lens(pose, intrinsics)
        image = Samples(*(np.zeros((size, size, *tail), np.float32) for tail in ((7,), (), (3,))))
        columns, rows = self._region(lens)
        region = Samples(*(whole[rows, columns] for whole in vars(image).values()))
        y, x = np.mgrid[rows, columns].astype(np.float32)
        for part in np.array_split(np.arange(len(x)), x.size // BATCH + 1):
            directions = lens.directions(x[part].reshape(-1) + 0.5, y[part].reshape(-1) + 0.5)
            centres = self.caster.trace(lens.eye, directions)
            for whole, piece in zip(vars(region).values(), vars(centres).values(), strict=True):
                whole[part] = piece.reshape(whole[part].shape)
        if self.supersample > 1:
            self._refine(region, x, y, lens)
        unseen = region.color[..., 3] < 0.5 / 255  # alpha will be stored as 0: no depth without colour
        for whole in vars(region).values():
            whole[unseen] = 0
        return image

    def _region(self, lens: "_Lens") -> tuple[slice, slice]:
        """Columns and rows of the picture that the mesh may cover."""
        x, y, z = lens.project(self.box)
        if z.min() <= 0:
            return slice(0, self.size), slice(0, self.size)
        ends = np.floor([x.min() - 1, x.max() + 2, y.min() - 1, y.max() + 2])  # and a pixel around it
        left, right, top, bottom = np.clip(ends, 0, self.size).astype(int).tolist()
        return slice(left, right), slice(top, bottom)

    def _refine(self, region: Samples, x: ndarray, y: ndarray, lens: "_Lens") -> None:
        """Colours of uneven pixels anew, from n x n rays each; x, y [rows, columns]: their corners."""
        if not x.size:
            return
        uneven = _uneven(region.color) | self._missed(region, x, y, lens)
        pixels, offsets = np.flatnonzero(uneven), sub_pixels(self.supersample).astype(np.float32)
        color = region.color.reshape(-1, 7)  # a copy where the region is part of a picture
        for part in np.array_split(pixels, len(pixels) * len(offsets) // BATCH + 1):
            across = x.reshape(-1)[part] + offsets[:, :1]
            down = y.reshape(-1)[part] + offsets[:, 1:]
            samples = self.caster.trace(lens.eye, lens.directions(across.reshape(-1), down.reshape(-1)))
            color[part] = samples.color.reshape(len(offsets), -1, 7).mean(axis=0)
        region.color[:] = color.reshape(region.color.shape)

    def _missed(
        self, region: Samples, x: ndarray, y: ndarray, lens: "_Lens"
    ) -> Bool[ndarray, "rows columns"]:
        """Pixels that hold an edge before everything that their centres saw."""
        across, down, z = lens.project(self.splats)
        column, row = (across - x[0, 0]).astype(np.int32), (down - y[0, 0]).astype(np.int32)
        height, width = x.shape
        inside = np.flatnonzero((z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height))
        pixel = row[inside] * width + column[inside]
        nearer = region.depth * np.float32(1 - DEPTH_STEP / lens.focal)
        limit = np.where(nearer > 0, nearer, np.float32(np.inf)).reshape(-1)
        missed = np.zeros(x.size, bool)
        missed[pixel[z[inside] < limit[pixel]]] = True
        return missed.reshape(x.shape)


def _uneven(color: Float32[ndarray, "rows columns 7"]) -> Bool[ndarray, "rows columns"]:
    """Pixels whose lit colour or alpha differs from one of their four neighbours'."""
    seen = np.sqrt(np.moveaxis(color[..., :4], -1, 0))
    uneven = np.zeros(seen.shape[1:], bool)
    for a, b in (
        ((..., slice(None, -1), slice(None)), (..., slice(1, None), slice(None))),
        ((..., slice(None, -1)), (..., slice(1, None))),
    ):
        differ = (np.abs(seen[a] - seen[b]) > COLOR_STEP).any(axis=0)
        uneven[a] |= differ
        uneven[b] |= differ
    return uneven


class _Lens:
    """Rays of one camera's pixels, and points on its picture."""

    def __init__(self, pose: ndarray, intrinsics: ndarray) -> None:
        self.eye = pose[:3, 3].astype(np.float32)
        self.rotation = pose[:3, :3].astype(np.float32)
        self.focal = float(intrinsics[0, 0])
        self.centre = intrinsics[:2, 2].astype(np.float32)

    def directions(self, x: ndarray, y: ndarray) -> Float32[ndarray, "rays 3"]:
        """World directions with a z of 1 in the camera's frame."""
        local = np.empty((len(x), 3), np.float32)
        local[:, 0] = (x - self.centre[0]) / self.focal
        local[:, 1] = (y - self.centre[1]) / self.focal
        local[:, 2] = 1
        return local @ self.rotation.T

    def project(self, points: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """x and y in pixels, and depth."""
        local = (points.astype(np.float32) - self.eye) @ self.rotation
        z = local[:, 2]
        scale = self.focal / np.where(z > 1e-6, z, 1)  # behind the camera: told by z
        return local[:, 0] * scale + self.centre[0], local[:, 1] * scale + self.centre[1], z


def sub_pixels(n: int) -> Float[ndarray, "rays 2"]:
    """n x n places in the unit pixel: a grid sheared so that no two share a row or column.

    Edges and rods along a picture's axes, which a plain grid resolves in n steps, are resolved in n x n.
    """
    j, i = np.mgrid[:n, :n].reshape(2, -1) + 0.5
    return np.stack([i / n + (j / n - 0.5) / n, j / n - (i / n - 0.5) / n], axis=-1)
