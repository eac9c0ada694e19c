"""Bytes of a picture to RGBA texels: PNG, JPEG, WebP and others by Pillow, KTX2 by the Basis transcoder.

Only formats in a short list are tried: some that Pillow knows start other programs to be read.
"""

import io
from dataclasses import dataclass, field
from warnings import catch_warnings, simplefilter

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageFile

from data_prep.failures import AssetError
from data_prep.formats.files import Files

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TGA", "TIFF", "DDS")
_KTX2 = b"\xabKTX 20\xbb\r\n\x1a\n"
_MAX_TEXELS = 1 << 26
"""Of a KTX2 file; Pillow has its own limit of about as many."""


@dataclass
class Pictures:
    """Textures by the words with which a material names them, each file decoded once."""

    files: Files
    max_texture: int
    warnings: list[str]
    decoded: dict[str, ndarray | None] = field(default_factory=dict)

    def get(self, name: str, folder: str | None = None) -> UInt8[ndarray, "height width 4"] | None:
        """Texels, or None with a warning. Raises AssetError for a file that may not be read.

        folder: that names are relative to, as in `Files.get`.
        """
        found = self.files.find(name, folder)
        if found is None:
            self.files.miss(name)
            return None
        if found not in self.decoded:
            self.decoded[found] = self._decode(found)
        return self.decoded[found]

    def _decode(self, found: str) -> ndarray | None:
        try:
            return decode_texture(self.files.read(found), self.max_texture, self.warnings)
        except (AssetError, MemoryError):
            raise
        except Exception as error:  # Pillow's plug-ins raise anything on damaged data
            self.warnings.append(f"unreadable texture {found} ({type(error).__name__}: {error})")
            return None


def decode_texture(data: bytes, limit: int, warnings: list[str]) -> UInt8[ndarray, "height width 4"]:
    """RGBA texels (straight alpha, sRGB) of a picture, shrunk to at most `limit` wide and high.

    A picture that is cut short keeps the rows that it has, with a warning. Raises AssetError "too_large" for
    one that would fill the memory and "unsupported" where the decoder isn't installed; ValueError or OSError
    for one that can't be read.
    """
    if data.startswith(_KTX2):
        return _texels(_decode_ktx2(data), limit)
    try:
        return _texels(_open(data), limit)
    except (OSError, SyntaxError) as error:
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # of the whole process, so no longer than it takes
        try:
            texels = _texels(_open(data), limit)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        warnings.append(f"a texture is damaged, its last rows may be missing ({error})")
        return texels


def _texels(image: Image.Image, limit: int) -> UInt8[ndarray, "height width 4"]:
    if image.mode.startswith("I"):  # 16-bit greys, which convert() would clip
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    if max(image.size) > limit:
        image.draft("RGB", (limit, limit))  # JPEG decodes small at once
        image = image.convert("RGBA")
        image.thumbnail((limit, limit), Image.Resampling.BOX)
    return np.asarray(image.convert("RGBA"))


def _open(data: bytes) -> Image.Image:
    with catch_warnings():
        simplefilter("error", Image.DecompressionBombWarning)
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
