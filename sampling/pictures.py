"""Pictures in and out: condition images, animations and contact sheets. All uint8 sRGB [height, width, 3].

PNGs may have straight alpha as a fourth channel.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from sampling.formats import PICTURE_FORMATS, listed
from shapeloom.pictures import on_white
from shapeloom.storage import write_atomic

FRAMES_PER_SECOND = 12


def gif(frames: UInt8[np.ndarray, "frames height width 3"]) -> bytes:
    """Returns an endless animation. All frames share one palette, so that still parts don't flicker."""
    num, height, width, _ = frames.shape
    strip = Image.fromarray(frames.reshape(num * height, width, 3)).quantize(256)
    images = [strip.crop((0, i * height, width, (i + 1) * height)) for i in range(num)]
    data = io.BytesIO()
    images[0].save(
        data, "GIF", save_all=True, append_images=images[1:], duration=1000 // FRAMES_PER_SECOND, loop=0
    )
    return data.getvalue()


def apng(frames: UInt8[np.ndarray, "frames height width channels"]) -> bytes:
    """Returns an endless animated PNG, RGB or RGBA; viewers that don't know them show the first frame."""
    images = [Image.fromarray(frame) for frame in frames]
    data = io.BytesIO()
    images[0].save(
        data, "PNG", save_all=True, append_images=images[1:], duration=1000 // FRAMES_PER_SECOND, loop=0
    )
    return data.getvalue()


def png(picture: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Returns a PNG file's bytes, RGB or RGBA."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


def save_mp4(path: Path, frames: UInt8[np.ndarray, "frames height width 3"]) -> None:
    """Writes an H.264 video; an odd side gets a copy of its last line, since the format wants even ones."""
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (frames.shape[2], frames.shape[1]),
        fps=FRAMES_PER_SECOND,
        macro_block_size=2,
        quality=8,
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    temporary.replace(path)


def save_frames(path: Path, frames: UInt8[np.ndarray, "frames height width channels"]) -> None:
    """Writes .gif or .mp4 (both on white), .apng, or the first frame as .png, by the suffix."""
    opaque = on_white(frames) if frames.shape[-1] == 4 else frames
    match path.suffix:
        case ".gif":
            write_atomic(path, gif(opaque))
        case ".mp4":
            save_mp4(path, opaque)
        case ".apng":
            write_atomic(path, apng(frames))
        case ".png":
            write_atomic(path, png(frames[0]))
        case _:
            raise ValueError(f"frames can be saved as {listed(PICTURE_FORMATS)}, not as {path.name}")


def side_by_side(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, size: int
) -> UInt8[np.ndarray, "size width 3"]:
    """Returns square pictures in a row, scaled to `size` pixels a side."""
    scaled = [Image.fromarray(picture) for picture in pictures]
    return np.concatenate(
        [np.asarray(each.resize((size, size), Image.Resampling.LANCZOS)) for each in scaled], axis=1
    )


def contact_sheet(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    labels: Sequence[str],
    *,
    size: int = 256,
    columns: int = 4,
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a grid of pictures, scaled to `size` pixels of height, with their whole labels below.

    All are given the width of the widest.
    """
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    width = max((round(size * p.shape[1] / p.shape[0]) for p in pictures), default=size)
    font = ImageFont.load_default(size=13 if width >= 128 else 11)
    texts = [_lines(label, font, width - 6) for label in labels]
    line = round(font.size) + 3 if isinstance(font, ImageFont.FreeTypeFont) else 14
    height = size + 3 + line * max(map(len, texts), default=1)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        x, y = i % columns * width, i // columns * height
        fitting = round(size * picture.shape[1] / picture.shape[0])
        sheet.paste(Image.fromarray(picture).resize((fitting, size), Image.Resampling.LANCZOS), (x, y))
        for number, text in enumerate(lines):
            draw.text((x + 3, y + size + 1 + line * number), text, fill=(60, 60, 60), font=font)
    return np.array(sheet)


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Returns `text` in lines of at most `width` pixels, broken between words, or within long ones."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
