"""STL to a part: binary, with face colours of both conventions, and text.

Which form a file has is told by its words and its length, since many binary files start with "solid" too.
Face colours have 5 bits a channel, sRGB: VisCAM and SolidView set bit 15 of a coloured face and have blue
lowest; Materialise Magics names a colour of the whole in the header, sets bit 15 of the faces that have it,
and has red lowest. Source: Wikipedia, "STL (file format)".
"""

import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.faces import linear_color, numbers, plain_look, to_triangles
from data_prep.formats.files import Files
from data_prep.formats.parts import DEFAULT_GREY, Part

_HEADER, _FACE = 84, 50
_ROW = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])
_NUMBER = rb"[-+]?(?:\d|\.\d|nan|inf)\S*"
_VERTEX = re.compile(rb"\bvertex\s+(" + rb"\s+".join([_NUMBER] * 3) + rb")", re.IGNORECASE)
_FACET = re.compile(rb"\bfacet\s+normal\b", re.IGNORECASE)


def stl_parts(
    files: Files, warnings: list[str], *, max_faces: int
) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """The file's surface. Raises AssetError for what can't be read."""
    data = files.own()
    yield (_text if _is_text(data) else _binary)(data, warnings, max_faces), np.eye(4)


def _is_text(data: bytes) -> bool:
    if len(data) >= _HEADER and len(data) == _HEADER + _FACE * int.from_bytes(data[80:84], "little"):
        return False
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith(b"solid") and (b"facet" in start or b"endsolid" in start)


def _binary(data: bytes, warnings: list[str], max_faces: int) -> Part:
    count, rest = int.from_bytes(data[80:84], "little"), len(data) - _HEADER
    if rest < _FACE or count * _FACE > rest:
        raise AssetError("unreadable", f"cut short: claims {count} triangles in {len(data)} bytes")
    # A writer that doesn't know the count yet and never comes back leaves 0 or an old one.
    if count == 0 or (count * _FACE != rest and rest % _FACE == 0):
        warnings.append(f"claims {count} faces and holds {rest // _FACE}: those were read")
        count = rest // _FACE
    elif rest - count * _FACE >= _FACE:
        warnings.append(f"left out {rest - count * _FACE} bytes behind the {count} faces that it claims")
    if count > max_faces:
        raise AssetError("too_large", f"has more than {max_faces} faces")
    rows = np.frombuffer(data, _ROW, count, _HEADER)
    color = _colors(data[:80], rows["attribute"])
    with np.errstate(invalid="ignore"):  # NaN is refused later
        vertices = rows["vertices"].reshape(-1, 3).astype(float)
    return Part(
        vertices,
        np.arange(3 * count).reshape(-1, 3),
        plain_look(colored=color is not None),
        color=None if color is None else np.repeat(color[:, None], 3, axis=1),
    )


def _colors(header: bytes, attribute: ndarray) -> Float[ndarray, "faces 4"] | None:
    """Linear colours of faces, None if they have none."""
    flagged = attribute >> 15 == 1
    channels = (attribute[:, None] >> np.array([0, 5, 10], np.uint16)) & 31
    magics = header.find(b"COLOR=")
    if magics >= 0 and magics + 10 <= len(header):
        whole = linear_color(np.frombuffer(header, np.uint8, 3, magics + 6))
        shared = flagged | (not attribute.any())
        return np.where(shared[:, None], whole, linear_color(channels / 31.0))
    if not flagged.any():
        return None
    grey = np.array([*[DEFAULT_GREY] * 3, 1])
    return np.where(flagged[:, None], linear_color(channels[:, ::-1] / 31.0), grey)


def _text(data: bytes, warnings: list[str], max_faces: int) -> Part:
    found, written = _VERTEX.findall(data), len(_FACET.findall(data))
    counts = np.full(written, 3)
    if len(found) != 3 * written:  # some facet has more corners, or fewer
        facets = _FACET.split(data)[1:]
        counts = np.array([len(_VERTEX.findall(facet)) for facet in facets], np.int64)
        found = [vertex for facet in facets for vertex in _VERTEX.findall(facet)]
    vertices = numbers(b" ".join(found)).reshape(-1, 3)
    triangles = to_triangles(vertices, np.arange(len(vertices)), counts, warnings, max_faces=max_faces)
    return Part(vertices, triangles.faces, plain_look(colored=False))
