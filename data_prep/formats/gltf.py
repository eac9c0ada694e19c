"""A .gltf or .glb file's JSON tree, its buffers, and numbers out of them (glTF 2.0, sections 3.6 and 4.4).

Decodes Draco primitives by DracoPy and meshopt-compressed buffer views by meshopt. Nothing is taken on trust:
every offset, count and index is checked against the bytes that are there before memory is asked for.
"""

import base64
import binascii
import json
import struct
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.archives import check_size
from data_prep.formats.files import Files

_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
_DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_URL_SAFE = str.maketrans("-_", "+/")
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
TECHNIQUES = ("KHR_technique_webgl", "KHR_techniques_webgl")
"""Shaders of their own in place of materials."""
_SUPPORTED = {
    *MESHOPT,
    "EXT_mesh_gpu_instancing",
    "EXT_texture_avif",
    "EXT_texture_webp",
    "KHR_draco_mesh_compression",
    "KHR_lights_punctual",
    "KHR_mesh_quantization",
    "KHR_node_visibility",
    "KHR_texture_basisu",
    "KHR_texture_transform",
    # Of no effect on surfaces and their base colours at rest:
    "EXT_lights_ies",
    "EXT_lights_image_based",
    "KHR_animation_pointer",
    "KHR_xmp",
    "KHR_xmp_json_ld",
    # Of materials, which are then left out with a warning:
    *TECHNIQUES,
    "MSFT_lod",
}


def damaged(what: str) -> AssetError:
    """An AssetError that says what of the file breaks the standard."""
    return AssetError("unreadable", what)


@dataclass
class Gltf:
    """One file, parsed; make it with `open_gltf`."""

    tree: dict[str, Any]
    files: Files
    binary: bytes
    """The GLB's own buffer."""
    max_items: int
    """Rows of an accessor at most."""
    warnings: list[str]
    """What was left out and why, for the asset's record."""
    buffers: dict[int, bytes] = field(default_factory=dict)
    views: dict[int, bytes] = field(default_factory=dict)

    def entry(self, kind: str, index: Any) -> dict[str, Any]:
        """The object `index` of a top-level list such as "meshes"."""
        entries = self.tree.get(kind, [])
        if not isinstance(index, int) or not isinstance(entries, list) or not 0 <= index < len(entries):
            raise damaged(f"{kind}[{index}] is named but not there")
        if not isinstance(entries[index], dict):
            raise damaged(f"{kind}[{index}] is no object")
        return entries[index]

    def uri(self, uri: str) -> bytes:
        """Bytes of a data: address or of a file beside the asset."""
        if not uri.startswith("data:"):
            return self.files.get(uri)
        head, _, data = uri.partition(",")
        if not head.endswith(";base64"):
            return unquote_to_bytes(data)
        try:  # some writers leave the padding out, or use the alphabet for addresses
            data = unquote(data).rstrip("=").translate(_URL_SAFE)
            return base64.b64decode(data + "=" * (-len(data) % 4))
        except (binascii.Error, ValueError) as error:
            raise damaged(f"a data: address is no base64: {error}") from error

    def buffer(self, index: int) -> bytes:
        """A buffer's bytes, at least as many as it says."""
        if index not in self.buffers:
            entry = self.entry("buffers", index)
            try:
                data = self.uri(entry["uri"]) if "uri" in entry else self.binary
            except FileNotFoundError as error:
                raise damaged(f"missing file {error}") from error
            if len(data) < entry.get("byteLength", 0):
                raise damaged(f"buffer {index} is cut short: {len(data)} of {entry['byteLength']} bytes")
            self.buffers[index] = data
        return self.buffers[index]

    def view(self, index: int) -> bytes:
        """A buffer view's bytes, decompressed."""
        if index not in self.views:
            entry = self.entry("bufferViews", index)
            packed = next((entry["extensions"][n] for n in MESHOPT if n in entry.get("extensions", {})), None)
            self.views[index] = self._slice(packed or entry)
            if packed is not None:
                self.views[index] = self._unpack(self.views[index], packed)
        return self.views[index]

    def _slice(self, entry: dict[str, Any]) -> bytes:
        data = self.buffer(entry["buffer"])
        start, length = entry.get("byteOffset", 0), entry["byteLength"]
        if start < 0 or length < 0 or start + length > len(data):
            raise damaged(f"a buffer view ends at byte {start + length} of {len(data)}")
        return data[start : start + length]

    def _unpack(self, data: bytes, packed: dict[str, Any]) -> bytes:
        try:
            import meshopt
        except ImportError as error:
            raise AssetError(
                "unsupported", "is packed by meshopt, which needs `pip install shapeloom[codecs]`"
            ) from error
        count, stride = packed["count"], packed["byteStride"]
        check_size("an unpacked buffer view", count * stride, self.files.max_bytes)
        return bytes(
            meshopt.decode_gltf_buffer(data, count, stride, packed["mode"], packed.get("filter", "NONE"))
        )

    def accessor(self, index: Any) -> ndarray:
        """An accessor's rows [count, width]: floats, normalised where it says so, or integers."""
        entry = self.entry("accessors", index)
        count, width, dtype = (
            entry["count"],
            _WIDTHS.get(entry["type"], 0),
            _DTYPES.get(entry["componentType"]),
        )
        if not width or dtype is None or not isinstance(count, int) or count < 0:
            raise damaged(f"accessors[{index}] has an unknown type")
        if count > self.max_items:
            raise AssetError("too_large", f"accessors[{index}] claims {count} rows")
        if "bufferView" in entry:
            rows = self._rows(entry["bufferView"], entry.get("byteOffset", 0), count, width, np.dtype(dtype))
        else:
            rows = np.zeros((count, width), dtype)
        if "sparse" in entry:
            rows = self._substitute(rows, entry["sparse"])
        return normalise(rows) if entry.get("normalized") else rows

    def _rows(self, view: int, offset: int, count: int, width: int, dtype: np.dtype) -> ndarray:
        data, size = self.view(view), width * dtype.itemsize
        stride = self.entry("bufferViews", view).get("byteStride") or size
        end = offset + (count - 1) * stride + size if count else offset
        if offset < 0 or stride < size or end > len(data):
            raise damaged(f"an accessor ends at byte {end} of a buffer view of {len(data)}")
        if not count:
            return np.zeros((0, width), dtype)
        raw = np.frombuffer(data, np.uint8, end - offset, offset)
        rows = np.lib.stride_tricks.as_strided(raw, (count, size), (stride, 1), writeable=False)
        return np.ascontiguousarray(rows).view(dtype)

    def _substitute(self, rows: ndarray, sparse: dict[str, Any]) -> ndarray:
        count, at = sparse["count"], sparse["indices"]
        dtype = np.dtype(_DTYPES[at["componentType"]])
        if not 0 <= count <= len(rows):
            raise damaged(f"a sparse accessor replaces {count} of {len(rows)} rows")
        indices = self._rows(at["bufferView"], at.get("byteOffset", 0), count, 1, dtype)[:, 0]
        values = sparse["values"]
        if count and indices.max() >= len(rows):
            raise damaged("a sparse accessor replaces rows that it hasn't")
        rows = rows.copy()
        rows[indices] = self._rows(
            values["bufferView"], values.get("byteOffset", 0), count, rows.shape[1], rows.dtype
        )
        return rows

    def draco(
        self, extension: dict[str, Any], accessors: dict[str, Any]
    ) -> tuple[dict[str, ndarray], ndarray | None]:
        """A Draco primitive's attributes by their glTF names, typed and normalised like accessors; its faces.

        accessors: the primitive's own attributes, which say what type each is of.
        """
        import DracoPy

        try:
            decoded = DracoPy.decode(self.view(extension["bufferView"]))
        except Exception as error:  # the wrapper has no error class of its own
            raise damaged(f"its Draco data can't be decoded: {error}") from error
        by_id = {attribute["unique_id"]: np.asarray(attribute["data"]) for attribute in decoded.attributes}
        named = {
            name: self._as_accessor(by_id[number], accessors.get(name))
            for name, number in extension["attributes"].items()
            if number in by_id
        }
        faces = getattr(decoded, "faces", None)
        if "POSITION" not in named or faces is None or not len(faces):
            raise damaged("its Draco data holds no triangles")
        return named, np.asarray(faces)

    def _as_accessor(self, rows: ndarray, accessor: Any) -> ndarray:
        """Decoded rows [count, width]; DracoPy returns 16-bit integers as 32-bit ones."""
        entry = {} if accessor is None else self.entry("accessors", accessor)
        dtype = _DTYPES.get(entry.get("componentType", 0))
        rows = rows.reshape(len(rows), -1)
        if dtype is not None and (rows.dtype.kind != "f" or dtype == "<f4"):
            rows = rows.astype(dtype)
        return normalise(rows) if entry.get("normalized") else rows


def normalise(rows: ndarray) -> ndarray:
    """Integers as the fractions of their range that glTF means: [0, 1] or [-1, 1]."""
    if rows.dtype.kind == "f":
        return rows
    return np.maximum(rows.astype(np.float32) / np.float32(np.iinfo(rows.dtype).max), -1)


def open_gltf(files: Files, warnings: list[str], *, max_items: int) -> Gltf:
    """Parses the asset. Raises AssetError if it isn't glTF 2 or requires an unknown extension.

    warnings: gets a line for whatever is left out.
    """
    data = files.own()
    text, binary = _split_glb(data) if data[:4] == b"glTF" else (data, b"")
    try:
        tree = json.loads(text.rstrip(b"\0 \r\n\t"))  # old writers pad with zeros
        version = str(tree["asset"]["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(f"not a glTF file: its JSON can't be read ({type(error).__name__}: {error})") from error
    if not version.startswith("2"):
        raise AssetError("unsupported", f"glTF version {version}; version 2 is needed")
    required = {str(name) for name in tree.get("extensionsRequired", [])}
    if unknown := {n for n in required - _SUPPORTED if not n.startswith("KHR_materials_")}:
        raise AssetError("unsupported", f"needs the glTF extension {', '.join(sorted(unknown))}")
    return Gltf(tree, files, binary, max_items, warnings)


def _split_glb(data: bytes) -> tuple[bytes, bytes]:
    """The JSON and the binary chunk of a GLB."""
    if len(data) < 20:
        raise damaged(f"cut short: {len(data)} bytes are less than a GLB header")
    _, version, length, size, kind = struct.unpack("<5I", data[:20])
    if version != 2:
        raise AssetError("unsupported", f"is binary glTF of version {version}; version 2 is needed")
    if kind != _JSON_CHUNK or length > len(data) or 20 + size > len(data):
        raise damaged(f"cut short or damaged: its header says {length} bytes, it has {len(data)}")
    rest = data[20 + size :]
    if len(rest) < 8:
        return data[20 : 20 + size], b""
    length, kind = struct.unpack("<2I", rest[:8])
    return data[20 : 20 + size], rest[8 : 8 + length] if kind == _BINARY_CHUNK else b""
