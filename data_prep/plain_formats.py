"""OBJ to parts, by trimesh. Its colours are sRGB by custom.

trimesh opens whatever picture a material names with Pillow. It is handed a stand-in that carries the name,
and the picture is read here, from where assets may read, in the formats that they may have.
"""

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float
from numpy import ndarray
from PIL import Image, PngImagePlugin
from trimesh.resolvers import Resolver
from trimesh.visual import ColorVisuals, TextureVisuals

from data_prep.failures import AssetError
from data_prep.files import Files
from data_prep.mesh import BLEND, Sampler, Wrap, srgb_to_linear
from data_prep.parts import Look, Part
from data_prep.textures import Pictures

_DEFAULT_GREY = float(srgb_to_linear(np.array(0.8)))
"""Of surfaces without any colour (glTF's default is white)."""


class _StandIns(Resolver):
    """Gives trimesh material libraries as they are, and in place of a picture one that tells its name."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def get(self, key: str) -> bytes:
        """Bytes for the file `key`, relative to the asset."""
        if key.lower().endswith(".mtl"):
            return self.files.get(key)
        chunk, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        chunk.add_itxt("name", key)
        Image.new("RGB", (1, 1)).save(buffer, "PNG", pnginfo=chunk)
        return buffer.getvalue()

    def write(self, name: str, data: Any) -> None:
        """Never."""
        raise PermissionError(name)

    def namespaced(self, namespace: str) -> "_StandIns":
        """Never: no format read here needs it."""
        raise PermissionError(namespace)

    def keys(self) -> list[str]:
        """Nothing is listed, files are read by name."""
        return []


def plain_parts(
    files: Files, suffix: str, max_texture: int, warnings: list[str]
) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """Every geometry with its transform. Raises AssetError for what can't be read."""
    scene = _read_scene(files.own(), suffix, files)
    pictures = Pictures(files, max_texture, warnings)
    for node in sorted(scene.graph.nodes_geometry):
        transform, name = scene.graph.get(node)
        mesh = scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            yield _part(mesh, pictures), np.asarray(transform, float)


def _read_scene(data: bytes, suffix: str, files: Files) -> trimesh.Scene:
    try:
        scene = trimesh.load_scene(
            io.BytesIO(data), file_type=suffix[1:], resolver=_StandIns(files), process=False, metadata={}
        )
    except (AssetError, MemoryError, RecursionError):
        raise
    except ImportError as error:
        raise AssetError("unsupported", f"{suffix} files need a package that is missing: {error}") from error
    except Exception as error:
        # trimesh has no error of its own: a damaged file surfaces as whatever its parser tripped over.
        if not files.refused:
            raise AssetError("unreadable", f"{type(error).__name__}: {error}") from error
    if files.refused:
        raise files.refused[0]
    return scene


def _part(mesh: trimesh.Trimesh, pictures: Pictures) -> Part:
    faces, vertices = np.asarray(mesh.faces, np.int64), np.asarray(mesh.vertices, float)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise AssetError("unreadable", f"a face names vertex {faces.max()} of {len(vertices)}")
    look, transform = _look(mesh, pictures)
    uv = getattr(mesh.visual, "uv", None)
    if uv is not None and np.shape(uv) == (len(vertices), 2):
        moved = np.asarray(uv, float) * transform[0] + transform[1]
        corners = moved.astype(np.float32)[faces]
    else:
        corners = None
    # The property would compute smooth normals for a file without any and round a cube's edges.
    normals = np.asarray(mesh.vertex_normals) if "vertex_normals" in mesh._cache.cache else None
    return Part(vertices, faces, look, color=_colors(mesh, faces), normals=normals, uv=corners)


def _look(mesh: trimesh.Trimesh, pictures: Pictures) -> tuple[Look, ndarray]:
    """Material of a geometry, and scale and offset [2, 2] of its texture coordinates."""
    material = getattr(mesh.visual, "material", None)
    words = getattr(material, "kwargs", {})  # of an MTL file, keys in lower case
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    opacity = _opacity(words)
    cutoff = BLEND if opacity < 1 else 0.0
    if image is not None:
        name, sampler, transform = map_options(str(image.info.get("name", "")))
        texture = pictures.get(name)
        if texture is not None:
            mask = map_options(" ".join(words["map_d"]))[0] if "map_d" in words else ""
            texture = _with_mask(texture, pictures.get(mask)) if mask and mask != name else texture
            # Kd is left out where there is a texture: exporters write black, white or 0.8 there at random.
            return Look(np.array([1, 1, 1, opacity]), texture, sampler, BLEND), transform
    straight = np.array([[1.0, 1], [0, 0]])
    diffuse = (
        getattr(material, "diffuse", None) if "kd" in words else getattr(material, "baseColorFactor", None)
    )
    if diffuse is not None and len(np.atleast_1d(diffuse)) >= 3:
        return Look(
            np.append(srgb_to_linear(np.asarray(diffuse[:3]) / 255.0), opacity), cutoff=cutoff
        ), straight
    colored = getattr(mesh.visual, "kind", None) in ("vertex", "face")
    return Look(
        np.append(np.ones(3) if colored else np.full(3, _DEFAULT_GREY), opacity), cutoff=cutoff
    ), straight


def _opacity(words: dict[str, Any]) -> float:
    """Of an MTL's `d`, or else its inverse `Tr`; 1 where it has neither or no number."""
    try:
        if "d" in words:
            return float(np.clip(float(words["d"][-1]), 0, 1))
        return float(np.clip(1 - float(words["tr"][-1]), 0, 1)) if "tr" in words else 1.0
    except (ValueError, IndexError):
        return 1.0


def map_options(words: str) -> tuple[str, Sampler, ndarray]:
    """File name, sampler, and scale and offset of what follows `map_Kd`: `-clamp on -s 2 2 1 oak.png`."""
    transform = np.array([[1.0, 1], [0, 0]])
    wrap: Wrap = "repeat"
    rest = words.strip()[:2000]
    while option := re.match(r"-(\w+)((?:\s+(?:on|off|-?[\d.]+(?:e-?\d+)?)(?=\s))*)\s+(?=\S)", rest):
        values = option[2].split()
        if option[1] == "clamp" and values == ["on"]:
            wrap = "clamp"
        if option[1] in ("s", "o") and values and values[0] not in ("on", "off"):
            pair = [float(value) for value in (values * 2)[:2]] if len(values) == 1 else values[:2]
            transform["so".index(option[1])] = [float(value) for value in pair]
        rest = rest[option.end() :]
    return rest, Sampler(wrap, wrap), transform


def _with_mask(texture: ndarray, mask: ndarray | None) -> ndarray:
    """The texture with the mask's grey as its alpha, at the texture's size."""
    if mask is None:
        return texture
    grey = Image.fromarray(np.ascontiguousarray(mask[..., :3])).convert("L")
    alpha = np.asarray(grey.resize((texture.shape[1], texture.shape[0]), Image.Resampling.BILINEAR))
    return np.concatenate([texture[..., :3], alpha[..., None]], axis=2)


def _colors(mesh: trimesh.Trimesh, faces: ndarray) -> Float[ndarray, "faces 3 4"] | None:
    """Linear vertex or face colours at each corner, all opaque; None where there are none."""
    visual = mesh.visual
    if isinstance(visual, ColorVisuals) and visual.kind == "face":
        color = np.repeat(visual.face_colors[:, None, :3], 3, axis=1)
    elif isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        color = visual.vertex_colors[:, :3][faces]
    elif isinstance(visual, TextureVisuals) and "color" in visual.vertex_attributes:
        color = visual.vertex_attributes["color"][:, :3][faces]
    else:
        return None
    scale = np.iinfo(color.dtype).max if color.dtype.kind in "ui" else 1
    linear = srgb_to_linear(np.nan_to_num(np.clip(color / scale, 0, 1)))
    return np.concatenate([linear, np.ones((*linear.shape[:2], 1))], axis=2)
