"""A UV atlas by xatlas and a texture baked into it.

uv is in [0, 1]^2, v upwards (as in OBJ; glTF's runs downwards): pixel (row, column) of a size x size picture
has its centre at u = (column + 0.5) / size, v = 1 - (row + 0.5) / size. Texels are 8-bit sRGB.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xatlas
from jaxtyping import Float, Int, UInt8
from scipy.ndimage import distance_transform_edt

from sampling.mesh import Mesh, Texture, sample_colours

# xatlas' time grows like faces^1.5 within one mesh. 50,000 faces in chunks of 2,500 / 1,200 / 600 take
# 4.8 / 3.6 / 2.7 CPU seconds, their charts cover 51 / 48 / 46% of the texture, and the seams split 18 / 22 /
# 26% of the vertices.
CHUNK_FACES = 1_000
# Texels of triangles' boxes that are tried at once: some 200 MB.
TEXELS_AT_ONCE = 1 << 20
# Texels between charts at the texture's own size: room for bilinear look-ups and one mip level or two.
PADDING = 4


@dataclass(frozen=True)
class Atlas:
    """Faces over vertices split at the seams: split vertex i is the mesh's vertex `origin[i]`, at uv[i]."""

    origin: Int[np.ndarray, " split"]
    faces: Int[np.ndarray, "faces 3"]
    uv: Float[np.ndarray, "split 2"]


def unwrap(
    vertices: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"], *, size: int
) -> Atlas:
    """Returns charts without overlap, packed for a picture of size x size; faces keep their winding.

    Deterministic. Raises ValueError for a mesh without faces.
    """
    if not len(faces):
        raise ValueError("a mesh without faces can't be unwrapped")
    chunks = _chunks(vertices[faces].mean(axis=1), np.arange(len(faces)))
    packer = xatlas.Atlas()
    used = []
    for chunk in chunks:
        index, local = np.unique(faces[chunk], return_inverse=True)
        used.append(index)
        packer.add_mesh(vertices[index].astype(np.float32), local.reshape(-1, 3).astype(np.uint32))
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = size, PADDING, True
    packer.generate(xatlas.ChartOptions(), pack)
    # xatlas overshoots the size that it is asked for; scaling both axes alike keeps texels square.
    scale = np.array([packer.width, packer.height]) / max(packer.width, packer.height)
    origins, face_parts, uvs, start = [], [], [], 0
    for i, index in enumerate(used):
        mapping, chart_faces, uv = packer.get_mesh(i)
        origins.append(index[mapping])
        face_parts.append(chart_faces.astype(np.int64) + start)
        uvs.append(uv * scale)
        start += len(mapping)
    uv = np.clip(np.concatenate(uvs), 0, 1).astype(np.float32)
    return Atlas(np.concatenate(origins).astype(np.int64), np.concatenate(face_parts), uv)


def _chunks(centres: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    """Halves the faces along their longest extent until each chunk is small: compact chunks, short seams."""
    if len(index) <= CHUNK_FACES:
        return [index]
    axis = np.ptp(centres[index], axis=0).argmax()
    order = index[np.argsort(centres[index, axis], kind="stable")]
    half = len(order) // 2
    return _chunks(centres, order[:half]) + _chunks(centres, order[half:])


def rasterize(
    uv: Float[np.ndarray, "split 2"], faces: Int[np.ndarray, "faces 3"], *, size: int
) -> tuple[Int[np.ndarray, "size size"], Float[np.ndarray, "size size 3"]]:
    """Returns the face that covers each texel's centre (-1: none) and its barycentric coordinates there.

    Every texel of each triangle's bounding box is tried, so the cost is the boxes' total area.
    """
    xy = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=-1).astype(np.float64) * size - 0.5
    covering = np.full((size, size), -1, np.int32)
    barycentric = np.zeros((size, size, 3), np.float32)
    corners = xy[faces]
    low = np.ceil(corners.min(axis=1)).astype(np.int64).clip(0, size)
    extent = (np.floor(corners.max(axis=1)).astype(np.int64) + 1).clip(low, size) - low
    texels = extent.prod(axis=1)
    group = texels.cumsum() // TEXELS_AT_ONCE
    for part in np.split(np.arange(len(faces)), np.flatnonzero(np.diff(group)) + 1):
        which, row, column, weights = _covered(corners[part], low[part], extent[part])
        covering[row, column] = part[which]
        barycentric[row, column] = weights
    return covering, barycentric


def _covered(
    corners: Float[np.ndarray, "faces 3 2"],
    low: Int[np.ndarray, "faces 2"],
    extent: Int[np.ndarray, "faces 2"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns face, row, column and barycentric coordinates of the texels that lie inside of the faces."""
    num = extent.prod(axis=1)
    face = np.repeat(np.arange(len(corners)), num)
    rank = np.arange(num.sum()) - np.repeat(num.cumsum() - num, num)
    column = low[face, 0] + rank % extent[face, 0]
    row = low[face, 1] + rank // extent[face, 0]
    a, b, c = (corners[:, i] for i in range(3))
    double_area = _cross(b - a, c - a)
    flat = np.abs(double_area) < 1e-12
    point = np.stack([column, row], axis=-1)
    safe = np.where(flat, 1.0, double_area)[face]
    weight_b = _cross(point - a[face], (c - a)[face]) / safe
    weight_c = _cross((b - a)[face], point - a[face]) / safe
    weights = np.stack([1 - weight_b - weight_c, weight_b, weight_c], axis=-1)
    # The slack gives a texel on the edge of two triangles to one of them in spite of rounding.
    inside = (weights.min(axis=1) > -1e-6) & ~flat[face]
    return face[inside], row[inside], column[inside], weights[inside]


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def texel_points(
    vertices: Float[np.ndarray, "vertices 3"], atlas: Atlas, *, size: int
) -> Float[np.ndarray, "size size 3"]:
    """Returns the surface point of each texel of a baked texture; gaps have their nearest texel's."""
    face, barycentric = rasterize(atlas.uv, atlas.faces, size=size)
    corners = vertices[atlas.origin[atlas.faces[face.clip(0)]]]
    points = (corners * barycentric[..., None]).sum(axis=2)
    nearest = distance_transform_edt(face < 0, return_distances=False, return_indices=True)
    return points[nearest[0], nearest[1]]


def bake(
    mesh: Mesh, atlas: Atlas, texture: Texture, *, size: int, device: torch.device | str = "cpu"
) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the texture's colours at the texels' surface points; gaps take their nearest texel's colour."""
    face, barycentric = rasterize(atlas.uv, atlas.faces, size=size)
    covered = face >= 0
    if not covered.any():
        # All charts are smaller than a texel: any one colour of the mesh serves.
        return np.broadcast_to(mesh.colours[0], (size, size, 3)).copy()
    picture = np.zeros((size, size, 3), np.uint8)
    rows_at_once = max(1, TEXELS_AT_ONCE // size)
    for start in range(0, size, rows_at_once):
        band = slice(start, start + rows_at_once)
        some = covered[band]
        corners = mesh.vertices[atlas.origin[atlas.faces[face[band][some]]]]
        points = (corners * barycentric[band][some][..., None]).sum(axis=1)
        picture[band][some] = sample_colours(texture, points, device=device)
    nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return np.ascontiguousarray(picture[nearest[0], nearest[1]])
