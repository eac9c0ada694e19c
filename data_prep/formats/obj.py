"""OBJ files to parts, one for each material and whether its faces have texture coordinates.

Polygons are triangulated; lines (as which some programs write faces of two corners) and points are no
surface. What can't be read costs its own faces and a warning.
Vertex colours are read as rows of six numbers (0 to 1 or 255) and as ZBrush's `#MRGB` comments, and multiply
the material's `Kd`. Source: "Object files (.obj)", Appendix B1 of Wavefront's Advanced Visualizer manual.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.colliders import Shape, find_colliders, suspicious
from data_prep.formats.faces import linear_color, say_lost
from data_prep.formats.files import Files
from data_prep.formats.mtl import Surface, find_libraries, read_materials, surface
from data_prep.formats.obj_text import Lines, library_names, read_faces, read_rows, split_lines
from data_prep.formats.parts import DEFAULT_GREY, Look, Part
from data_prep.formats.polygons import triangulate
from data_prep.formats.textures import Pictures

_NO_MATERIAL = {"", "None", "(null)"}
"""Names that exporters give to faces without a material."""


@dataclass
class _Model:
    """Triangles as numbers of vertices, texture coordinates and normals (-1: none) at each corner."""

    vertices: Float[ndarray, "vertices 3"]
    colors: Float[ndarray, "vertices 3"] | None
    """Linear RGB; NaN where a vertex has none."""
    uv: Float[ndarray, "coordinates 2"]
    normals: Float[ndarray, "normals 3"]
    corners: Int[ndarray, "triangles 3 3"]
    lines: Int[ndarray, " triangles"]
    """Where each stands in the file."""

    def select(self, keep: ndarray) -> None:
        """Keeps some triangles alone."""
        self.corners, self.lines = self.corners[keep], self.lines[keep]


def obj_parts(
    files: Files, max_texture: int, warnings: list[str], *, max_faces: int
) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """Every part of the asset in its place. Raises AssetError for what can't be read."""
    data = files.own()
    lines = split_lines(data)
    names, uses = lines.statements("usemtl")
    model = _read_model(lines, warnings, max_faces)
    _leave_out_colliders(model, lines, uses, warnings)
    materials = read_materials(files, find_libraries(files, library_names(data)))
    if materials and (absent := sorted(set(names) - materials.keys() - _NO_MATERIAL)):
        warnings.append(f"has no material {', '.join(absent)} in its libraries")
    if not len(model.lines):
        return
    pictures = Pictures(files, max_texture, warnings)
    names = ["", *names]  # in front of the first statement
    unique = list(dict.fromkeys(names))
    number = {name: place for place, name in enumerate(unique)}
    material = np.array([number[name] for name in names])[np.searchsorted(uses, model.lines)]
    placed: ndarray = np.all(model.corners[:, :, 1] >= 0, axis=1)
    order = np.argsort(material * 2 + placed, kind="stable")
    cuts = np.flatnonzero(np.diff((material * 2 + placed)[order])) + 1
    looks: dict[int, Surface] = {}
    for mine in np.split(order, cuts):
        which = int(material[mine[0]])
        own = materials.get(unique[which])
        if which not in looks:
            looks[which] = surface(own, pictures)
        part = _part(model, mine, looks[which], textured=bool(placed[mine[0]]), bare=own is None)
        yield part, np.eye(4)
    if model.colors is not None and any(look.textured.texture is not None for look in looks.values()):
        warnings.append("its vertex colours are left out where it has textures")


def _read_model(lines: Lines, warnings: list[str], max_faces: int) -> _Model:
    rows, counts = read_rows(lines, b"v")
    uv, normals = read_rows(lines, b"vt")[0][:, :2], read_rows(lines, b"vn")[0][:, :3]
    polygons = np.sort(np.concatenate([lines.starting(b"f"), lines.starting(b"fo")]))
    if len(polygons) > max_faces:
        raise AssetError("too_large", f"has more than {max_faces} faces")
    corners, sizes, odd = read_faces(lines, polygons)
    kinds = (lines.starting(kind) for kind in (b"v", b"vt", b"vn"))
    for column, kind in enumerate(kinds):
        corners[:, column] = _resolve(corners[:, column], np.repeat(np.searchsorted(kind, polygons), sizes))
    good = _check(corners, sizes, odd, (len(rows), len(uv), len(normals)), warnings)
    corners, sizes, polygons = corners[np.repeat(good, sizes)], sizes[good], polygons[good]
    if np.maximum(sizes - 2, 0).sum() > max_faces:
        raise AssetError("too_large", f"has more than {max_faces} faces")
    triangles, owner = triangulate(rows[corners[:, 0], :3], sizes)
    if not len(triangles) and not good.all():
        raise AssetError("unreadable", "; ".join(warnings))
    if num := sum(len(lines.starting(kind)) for kind in (b"surf", b"bzp", b"bsp")):
        warnings.append(f"left out {num} free-form surfaces: polygons alone are read")
    colors = _vertex_colors(lines, rows, counts)
    return _Model(rows[:, :3], colors, uv, normals, corners[triangles], polygons[owner])


def _resolve(written: Int[ndarray, " corners"], before: Int[ndarray, " corners"]) -> Int[ndarray, " corners"]:
    """References as indices; negative ones count back from the rows in front of the face, 0 is -1."""
    return np.where(written < 0, before + written, written - 1)


def _check(
    corners: Int[ndarray, "corners 3"],
    sizes: Int[ndarray, " faces"],
    odd: Bool[ndarray, " faces"],
    counts: tuple[int, int, int],
    warnings: list[str],
) -> Bool[ndarray, " faces"]:
    """The faces that can be read. References to coordinates and normals that aren't there become -1."""
    owner = np.repeat(np.arange(len(sizes)), sizes)

    def faces_with(bad: ndarray) -> Bool[ndarray, " faces"]:
        return np.bincount(owner[bad], minlength=len(sizes)) > 0

    broken = faces_with((corners[:, 0] < 0) | (corners[:, 0] >= counts[0])) & ~odd
    bare = (sizes < 2) & ~odd & ~broken
    say_lost(warnings, int(bare.sum()), len(sizes), "they have fewer than two corners")
    say_lost(warnings, int(odd.sum()), len(sizes), "they are no references to vertices")
    reason = f"they name vertices beyond the {counts[0]} there are"
    say_lost(warnings, int(broken.sum()), len(sizes), reason)
    for column, name in ((1, "texture coordinates"), (2, "normals")):
        lost = (corners[:, column] < -1) | (corners[:, column] >= counts[column])
        if num := (faces_with(lost) & ~broken & ~odd).sum():
            warnings.append(f"{num} of {len(sizes)} faces name {name} that are not there")
        corners[lost, column] = -1
    return ~broken & ~odd & ~bare


def _vertex_colors(
    lines: Lines, rows: Float[ndarray, "vertices _"], counts: Int[ndarray, " vertices"]
) -> Float[ndarray, "vertices 3"] | None:
    srgb, known = np.zeros((len(rows), 3)), np.zeros(len(rows), bool)
    if rows.shape[1] >= 6:
        known = counts >= 6
        srgb[known] = rows[known, 3:6]
    elif blocks := lines.statements("#MRGB")[0]:
        digits = "".join("".join(re.findall("[0-9a-fA-F]{8}", block)) for block in blocks)
        words = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 4)[: len(rows)]
        known[: len(words)] = True
        srgb[: len(words)] = words[:, 1:] / 255  # in front of them stands the mask
    else:
        return None
    return np.where(known[:, None], linear_color(srgb)[:, :3], np.nan)


def _leave_out_colliders(
    model: _Model, lines: Lines, uses: Int[ndarray, " statements"], warnings: list[str]
) -> None:
    """Objects and groups that are there for a game engine's physics."""
    statements = [lines.statements(keyword) for keyword in ("o", "g")]
    starts = np.concatenate([found for _, found in statements])
    order = np.argsort(starts)
    names = ["", *np.array([*statements[0][0], *statements[1][0]], object)[order].tolist()]
    if not any(map(suspicious, names)):
        return
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    group = np.array([number[name] for name in names])[np.searchsorted(starts[order], model.lines)]
    shown = np.unique(group)
    shapes = []
    for mine in shown.tolist():
        points = model.vertices[model.corners[group == mine][:, :, 0].ravel()]
        painted = bool((np.searchsorted(uses, model.lines[group == mine]) > 0).any())
        bounds = np.stack([points.min(axis=0), points.max(axis=0)])
        shapes.append(Shape(list(number)[mine], painted, bounds))
    if hidden := find_colliders(shapes):
        warnings.append("left out as colliders: " + ", ".join(shapes[index].name for index in hidden))
        model.select(~np.isin(group, shown[hidden]))


def _part(model: _Model, mine: Int[ndarray, " faces"], look: Surface, *, textured: bool, bare: bool) -> Part:
    """The triangles `mine`; textured: they have texture coordinates; bare: they have no material."""
    corners = model.corners[mine]
    used, faces = _compact(corners[:, :, 0].ravel(), len(model.vertices))
    part = Part(model.vertices[used], faces.reshape(-1, 3), look.textured if textured else look.plain)
    if (corners[:, :, 2] >= 0).any():
        normals = model.normals[corners[:, :, 2]]
        part.corner_normals = np.where(corners[:, :, 2:] >= 0, normals, 0)
    if part.look.texture is not None:
        moved = model.uv[corners[:, :, 1]] * look.transform[0] + look.transform[1]
        part.uv = moved.astype(np.float32)
    elif model.colors is not None:
        color = model.colors[corners[:, :, 0]]
        if bare:
            part.look = Look()
        color = np.where(np.isnan(color), DEFAULT_GREY if bare else 1, color)
        part.color = np.concatenate([color, np.ones((*color.shape[:2], 1))], axis=2)
    return part


def _compact(
    numbers: Int[ndarray, " corners"], total: int
) -> tuple[Int[ndarray, " used"], Int[ndarray, " corners"]]:
    """The different ones among numbers below `total`, as they first come, and each as its place there."""
    place = np.arange(len(numbers))
    first = np.empty(total, np.int64)
    first[numbers[::-1]] = place[::-1]  # the last to be written is the first in the list
    first = first[numbers]
    return numbers[first == place], (np.cumsum(first == place) - 1)[first]
