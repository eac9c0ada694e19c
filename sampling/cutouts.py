"""Pictures as people have them, made to look like the views that models are trained on.

Upright, the object cut out on white, in the middle of a square of which its longer side takes OBJECT_SHARE.
What can't be used is refused by a word of its own. Decoded pictures are uint8 sRGB with straight alpha.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field as Key
from scipy.ndimage import distance_transform_edt

from sampling.matting import load_network, matte
from shapeloom.config import Config, UserError
from shapeloom.pictures import on_white

MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_SIDE = 32_768
MAX_SIDE = 1024
"""Longer sides are shrunk to it; CLIP sees 448 at most."""
LEAST_SIDE = 16
"""Of a picture, before anything is cut."""
SHOWN_SIDE = 512
"""Of what the model sees, at most."""
OBJECT_SHARE = 0.56
"""Median over views of the embedded set, seen from where data preparation's cameras stand; half of them lie
between 0.53 and 0.59."""
LEAST_OBJECT = 0.001
"""Of a picture's area: less is no object."""
LEAST_CLEAR = 0.01
"""Of a picture's area that must be see-through for its alpha channel to be a cut-out."""
SURE = 0.95
"""Alpha from which a pixel's colour is the object's own."""

RGBA = UInt8[ndarray, "height width 4"]


class PictureConfig(Config):
    """How pictures to follow are made ready."""

    background: Literal["remove", "keep"] = Key(
        "remove",
        description="remove: cut the object out (by the alpha channel if there is one), crop and centre it; "
        "keep: show the picture as it is",
    )
    matting: Path | None = Key(
        None, description="ONNX file of a network of rembg's that finds the object, such as u2net.onnx; "
        "none: by colours alone, for plain backgrounds",
    )  # fmt: skip


DEFAULT = PictureConfig()


def load_image(
    path: Path, config: PictureConfig = DEFAULT, *, name: str = "", max_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> UInt8[ndarray, "side side 3"]:  # fmt: skip
    """Returns a PNG or JPEG as the model is to see it: a square on white, at most MAX_SIDE a side.

    name: what messages call the file; its path if empty.
    Raises UserError for what `read_picture` refuses, and where no object is found.
    """
    name = name or str(path)
    rgba = read_picture(path, name=name, max_bytes=max_bytes, max_pixels=max_pixels)
    return on_square(rgba) if config.background == "keep" else centred(cut_out(rgba, config, name=name))


def read_picture(path: Path, *, name: str, max_bytes: int, max_pixels: int) -> RGBA:
    """Returns a PNG or JPEG upright, its longer side at most MAX_SIDE.

    Memory is bounded by the picture's own pixels (12 bytes each), however long it is.
    Raises UserError for files that are missing, too large (found out before anything is decoded), too small,
    animated or not such a picture.
    """
    if not path.is_file():
        raise UserError(f"The image {name} does not exist.")
    if path.stat().st_size > max_bytes:
        raise UserError(f"{name} is larger than {max_bytes >> 20} MB; scale it down first.")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            width, height = opened.size
            if width * height > max_pixels or max(width, height) > MAX_IMAGE_SIDE:
                raise UserError(
                    f"{name} has {width}x{height} pixels; at most {max_pixels // 10**6} million are taken, "
                    f"and {MAX_IMAGE_SIDE:,} a side. Scale it down first."
                )
            if min(width, height) < LEAST_SIDE:
                raise UserError(
                    f"{name} has {width}x{height} pixels, too few to show an object; {LEAST_SIDE} a side is "
                    "the least."
                )
            # Phones' JPEGs may hold further pictures, of which the first counts.
            if opened.format == "PNG" and getattr(opened, "n_frames", 1) > 1:
                raise UserError(f"{name} is animated: save the frame that you mean as a picture of its own.")
            opened.draft("RGB", (MAX_SIDE, MAX_SIDE))  # of a JPEG no more is decoded than is needed
            image = _eight_bits(opened).convert("RGBA")
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            return np.array(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name} has far too many pixels; at most {max_pixels // 10**6} million are taken. Scale it down "
            "first."
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).replace(str(path), name)
        raise UserError(f"{name} can't be read as a PNG or JPEG picture ({reason}).") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Brings 16-bit greys, which Pillow would cut off at 255, to 8 bits."""
    if not image.mode.startswith("I"):
        return image
    grey = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    grey.info = image.info  # EXIF, for one
    return grey


def cut_out(rgba: RGBA, config: PictureConfig = DEFAULT, *, name: str = "the picture") -> RGBA:
    """Returns the picture with all but its object see-through.

    Raises UserError if it is see-through all over, or no object stands out in it.
    """
    own = rgba[..., 3] / np.float32(255)
    if (own < 0.5).mean() >= LEAST_CLEAR:
        if (own >= 0.5).mean() < LEAST_OBJECT:
            raise UserError(f"{name} is see-through all over, so there is no object in it.")
        return rgba
    rgb = on_white(rgba)
    alpha = (matte if config.matting is None else load_network(config.matting))(rgb)
    if (alpha >= 0.5).mean() < LEAST_OBJECT:
        raise UserError(
            f"{name} shows no object that stands out from its background. Cut it out (a PNG with a "
            "see-through background), name a network (pictures.matting) or show it as it is "
            "(pictures.background=keep)."
        )
    return np.dstack([_own_colours(rgb, alpha), (255 * alpha).round().astype(np.uint8)])


def _own_colours(
    rgb: UInt8[ndarray, "height width 3"], alpha: Float32[ndarray, "height width"]
) -> UInt8[ndarray, "height width 3"]:
    """Returns the colours with the nearest sure one wherever the background may shine through."""
    if not (alpha >= SURE).any():
        return rgb
    rows, columns = distance_transform_edt(alpha < SURE, return_distances=False, return_indices=True)
    return rgb[rows, columns]


def centred(rgba: RGBA) -> UInt8[ndarray, "side side 3"]:
    """Returns a cut-out object on white as data preparation's cameras see one; its alpha isn't 0 all over."""
    rows, columns = (np.nonzero((rgba[..., 3] >= 128).any(axis=axis))[0] for axis in (1, 0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    side = round(max(bottom - top, right - left) / OBJECT_SHARE)
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    size = max(LEAST_SIDE, min(SHOWN_SIDE, side))
    # Premultiplied: what is see-through has a colour too, which mustn't bleed in.
    image = Image.fromarray(rgba).convert("RGBa")
    wide = image.crop((int(x), int(y), int(x) + side, int(y) + side))
    return on_square(np.array(wide.resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")))


def on_square(rgba: RGBA) -> UInt8[ndarray, "side side 3"]:
    """Returns a picture on white, padded to a square."""
    image = Image.fromarray(rgba)
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.array(square.convert("RGB"))
