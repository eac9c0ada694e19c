"""Files to meshes: GLB, glTF, OBJ, PLY and STL through trimesh, in the project's frame (right-handed, +Z up).

glTF and OBJ are +Y up and are turned; PLY and STL (scans, CAD, printing) are +Z up and stay as they are;
`up` overrides. A file may name others (textures, materials, buffers) in its own folder and below; anything
else is refused. A missing texture is a warning, a missing buffer an error.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import trimesh
from numpy import ndarray
from PIL import Image
from trimesh.resolvers import Resolver
from trimesh.visual import ColorVisuals, TextureVisuals

from data_prep import gltf
from data_prep.failures import AssetError
from data_prep.mesh import Mesh, srgb_to_linear, unit_normals

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
Up = Literal["auto", "y", "z"]

_DEFAULT_GREY = float(srgb_to_linear(np.array(0.8)))
"""Of surfaces without any colour, outside glTF (whose default is white)."""
_Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


class FolderResolver(Resolver):
    """Reads files of one folder and below; keeps its exceptions, which trimesh swallows."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder.resolve(), max_bytes
        self.refused: list[AssetError] = []
        self.missing: list[str] = []

    def get(self, key: str) -> bytes:
        """Bytes of the file `key`, relative to the folder."""
        name = key.strip().replace("\\", "/")
        path = (self.folder / name).resolve()
        if not path.is_file():  # glTF writes URIs, OBJ plain names
            path = (self.folder / unquote(name)).resolve()
        if not path.is_relative_to(self.folder):
            error = AssetError("outside_folder", f"refers to {key!r}, which lies outside the asset's folder")
            self.refused.append(error)
            raise error
        if not path.is_file():
            self.missing.append(key)
            raise FileNotFoundError(key)
        return read_limited(path, self.max_bytes)

    def write(self, name: str, data: Any) -> None:
        """Never."""
        raise PermissionError(name)

    def namespaced(self, namespace: str) -> "FolderResolver":
        """Never: no format read here needs it."""
        raise PermissionError(namespace)

    def keys(self) -> list[str]:
        """Nothing is listed, files are read by name."""
        return []


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Bytes of a file; AssetError if it has more than `max_bytes`."""
    size = path.stat().st_size
    if size > max_bytes:
        raise AssetError(
            "too_large", f"{path.name} has {size / 1e6:.0f} MB, the limit is {max_bytes / 1e6:.0f}"
        )
    return path.read_bytes()


@dataclass
class _Look:
    """Base colour of one geometry."""

    factor: ndarray
    """Linear RGB."""
    image: Image.Image | None = None
    cutoff: float = 0.0
    linear_vertex_color: bool = False


def load_mesh(
    path: Path,
    *,
    up: Up = "auto",
    max_faces: int = 2_000_000,
    max_bytes: int = 1 << 30,
    max_texture: int = 1024,
) -> Mesh:
    """Reads one file as a triangle soup in the project's frame, in the file's own units.

    max_texture: larger textures are shrunk to it. Raises AssetError with the reason for whatever can't be
    used: unreadable, empty, without extent, not finite, too large, files outside its folder.
    """
    suffix = path.suffix.lower()
    data = read_limited(path, max_bytes)
    resolver = FolderResolver(path.parent, max_bytes=max_bytes)
    tree: dict[str, Any] = {}
    if suffix in (".glb", ".gltf"):
        tree, data = gltf.settle(data)
    scene = _read_scene(data, suffix, resolver)
    builder = _Soup(max_texture, look_of=lambda mesh: _look(mesh, tree) if tree else _plain_look(mesh))
    for geometry, transform in _instances(scene):
        builder.add(geometry, transform)
        if builder.num_faces > max_faces:
            raise AssetError("too_large", f"has more than {max_faces} faces")
    turn = (suffix in (".glb", ".gltf", ".obj")) if up == "auto" else up == "y"
    mesh = builder.build(_Y_UP_TO_Z_UP if turn else np.eye(3))
    mesh.warnings.extend(f"missing file {name}" for name in sorted(set(resolver.missing)))
    return mesh


def _read_scene(data: bytes, suffix: str, resolver: FolderResolver) -> trimesh.Scene:
    try:
        scene = trimesh.load_scene(
            io.BytesIO(data), file_type=suffix[1:], resolver=resolver, process=False, metadata={}
        )
    except AssetError:
        raise
    except Exception as error:
        # trimesh has no error of its own: a damaged file surfaces as whatever its parser tripped over.
        if not resolver.refused:
            missing = f"; missing file {resolver.missing[0]!r}" if resolver.missing else ""
            raise AssetError("unreadable", f"{type(error).__name__}: {error}{missing}") from error
    if resolver.refused:
        raise resolver.refused[0]
    return scene


def _instances(scene: trimesh.Scene) -> Iterator[tuple[trimesh.Trimesh, ndarray]]:
    for node in sorted(scene.graph.nodes_geometry):
        transform, name = scene.graph.get(node)
        geometry = scene.geometry[name]
        if isinstance(geometry, trimesh.Trimesh) and len(geometry.faces) and not gltf.is_collider(str(node)):
            yield geometry, np.asarray(transform, float)


def _look(mesh: trimesh.Trimesh, tree: dict[str, Any]) -> _Look:
    """Of a glTF primitive, whose material was renamed to its index."""
    material = getattr(mesh.visual, "material", None)
    name = str(getattr(material, "name", ""))
    if not name.isdigit() or int(name) >= len(tree.get("materials", [])):
        return _Look(np.ones(3), linear_vertex_color=True)
    entry = tree["materials"][int(name)]
    return _Look(
        factor=np.clip(np.array(gltf.base_color_factor(entry)[:3], float), 0, 1),
        image=getattr(material, "baseColorTexture", None),
        cutoff=gltf.alpha_cutoff(entry),
        linear_vertex_color=True,
    )


def _plain_look(mesh: trimesh.Trimesh) -> _Look:
    """Of OBJ, PLY and STL geometry: their colours are sRGB by custom."""
    material = getattr(mesh.visual, "material", None)
    image = getattr(material, "image", None)
    if image is not None:
        # Kd is left out where there is a texture: exporters write black, white or 0.8 there at random.
        return _Look(np.ones(3), image, cutoff=0.5 if "A" in image.getbands() else 0.0)
    diffuse = getattr(material, "diffuse", None)
    if diffuse is not None and "kd" in getattr(material, "kwargs", {}):
        return _Look(srgb_to_linear(np.asarray(diffuse[:3]) / 255.0))
    colored = getattr(mesh.visual, "kind", None) in ("vertex", "face")
    return _Look(np.ones(3) if colored else np.full(3, _DEFAULT_GREY))


class _Soup:
    """Collects geometries into one mesh."""

    def __init__(self, max_texture: int, *, look_of: Callable[[trimesh.Trimesh], _Look]) -> None:
        self.max_texture, self.look_of = max_texture, look_of
        self.num_vertices = self.num_faces = 0
        self.parts: dict[str, list[ndarray]] = {}
        self.textures: list[ndarray] = []
        self.texture_of: dict[int, int] = {}
        self.images: list[Image.Image] = []  # kept alive: `texture_of` goes by their id
        self.warnings: list[str] = []

    def add(self, mesh: trimesh.Trimesh, transform: ndarray) -> None:
        """Append one geometry at its place in the scene."""
        look = self.look_of(mesh)
        faces = np.asarray(mesh.faces, np.int64)
        vertices = np.asarray(mesh.vertices, float)
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise AssetError("unreadable", f"a face names vertex {faces.max()} of {len(vertices)}")
        linear = transform[:3, :3]
        vertices = vertices @ linear.T + transform[:3, 3]
        if np.linalg.det(linear) < 0:  # a mirror turns faces inside out
            faces = faces[:, ::-1]
        color = _corner_colors(mesh, faces, linear=look.linear_vertex_color)
        uv = getattr(mesh.visual, "uv", None)
        has_uv = uv is not None and len(uv) == len(vertices) and np.isfinite(uv).all()
        texture = self._texture(look.image) if has_uv and look.image is not None else -1
        num = len(faces)
        part = {
            "vertices": vertices,
            "faces": faces + self.num_vertices,
            "tint": (color * look.factor).astype(np.float32),
            "shading": _corner_normals(mesh, vertices, faces, linear),
            "uv": np.asarray(uv, np.float32)[faces] if texture >= 0 else np.zeros((num, 3, 2), np.float32),
            "texture": np.full(num, texture),
            "cutoff": np.full(num, look.cutoff if texture >= 0 else 0, np.float32),
        }
        for name, value in part.items():
            self.parts.setdefault(name, []).append(value)
        self.num_vertices += len(vertices)
        self.num_faces += num

    def _texture(self, image: Image.Image) -> int:
        if id(image) not in self.texture_of:
            self.texture_of[id(image)] = len(self.textures)
            self.images.append(image)
            try:
                self.textures.append(_shrink(image, self.max_texture))
            except Exception as error:  # Pillow's plug-ins raise anything on damaged data
                self.warnings.append(f"unreadable texture ({type(error).__name__}: {error})")
                self.texture_of[id(image)] = -1
        return self.texture_of[id(image)]

    def build(self, turn: ndarray) -> Mesh:
        """The whole mesh, turned; without faces that have no area. Raises AssetError if nothing is left."""
        if not self.parts:
            raise AssetError("empty", "holds no triangles to be seen")
        mesh = Mesh(
            **{name: np.concatenate(parts) for name, parts in self.parts.items()},
            textures=self.textures, warnings=self.warnings,
        )  # fmt: skip
        mesh.vertices[:] = mesh.vertices @ turn.T
        mesh.shading[:] = mesh.shading @ turn.T.astype(np.float32)
        if not np.isfinite(mesh.triangles).all():
            raise AssetError("not_finite", "has vertices at infinity or NaN")
        if np.ptp(mesh.triangles.reshape(-1, 3), axis=0).max() <= 0:
            raise AssetError("empty", "has no extent: all its vertices coincide")
        solid = np.linalg.norm(unit_normals(mesh.triangles), axis=1) > 0
        if not solid.any():
            raise AssetError("empty", "has no area: all its triangles are degenerate")
        return mesh if solid.all() else mesh.select(solid)


def _corner_colors(mesh: trimesh.Trimesh, faces: ndarray, *, linear: bool) -> ndarray:
    """Linear vertex or face colours at each corner [faces, 3, 3], white where there are none."""
    visual = mesh.visual
    if isinstance(visual, ColorVisuals) and visual.kind == "face":
        color = np.repeat(visual.face_colors[:, None, :3], 3, axis=1)
    elif isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        color = visual.vertex_colors[:, :3][faces]
    elif isinstance(visual, TextureVisuals) and "color" in visual.vertex_attributes:
        color = visual.vertex_attributes["color"][:, :3][faces]
    else:
        return np.ones((len(faces), 3, 3))
    # Integers are normalised to their range, as glTF has it; floats are in [0, 1] already.
    scale = np.iinfo(color.dtype).max if color.dtype.kind in "ui" else 1
    color = np.clip(color / scale, 0, 1)
    return color if linear else srgb_to_linear(color)


def _corner_normals(mesh: trimesh.Trimesh, vertices: ndarray, faces: ndarray, linear: ndarray) -> ndarray:
    """Unit normals at each corner [faces, 3, 3]: the file's own, else (or where they are zero) the face's."""
    flat = np.repeat(unit_normals(vertices[faces])[:, None], 3, axis=1)
    # The property would compute smooth normals for a file without any and round a cube's edges.
    if "vertex_normals" not in mesh._cache.cache:
        return flat.astype(np.float32)
    cofactor = np.linalg.det(linear) * np.linalg.pinv(linear).T
    normals = (np.asarray(mesh.vertex_normals) @ cofactor.T)[faces]
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    return np.where(good, normals / np.where(good, length, 1), flat).astype(np.float32)


def _shrink(image: Image.Image, limit: int) -> ndarray:
    """RGBA pixels of an image, at most `limit` wide and high."""
    if image.mode.startswith("I"):  # 16-bit greys, which convert() would clip
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    if max(image.size) > limit:
        image.draft("RGB", (limit, limit))  # JPEG decodes small at once
        image = image.convert("RGBA")
        image.thumbnail((limit, limit), Image.Resampling.BOX)
    return np.asarray(image.convert("RGBA"))
