"""Members of a sample as bytes: PNG pictures, 16-bit depth pictures, .npy arrays, JSON."""

import io
import json
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image

DEPTH_SCALE = 8192
"""Counts of a 16-bit depth picture per world unit: depths up to 7.9999 in steps of 0.00012."""


def encode_png(picture: ndarray) -> bytes:
    """PNG bytes of uint8 [H, W], [H, W, 3] or [H, W, 4], or of uint16 [H, W]; level 6, lossless."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


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
