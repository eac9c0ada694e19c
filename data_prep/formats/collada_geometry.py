"""COLLADA meshes to parts: every kind of primitive, polygons with holes, columns by corner.

A primitive's corner is a row of indices, one for each of its inputs' offsets (specification 1.4.1, chapter
5).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.collada import Document, Node, claimed, inputs, integers
from data_prep.formats.collada_materials import Materials, Surface
from data_prep.formats.faces import linear_color, to_triangles
from data_prep.formats.parts import Part
from data_prep.formats.polygons import join_holes

_SURFACES = ("triangles", "polylist", "polygons", "trifans", "tristrips")
_MESHES = ("mesh", "convex_mesh")


@dataclass(frozen=True)
class _Column:
    """Where a corner's value is: a column of its row of indices, and the values."""

    offset: int
    values: Float[ndarray, "rows columns"]


def geometry_parts(
    document: Document,
    geometry: Node,
    materials: Materials,
    bindings: dict[str, Node],
    *,
    positions: Float[ndarray, "vertices 3"] | None = None,
    max_faces: int,
) -> list[Part]:
    """A geometry's primitives. What of it can't be read is left out with a warning.

    bindings: instance_material elements by the symbols that primitives use. positions: in place of the mesh's
    own, of a morph.
    """
    mesh = mesh_of(document, geometry)
    parts = []
    for primitive in mesh if mesh is not None else ():
        name = f"{primitive.tag} of geometry {geometry.get('id')!r}"
        if primitive.tag in ("lines", "linestrips"):
            document.warn(f"left out {name}: they are no surface")
        if primitive.tag not in _SURFACES:
            continue
        try:
            part = _primitive(document, mesh, primitive, materials, bindings, positions, max_faces)
        except AssetError as error:
            if error.reason != "unreadable":
                raise
            document.warn(f"left out {name}: {error.message}")
            continue
        if part is not None:
            parts.append(part)
    return parts


def mesh_of(document: Document, geometry: Node) -> Node | None:
    """A geometry's mesh; None with a warning if it is something else."""
    mesh = next((found for tag in _MESHES if (found := geometry.find(tag)) is not None), None)
    if mesh is None:
        document.warn(f"left out geometry {geometry.get('id')!r}: it is no mesh")
    return mesh


def mesh_positions(document: Document, mesh: Node) -> Float[ndarray, "vertices 3"]:
    """A mesh's vertices. Raises AssetError if they are missing or damaged."""
    for semantic, _, _, source in inputs(mesh.find("vertices")):
        if semantic == "POSITION":
            rows = document.rows(source)
            if rows.shape[1] == 3:
                return rows
            raise AssetError("unreadable", "positions are no triples")
    raise AssetError("unreadable", "it has no positions")


def _primitive(
    document: Document,
    mesh: Node,
    primitive: Node,
    materials: Materials,
    bindings: dict[str, Node],
    positions: ndarray | None,
    max_faces: int,
) -> Part | None:
    positions = mesh_positions(document, mesh) if positions is None else positions
    sources = _sources(mesh, primitive)
    if ("VERTEX", 0) not in sources:
        raise AssetError("unreadable", "it has no vertices")
    width = 1 + max(offset for _, _, offset, _ in inputs(primitive))
    table, counts = _corners(primitive, width, positions, sources[("VERTEX", 0)][0])
    if claimed(primitive) not in (None, len(counts)) and primitive.tag in (
        "triangles",
        "polylist",
        "polygons",
    ):
        document.warn(f"claims {claimed(primitive)} faces and holds {len(counts)}: those were read")
    if not len(counts):
        return None
    vertex = table[:, sources[("VERTEX", 0)][0]]
    triangles = to_triangles(positions, vertex, counts, document.warnings, max_faces=max_faces)
    rows = table[triangles.corners]
    surface = materials.surface(primitive.get("material"), bindings)
    channel = _channel(surface, sources)
    color, normal, uv = (
        _column(document, sources, key, rows) for key in (("COLOR", 0), ("NORMAL", 0), channel)
    )
    tint = None if color is None else linear_color(color.values)
    return Part(
        positions, triangles.faces, surface.look(tint),
        corner_normals=None if normal is None else normal.values[rows[..., normal.offset], :3],
        color=None if color is None or tint is None else tint[rows[..., color.offset]],
        uv=None if uv is None else uv.values[:, :2].astype(np.float32)[rows[..., uv.offset]],
    )  # fmt: skip


def _sources(mesh: Node, primitive: Node) -> dict[tuple[str, int], tuple[int, str | None]]:
    """Offset and source by semantic and set, with those of <vertices>; a semantic's lowest set is 0 too."""
    found: dict[tuple[str, int], tuple[int, str | None]] = {}
    for semantic, number, offset, source in inputs(primitive):
        found.setdefault((semantic, number), (offset, source))
        if semantic == "VERTEX":
            found.setdefault(("VERTEX", 0), (offset, source))
            for inner, inner_number, _, inner_source in inputs(mesh.find("vertices")):
                found.setdefault((inner, inner_number), (offset, inner_source))
    for semantic in ("COLOR", "NORMAL", "TEXCOORD"):
        sets = sorted(number for name, number in found if name == semantic)
        if sets:
            found.setdefault((semantic, 0), found[(semantic, sets[0])])
    return found


def _channel(surface: Surface, sources: dict[tuple[str, int], tuple[int, str | None]]) -> tuple[str, int]:
    return surface.channel if surface.channel in sources else ("TEXCOORD", 0)


def _corners(
    primitive: Node, width: int, positions: ndarray, vertex: int
) -> tuple[Int[ndarray, "corners width"], Int[ndarray, " faces"]]:
    """Rows of indices, face after face, and the number of corners of each face."""
    blocks = [_table(p, width) for p in primitive.findall("p")]
    match primitive.tag:
        case "triangles":
            table = np.concatenate([_table(None, width), *blocks])
            table = table[: len(table) // 3 * 3]
            return table, np.full(len(table) // 3, 3)
        case "polylist":
            table, counts = np.concatenate([_table(None, width), *blocks]), integers(primitive.find("vcount"))
            if (counts < 0).any():
                raise AssetError("unreadable", "a face has less than no corners")
            ends = np.cumsum(counts)
            counts = counts[ends <= len(table)]
            return table[: counts.sum()], counts
        case "trifans" | "tristrips":
            order = [
                _fan(len(block)) if primitive.tag == "trifans" else _strip(len(block)) for block in blocks
            ]
            rows = [block[which].reshape(-1, width) for block, which in zip(blocks, order, strict=True)]
            table = np.concatenate([_table(None, width), *rows])
            return table, np.full(len(table) // 3, 3)
        case _:
            blocks += [_with_holes(ph, width, positions, vertex) for ph in primitive.findall("ph")]
            return np.concatenate([_table(None, width), *blocks]), np.array(
                [len(b) for b in blocks], np.int64
            )


def _table(p: Node | None, width: int) -> Int[ndarray, "corners width"]:
    values = integers(p)
    return values[: len(values) // width * width].reshape(-1, width)


def _fan(count: int) -> Int[ndarray, "faces 3"]:
    second = np.arange(1, max(count - 1, 1))
    return np.stack([np.zeros_like(second), second, second + 1], axis=1)


def _strip(count: int) -> Int[ndarray, "faces 3"]:
    first = np.arange(max(count - 2, 0))
    odd = first % 2  # runs the other way round
    return np.stack([first, first + 1 + odd, first + 2 - odd], axis=1)


def _with_holes(ph: Node, width: int, positions: ndarray, vertex: int) -> Int[ndarray, "corners width"]:
    rings = [
        ring for ring in (_table(p, width) for p in (*ph.findall("p"), *ph.findall("h"))) if len(ring) > 2
    ]
    if not rings:
        return _table(None, width)
    corners = np.concatenate(rings)
    if corners[:, vertex].min() < 0 or corners[:, vertex].max() >= len(positions):
        return corners  # left out with all faces that name vertices that aren't there
    return corners[join_holes([positions[ring[:, vertex]] for ring in rings])]


def _column(
    document: Document,
    sources: dict[tuple[str, int], tuple[int, str | None]],
    key: tuple[str, int],
    rows: Int[ndarray, "faces 3 width"],
) -> _Column | None:
    """A column with a value for every corner; None if there is none, with a warning if it is damaged."""
    if key not in sources:
        return None
    offset, source = sources[key]
    which, wanted = rows[..., offset], 2 if key[0] == "TEXCOORD" else 3
    try:
        values = document.rows(source)
    except AssetError as error:
        document.warn(f"left out {key[0]}: {error.message}")
        return None
    if values.shape[1] >= wanted and which.min(initial=0) >= 0 and which.max(initial=-1) < len(values):
        return _Column(offset, values)
    document.warn(f"left out {key[0]}: it has no value for some corners")
    return None
