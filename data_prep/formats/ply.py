"""PLY to parts: text and both binary forms, polygons of any size, triangle strips, colours and textures.

Colours are of vertices or else of faces, under any of the names that writers use; texture coordinates are of
vertices or (MeshLab's `texcoord` and `texnumber`) of corners, and count only where a `TextureFile` is there.
Colours are sRGB. Source: Greg Turk's "The PLY Polygon File Format" and what writers made of it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from data_prep.formats.faces import Triangles, as_indices, corner_uv, linear_color, plain_look, to_triangles
from data_prep.formats.files import Files
from data_prep.formats.parts import Look, Part
from data_prep.formats.ply_elements import Element, Ragged, damaged, read_ply
from data_prep.formats.textures import Pictures

_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_UV = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
_INDICES = ("vertex_indices", "vertex_index")


def ply_parts(
    files: Files, max_texture: int, warnings: list[str], *, max_faces: int
) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """The file's surface, a part for each of its textures. Raises AssetError for what can't be read."""
    elements, textures = read_ply(files.own(), warnings)
    vertex = elements.pop("vertex", None)
    if vertex is None:
        raise damaged("has no vertices")
    vertices = _columns(vertex, (("x", "y", "z"),))
    if vertices is None:
        raise damaged("its vertices have no x, y and z")
    pictures = Pictures(files, max_texture, warnings)
    if "face" in elements:
        face = elements.pop("face")
        indices = _indices(face)
        triangles = to_triangles(vertices, indices.values, indices.counts, warnings, max_faces=max_faces)
        yield from _face_parts(vertex, face, triangles, [pictures.get(name) for name in textures])
    if "tristrips" in elements:
        strips = _indices(elements.pop("tristrips"))
        faces = _strip_faces(strips)
        three = np.full(len(faces), 3)
        triangles = to_triangles(vertices, faces.reshape(-1), three, warnings, max_faces=max_faces)
        yield from _face_parts(vertex, Element(0), triangles, [pictures.get(name) for name in textures])
    for name, element in elements.items():
        if element.rows:
            warnings.append(f"left out {element.rows} elements {name!r}: they are no surface")


def _face_parts(
    vertex: Element, face: Element, triangles: Triangles, textures: list[ndarray | None]
) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """One part for each texture, and one for faces without."""
    vertices = _columns(vertex, (("x", "y", "z"),))
    normals = _columns(vertex, (("nx", "ny", "nz"),))
    assert vertices is not None
    color, uv = _corner_colors(vertex, face, triangles), _corner_uv(vertex, face, triangles)
    of_faces = face.numbers.get("texnumber")
    number = np.zeros(len(triangles.polygon)) if of_faces is None else of_faces[triangles.polygon]
    number = as_indices(number)
    missing = [index for index, texture in enumerate(textures) if texture is None]
    bare = (
        np.full(len(number), uv is None) | (number < 0) | (number >= len(textures)) | np.isin(number, missing)
    )
    number = np.where(bare, -1, number)
    for index in np.unique(number):
        mine = number == index
        if index < 0:
            look, own_color, own_uv = plain_look(colored=color is not None), color, None
        else:  # scanners write vertex colours beside the texture: they show the same, so one is enough
            look, own_color, own_uv = Look(texture=textures[index]), None, uv
        yield (
            Part(
                vertices, triangles.faces[mine], look, normals=normals,
                color=None if own_color is None else own_color[mine],
                uv=None if own_uv is None else own_uv[mine],
            ),
            np.eye(4),
        )  # fmt: skip


def _columns(element: Element, names: tuple[tuple[str, ...], ...]) -> ndarray | None:
    """The first of several sets of columns that is whole, as [rows, columns], floats or integers."""
    for group in names:
        if all(name in element.numbers for name in group):
            stacked = np.stack([element.numbers[name] for name in group], axis=1)
            with np.errstate(invalid="ignore"):  # NaN is refused later
                return stacked.astype(float) if stacked.dtype.kind == "f" else stacked
    return None


def _indices(face: Element) -> Ragged:
    for name in _INDICES:
        if name in face.lists:
            return face.lists[name]
    raise damaged(f"its faces have no list {_INDICES[0]!r}")


def _corner_colors(
    vertex: Element, face: Element, triangles: Triangles
) -> Float[ndarray, "faces 3 4"] | None:
    of_vertices, of_faces = _columns(vertex, _COLORS), _columns(face, _COLORS)
    if of_vertices is not None:
        return linear_color(of_vertices)[triangles.faces]
    if of_faces is not None:
        return np.repeat(linear_color(of_faces)[triangles.polygon][:, None], 3, axis=1)
    return None


def _corner_uv(vertex: Element, face: Element, triangles: Triangles) -> Any:
    of_corners, of_vertices = face.lists.get("texcoord"), _columns(vertex, _UV)
    if of_corners is not None and len(of_corners.values) == 2 * _indices(face).counts.sum():
        return corner_uv(of_corners.values.reshape(-1, 2), triangles.corners)
    return None if of_vertices is None else corner_uv(of_vertices, triangles.faces)


def _strip_faces(strips: Ragged) -> Int[ndarray, "faces 3"]:
    """Triangles of strips, each ended by its list's end or by -1; every second runs the other way round."""
    faces = [np.zeros((0, 3), np.int64)]
    for strip in np.split(as_indices(strips.values), np.cumsum(strips.counts)[:-1]):
        for run in np.split(strip, np.flatnonzero(strip < 0)):
            run = run[run >= 0]
            first = np.arange(max(len(run) - 2, 0))
            odd = first % 2
            faces.append(np.stack([run[first], run[first + 1 + odd], run[first + 2 - odd]], axis=1))
    joined = np.concatenate(faces)
    # Strips are joined by triangles that name a vertex twice.
    a, b, c = joined.T
    return joined[(a != b) & (b != c) & (a != c)]
