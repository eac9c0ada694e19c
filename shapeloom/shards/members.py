"""Members of a sample as bytes: PNG pictures, 16-bit depth pictures, .npy arrays, JSON."""

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image
from zlib_ng import zlib_ng

DEPTH_SCALE = 8192
"""Counts of a 16-bit depth picture per world unit: depths up to 7.9999 in steps of 0.00012."""


_UP = 2
"""PNG's filter type: a byte is stored as its difference to the one above it."""


def encode_png(picture: ndarray) -> bytes:
    """PNG bytes of uint8 [H, W], [H, W, 3] or [H, W, 4], or of uint16 [H, W]; lossless.

    Every row is stored as its difference to the one above it, and compressed by zlib-ng: a fifth of the time
    that Pillow takes to try filters on each row and zlib to compress them, and as small for rendered views.
    """
    height, width = picture.shape[:2]
    color = {1: 0, 3: 2, 4: 6}[1 if picture.ndim == 2 else picture.shape[2]]
    rows = np.ascontiguousarray(picture, ">u2" if picture.dtype == np.uint16 else np.uint8).view(np.uint8)
    rows = rows.reshape(height, -1)
    filtered = np.full((height, 1 + rows.shape[1]), _UP, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8 * picture.dtype.itemsize, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib_ng.compress(filtered, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def decode_png(data: bytes) -> ndarray:
    """The array that `encode_png` was given."""
    return np.asarray(Image.open(io.BytesIO(data)))


def depth_to_png(depth: Float32[ndarray, "height width"]) -> bytes:
    """16-bit PNG of depths; 0 (background) stays 0, a hit is at least 1 count and at most 65535."""
    counts = np.clip(np.rint(depth * DEPTH_SCALE), 1, 65535)
    return encode_png(np.where(depth > 0, counts, 0).astype(np.uint16))


def depth_from_png(data: bytes) -> Float32[ndarray, "height width"]:
    """Depth in world units, 0 where there is background."""
    return decode_png(data).astype(np.float32) / DEPTH_SCALE


def encode_member(name: str, value: Any) -> bytes:
    """Bytes of a member by its name's ending: json, .npy or .png; bytes stay as they are."""
    if isinstance(value, bytes):
        return value
    if name.endswith("json"):
        return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    if name.endswith(".png"):
        return encode_png(value)
    if name.endswith(".npy"):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(value), allow_pickle=False)
        return buffer.getvalue()
    raise ValueError(f"member {name!r}: expected bytes, or a name ending in json, .npy or .png")


def decode_npy(data: bytes) -> ndarray:
    """The array of an .npy member."""
    return np.load(io.BytesIO(data), allow_pickle=False)


def decode_member(name: str, data: bytes) -> Any:
    """What `encode_member` was given: an array, or what JSON says."""
    if name.endswith("json"):
        return json.loads(data)
    return decode_npy(data) if name.endswith(".npy") else decode_png(data)
