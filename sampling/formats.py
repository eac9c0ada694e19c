"""What a shape can be saved as: the endings of files, without their dots."""

from typing import Literal, get_args

MeshFormat = Literal["glb", "obj", "ply", "stl", "usdz"]
PictureFormat = Literal["gif", "mp4", "apng", "png"]
Format = Literal[MeshFormat, PictureFormat, "safetensors"]

MESH_FORMATS: tuple[MeshFormat, ...] = get_args(MeshFormat)
PICTURE_FORMATS: tuple[PictureFormat, ...] = get_args(PictureFormat)
FORMATS: tuple[Format, ...] = get_args(Format)


def listed(formats: tuple[str, ...]) -> str:
    """Returns ".glb, .obj, ..." for messages."""
    return ", ".join(f".{name}" for name in formats)
