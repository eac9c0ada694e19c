"""Pictures by a compiled z-buffer (zbuffer.cpp): the fast renderer, where there is a C++ compiler.

`raycast` is its reference and stands in where there is none: the same samples, shading and layers. They
differ where a sample lies on an edge to within rounding.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray

from data_prep.geometry import farthest, triangle_tree
from data_prep.mesh import Mesh, Sampler
from data_prep.render.lighting import Lighting
from data_prep.render.raycast import edge_points, sub_pixels
from shapeloom.color import SRGB_DECODE, linear_to_srgb
from shapeloom.config import UserError
from shapeloom.native import NotBuilt, load

_WRAPS = ("repeat", "clamp", "mirror")
_FLOATS, _BYTES, _INTS = (ctypes.POINTER(t) for t in (ctypes.c_float, ctypes.c_uint8, ctypes.c_int32))
# 8-bit sRGB by the square root of linear colour, near enough to it that 16 entries share each 8-bit value.
ENCODED = np.rint(255 * linear_to_srgb(np.linspace(0, 1, 4097) ** 2)).astype(np.uint8)

_DECODE = np.stack([SRGB_DECODE, np.arange(256, dtype=np.float32) / np.float32(255)])


class _Texture(ctypes.Structure):
    _fields_ = [("texels", ctypes.c_void_p)] + [
        (name, ctypes.c_int32) for name in ("height", "width", "is_float", "wrap_u", "wrap_v", "nearest")
    ]


class _Mesh(ctypes.Structure):
    _fields_ = [
        ("vertices", _FLOATS), ("faces", _INTS), ("tint", _FLOATS), ("shading", _FLOATS), ("uv", _FLOATS),
        ("texture", _INTS), ("cutoff", _FLOATS), ("opacity", _FLOATS), ("unlit", _BYTES),
        ("textures", ctypes.POINTER(_Texture)), ("splats", _FLOATS), ("num_vertices", ctypes.c_int64),
        ("num_faces", ctypes.c_int64), ("num_splats", ctypes.c_int64),
    ]  # fmt: skip


class _Scene(ctypes.Structure):
    _fields_ = [
        ("directions", _FLOATS), ("intensities", _FLOATS), ("encode", _BYTES), ("decode", _FLOATS),
        ("offsets", ctypes.POINTER(ctypes.c_double)), ("ambient", ctypes.c_float),
        ("num_lights", ctypes.c_int32), ("num_samples", ctypes.c_int32), ("size", ctypes.c_int32),
    ]  # fmt: skip


class _Camera(ctypes.Structure):
    _fields_ = [
        ("rotation", ctypes.c_double * 9), ("eye", ctypes.c_double * 3), ("focal", ctypes.c_double),
        ("x", ctypes.c_double), ("y", ctypes.c_double),
    ]  # fmt: skip


class _Picture(ctypes.Structure):
    _fields_ = [("rgba", _BYTES), ("depth", _FLOATS), ("normal", _BYTES), ("albedo", _BYTES)]


@functools.cache
def _library() -> ctypes.CDLL:
    library = load(Path(__file__).with_suffix(".cpp"))
    library.draw_view.argtypes = [ctypes.POINTER(t) for t in (_Mesh, _Scene, _Camera, _Picture)]
    library.draw_view.restype = ctypes.c_int32
    return library


@functools.cache
def reason_against() -> str:
    """Why this renderer can't be used here; "" where it can. Compiles it the first time, in seconds.

    Geometry's compiled code goes with it, so that one key of the config says what made a data set.
    """
    try:
        for library in (_library, triangle_tree.library, farthest.library):
            library()
    except NotBuilt as error:
        return str(error)
    return ""


def require() -> None:
    """Raises UserError where this renderer can't be used."""
    if reason := reason_against():
        raise UserError(
            f"renderer: zbuffer can't be used here: {reason}. Or use renderer: embree, which needs none."
        )


class ZBuffer:
    """Square pictures of one mesh under one light; their planes are what `views.Views` holds."""

    def __init__(self, mesh: Mesh, lighting: Lighting, *, size: int, supersample: int, pixel: float) -> None:
        """pixel: its size on the object, world units; only how much is refined depends on it.

        Raises ValueError for a mesh whose arrays don't fit one another.
        """
        self.size = size
        self._kept: list[ndarray] = []
        self._mesh = self._pack_mesh(mesh, edge_points(
            mesh.triangles.astype(np.float32), spacing=pixel / 2, most=size**2 + 4096
        ))  # fmt: skip
        self._scene = _Scene(
            directions=self._pointer(lighting.directions, np.float32, _FLOATS),
            intensities=self._pointer(lighting.intensities, np.float32, _FLOATS),
            encode=self._pointer(ENCODED, np.uint8, _BYTES),
            decode=self._pointer(_DECODE, np.float32, _FLOATS),
            offsets=self._pointer(sub_pixels(supersample), np.float64, ctypes.POINTER(ctypes.c_double)),
            ambient=lighting.ambient, num_lights=len(lighting.intensities), num_samples=supersample**2,
            size=size,
        )  # fmt: skip

    def draw(
        self,
        pose: Float[ndarray, "4 4"],
        intrinsics: Float[ndarray, "3 3"],
        planes: tuple[
            UInt8[ndarray, "size size 4"],
            Float32[ndarray, "size size"],
            UInt8[ndarray, "size size 3"],
            UInt8[ndarray, "size size 3"],
        ],
    ) -> None:
        """One view into RGBA, depth, normal and albedo, which are all zero.

        Raises MemoryError where the layers of see-through surfaces need more than there is.
        """
        # As the ray caster, whose rays are float32.
        rotation, eye = (part.astype(np.float32).reshape(-1) for part in (pose[:3, :3], pose[:3, 3]))
        camera = _Camera(
            (ctypes.c_double * 9)(*rotation), (ctypes.c_double * 3)(*eye), float(intrinsics[0, 0]),
            *intrinsics[:2, 2].tolist(),
        )  # fmt: skip
        kinds = (_BYTES, _FLOATS, _BYTES, _BYTES)
        assert all(plane.flags.c_contiguous and plane.shape[0] == self.size for plane in planes)
        picture = _Picture(*(plane.ctypes.data_as(kind) for plane, kind in zip(planes, kinds, strict=True)))
        arguments = (self._mesh, self._scene, camera, picture)
        if _library().draw_view(*(ctypes.byref(argument) for argument in arguments)):
            raise MemoryError("a view's layers")

    def _pointer(self, array: ndarray, kind: Any, pointer: Any) -> Any:
        """To the array, as such numbers, which lives as long as this object."""
        kept = np.ascontiguousarray(array, kind)
        self._kept.append(kept)
        return kept.ctypes.data_as(pointer)

    def _pack_mesh(self, mesh: Mesh, splats: Float32[ndarray, "points 3"]) -> _Mesh:
        _check(mesh)
        textures = [self._pack_texture(*pair) for pair in zip(mesh.textures, _samplers(mesh), strict=True)]
        return _Mesh(
            vertices=self._pointer(mesh.vertices, np.float32, _FLOATS),
            faces=self._pointer(mesh.faces, np.int32, _INTS),
            tint=self._pointer(mesh.tint, np.float32, _FLOATS),
            shading=self._pointer(mesh.shading, np.float32, _FLOATS),
            uv=self._pointer(mesh.uv, np.float32, _FLOATS),
            texture=self._pointer(mesh.texture, np.int32, _INTS),
            cutoff=self._pointer(mesh.cutoff, np.float32, _FLOATS),
            opacity=None if mesh.opacity is None else self._pointer(mesh.opacity, np.float32, _FLOATS),
            unlit=None if mesh.unlit is None else self._pointer(mesh.unlit, np.uint8, _BYTES),
            textures=(_Texture * len(textures))(*textures),
            splats=self._pointer(splats.T, np.float32, _FLOATS),
            num_vertices=len(mesh.vertices), num_faces=len(mesh.faces), num_splats=len(splats),
        )  # fmt: skip

    def _pack_texture(self, texture: ndarray, sampler: Sampler) -> _Texture:
        return _Texture(
            self._pointer(texture, texture.dtype, ctypes.c_void_p), *texture.shape[:2],
            texture.dtype == np.float32,
            _WRAPS.index(sampler.wrap_u), _WRAPS.index(sampler.wrap_v), sampler.nearest,
        )  # fmt: skip


def _samplers(mesh: Mesh) -> Sequence[Sampler]:
    return mesh.samplers or [Sampler()] * len(mesh.textures)


def _check(mesh: Mesh) -> None:
    """Raises ValueError unless every index and shape is one that the kernel may follow."""
    num = len(mesh.faces)
    shapes = {
        "vertices": (len(mesh.vertices), 3), "faces": (num, 3), "tint": (num, 3, 3), "shading": (num, 3, 3),
        "uv": (num, 3, 2), "texture": (num,), "cutoff": (num,), "opacity": (num, 3), "unlit": (num,),
    }  # fmt: skip
    for name, shape in shapes.items():
        array = getattr(mesh, name)
        if array is not None and array.shape != shape:
            raise ValueError(f"a mesh whose {name} have the shape {array.shape}: expected {shape}")
    ranges = {"faces": (mesh.faces, 0, len(mesh.vertices)), "texture": (mesh.texture, -1, len(mesh.textures))}
    for name, (index, low, end) in ranges.items():
        if index.size and not low <= index.min() <= index.max() < end:
            raise ValueError(
                f"a mesh whose {name} indices go from {index.min()} to {index.max()}: "
                f"expected {low} to {end - 1}"
            )
    if max(num, len(mesh.vertices)) >= 2**31:
        raise ValueError(f"a mesh of {num:,} faces: expected fewer than 2^31")
    for texture in mesh.textures:
        if texture.ndim != 3 or texture.shape[2] != 4 or not texture.size:
            raise ValueError(f"a texture of shape {texture.shape}: expected (height, width, 4)")
        if texture.dtype not in (np.float32, np.uint8):
            raise ValueError(f"a texture of {texture.dtype}: expected uint8 (sRGB) or float32 (linear)")
