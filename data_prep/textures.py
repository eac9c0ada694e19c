"""Bytes of a picture to RGBA texels: PNG, JPEG, WebP and others by Pillow, KTX2 by the Basis transcoder.

Only formats in a short list are tried: some that Pillow knows start other programs to be read.
"""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from data_prep.failures import AssetError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TGA", "TIFF", "DDS")
_KTX2 = b"\xabKTX 20\xbb\r\n\x1a\n"
_MAX_TEXELS = 1 << 26
"""Of a KTX2 file; Pillow has its own limit of about as many."""


def decode_texture(data: bytes, limit: int) -> UInt8[ndarray, "height width 4"]:
    """RGBA texels (straight alpha, sRGB) of a picture, shrunk to at most `limit` wide and high.

    Raises AssetError "too_large" for one that would fill the memory and "unsupported" where the decoder isn't
    installed; ValueError or OSError for one that can't be read.
    """
    image = _decode_ktx2(data) if data.startswith(_KTX2) else _open(data)
    if image.mode.startswith("I"):  # 16-bit greys, which convert() would clip
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    if max(image.size) > limit:
        image.draft("RGB", (limit, limit))  # JPEG decodes small at once
        image = image.convert("RGBA")
        image.thumbnail((limit, limit), Image.Resampling.BOX)
    return np.asarray(image.convert("RGBA"))


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise AssetError("too_large", f"has a texture of too many pixels: {error}") from error


def _decode_ktx2(data: bytes) -> Image.Image:
    try:
        import opengl_basisu
    except ImportError as error:
        raise AssetError(
            "unsupported", "has KTX2 textures, which need `pip install shapeloom[codecs]`"
        ) from error
    texture = opengl_basisu.open(data)
    if texture.width * texture.height > _MAX_TEXELS:
        raise AssetError("too_large", f"has a texture of {texture.width} x {texture.height} pixels")
    return Image.fromarray(np.ascontiguousarray(texture.transcode("rgba8").data))
