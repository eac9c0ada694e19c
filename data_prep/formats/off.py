"""OFF to a part: polygons of any size, colours of vertices and faces, the variants of Geomview's format.

A row of a vertex has its place, then its normal (N), colour (C) and texture coordinates (ST), as the first
word says (`STCNOFF`); colours are there without being announced too. A face's row may end with a colour.
Colours are sRGB, fractions or bytes. Source: "Object File Format", Geomview's manual.
"""

import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.faces import as_indices, linear_color, numbers, plain_look, to_triangles
from data_prep.formats.files import Files
from data_prep.formats.parts import DEFAULT_GREY, Part

_KEYWORD = re.compile(rb"\s*(ST)?(C)?(N)?(4)?(n)?(?:OFF|off)(\s+BINARY)?")


def off_parts(
    files: Files, warnings: list[str], *, max_faces: int
) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """The file's surface. Raises AssetError for what can't be read."""
    data = files.own().removeprefix(b"\xef\xbb\xbf")
    lines = [line.partition(b"#")[0].strip() for line in data.splitlines()]
    keyword = _KEYWORD.match(b"\n".join(lines[:50]) + b"\n")
    if keyword and (keyword[5] or keyword[6]):
        raise AssetError(
            "unsupported", f"is a {keyword[0].strip().decode()} file: text in 3 dimensions is read"
        )
    lines = [line for line in lines if line]
    if keyword:  # the counts may stand in the same line, even without a blank
        lines[0] = _KEYWORD.sub(b"", lines[0], count=1).strip()
        lines = lines[0 if lines[0] else 1 :]
    if not lines:
        raise AssetError("unreadable", "not an OFF file: it has no counts")
    counts = numbers(lines[0])
    if len(counts) < 2 or not (counts[:2] >= 0).all() or not (counts[:2] <= len(data)).all():
        raise AssetError(
            "unreadable", f"claims {lines[0][:80].decode('latin-1')} elements in {len(data)} bytes"
        )
    num_vertices, num_faces = (int(count) for count in counts[:2])
    variant = {
        name: bool(keyword and keyword[n]) for n, name in enumerate(("st", "color", "normal", "four"), 1)
    }
    rows, used = _vertex_rows(lines[1:], num_vertices, variant)
    yield _part(rows, variant, lines[1 + used :], num_faces, warnings, max_faces), np.eye(4)


def _vertex_rows(lines: list[bytes], count: int, variant: dict[str, bool]) -> tuple[ndarray, int]:
    """The vertices' numbers [count, width] and how many lines they take."""
    if not count:
        raise AssetError("empty", "has no vertices")
    width = len(lines[0].split()) if lines else 0
    values = numbers(b" ".join(lines[:count]))
    if len(lines) >= count and len(values) == count * width and width >= 3:
        return values.reshape(count, width), count
    # Lines mean nothing here: numbers are counted.
    width = 3 + variant["four"] + 3 * variant["normal"] + 4 * variant["color"] + 2 * variant["st"]
    used = have = 0
    while have < count * width and used < len(lines):
        have += len(lines[used].split())
        used += 1
    values = numbers(b" ".join(lines[:used]))
    if len(values) != count * width:
        raise AssetError(
            "unreadable", f"cut short or damaged: {count} vertices of {width} numbers aren't there"
        )
    return values.reshape(count, width), used


def _part(
    rows: ndarray,
    variant: dict[str, bool],
    lines: list[bytes],
    count: int,
    warnings: list[str],
    max_faces: int,
) -> Part:
    vertices, rest = rows[:, :3], rows[:, 3:]
    if variant["four"]:
        with np.errstate(all="ignore"):  # a place at infinity is refused later
            vertices, rest = vertices / rest[:, :1], rest[:, 1:]
    normals = None
    if variant["normal"]:
        normals, rest = rest[:, :3], rest[:, 3:]
    rest = rest[:, : rest.shape[1] - 2] if variant["st"] else rest
    sizes, corners, colors = _faces(lines, count)
    triangles = to_triangles(vertices, corners, sizes, warnings, max_faces=max_faces)
    color = None
    if rest.shape[1] >= 3:
        color = linear_color(rest)[triangles.faces]
    elif colors is not None:
        known = ~np.isnan(colors).any(axis=1)
        linear = np.where(known[:, None], linear_color(colors), [*[DEFAULT_GREY] * 3, 1])
        color = np.repeat(linear[triangles.polygon][:, None], 3, axis=1)
    return Part(
        vertices, triangles.faces, plain_look(colored=color is not None), color=color, normals=normals
    )


def _faces(lines: list[bytes], count: int) -> tuple[ndarray, ndarray, ndarray | None]:
    """Each face's number of corners, all corners, and the faces' colours [faces, 3], NaN for none."""
    width = len(lines[0].split()) if lines else 0
    values = numbers(b" ".join(lines[:count]))
    if count and len(lines) >= count and len(values) == count * width:
        table = values.reshape(count, width)
        size = int(table[0, 0])
        if (table[:, 0] == size).all() and 0 <= size < width:
            colors = table[:, size + 1 : size + 4] if width >= size + 4 else None
            return np.full(count, size), as_indices(table[:, 1 : 1 + size].reshape(-1)), colors
    rows = [numbers(line) for line in lines[:count]]
    if len(rows) < count or not all(len(row) > row[0] >= 0 for row in rows):
        # Lines mean nothing here either, so there is no telling colours.
        rows = _stream(numbers(b" ".join(lines)), count)
    sizes = as_indices(np.array([row[0] for row in rows]))
    colors = np.full((count, 3), np.nan)
    corners = [np.zeros(0)]
    for index, (row, size) in enumerate(zip(rows, sizes.tolist(), strict=True)):
        corners.append(row[1 : 1 + size])
        if len(row) >= size + 4:
            colors[index] = row[size + 1 : size + 4]
    return sizes, as_indices(np.concatenate(corners)), None if np.isnan(colors).all() else colors


def _stream(values: ndarray, count: int) -> list[ndarray]:
    rows, at = [], 0
    for _ in range(count):
        size = int(values[at]) if at < len(values) else -1
        if size < 0 or at + 1 + size > len(values):
            raise AssetError("unreadable", f"cut short: its {count} faces aren't all there")
        rows.append(values[at : at + 1 + size])
        at += 1 + size
    return rows
