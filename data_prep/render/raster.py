"""Pictures by OpenGL (moderngl on EGL, without a window): for machines with a GPU. Mesa's llvmpipe runs it
too, but slower than ray casting.

Targets are float and linear. Colours are means of 4 samples a pixel on a rotated grid (multisampling with
every sample shaded), at a higher resolution where more are asked for; depth and normal come from a second
pass through the pixels' centres.
"""

import functools
import math
import subprocess
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from data_prep.mesh import Mesh, Sampler
from data_prep.render.lighting import Lighting
from data_prep.render.raycast import Samples
from shapeloom.config import UserError

_NEAR, _FAR = 0.01, 100.0
_MAX_LIGHTS = 4

_VERTEX = """
#version 400
uniform mat4 clip_from_world;
in vec3 position; in vec3 shading; in vec4 tint; in vec2 uv; in vec2 kind;
QUALIFIER out vec3 world; QUALIFIER out vec3 normal; QUALIFIER out vec4 color; QUALIFIER out vec2 place;
flat out vec2 look;
void main() {
    world = position; normal = shading; color = tint; place = uv; look = kind;
    gl_Position = clip_from_world * vec4(position, 1);
}
"""
# `sample in` makes the hardware shade every sample; the texture's place is then the sample's own.
_FRAGMENT = """
#version 400
uniform sampler2D image; uniform bool textured;
uniform vec3 eye; uniform vec3 forward; uniform float ambient; uniform int num_lights;
uniform vec3 directions[%d]; uniform float intensities[%d];
QUALIFIER in vec3 world; QUALIFIER in vec3 normal; QUALIFIER in vec4 color; QUALIFIER in vec2 place;
flat in vec2 look;
layout(location = 0) out vec4 first; layout(location = 1) out vec4 second;
void main() {
    vec4 base = color;
    if (textured) base *= texture(image, place);
    if (look.x > 0.0 && base.a < look.x) discard;
    vec3 view = world - eye;
    vec3 flat_normal = cross(dFdx(world), dFdy(world));
    flat_normal *= dot(flat_normal, view) > 0.0 ? -1.0 : 1.0;
    vec3 n = normal / max(length(normal), 1e-12);
    n *= dot(n, flat_normal) < 0.0 ? -1.0 : 1.0;
    float light = ambient;
    for (int i = 0; i < num_lights; i++) light += intensities[i] * max(dot(n, directions[i]), 0.0);
    if (look.y > 0.5) light = 1.0;
    if (GEOMETRY) { first = vec4(n, dot(view, forward)); second = vec4(0); }
    else { first = vec4(base.rgb * light, 1); second = vec4(base.rgb, 1); }
}
""".replace("%d", str(_MAX_LIGHTS))


@functools.cache
def _context() -> Any:
    """This process's OpenGL. Raises UserError where there is none."""
    with suppress(ImportError):
        # Torch's libraries may load it later, which crashes where Mesa's own LLVM is loaded already.
        import triton  # noqa: F401
    try:
        import moderngl

        settings: Any = {"backend": "egl"}  # its annotation is of the whole dict
        context = moderngl.create_standalone_context(require=400, **settings)
    except Exception as error:  # moderngl passes on whatever the driver's loader says
        raise UserError(
            f"renderer: gl needs OpenGL 4.0 by EGL and moderngl ({type(error).__name__}: {error}). Install "
            "shapeloom[gl] and a driver (libegl1), or use renderer: embree, which needs neither."
        ) from error
    context.gc_mode = "auto"
    return context


def require() -> None:
    """Raises UserError where the rasteriser can't work.

    Another process tries: a driver that is loaded here would not survive in processes forked from this one,
    and Mesa's LLVM crashes triton's if that is imported after it.
    """
    code = "from data_prep.render.raster import _context; _context()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if run.returncode:
        raise UserError(run.stderr.strip().splitlines()[-1].partition("UserError: ")[2] or run.stderr[-500:])


class Rasterizer:
    """Square pictures of one mesh under one light, by OpenGL; interchangeable with `raycast.Painter`.

    Blended materials need surfaces in order, which ray casting has: `render_views` leaves those meshes to it.
    """

    def __init__(self, mesh: Mesh, lighting: Lighting, *, size: int, supersample: int) -> None:
        self.size, self.context = size, _context()
        order = np.argsort(mesh.texture, kind="stable")
        self.vertices = self.context.buffer(_vertices(mesh, order).tobytes())
        self.runs = _runs(mesh, order, self.context)
        self.doublings = max(0, math.ceil(math.log2(supersample / 2))) if supersample > 1 else 0
        self.color = self._program(lighting, geometry=False, samples=supersample > 1)
        self.geometry = self._program(lighting, geometry=True, samples=False)
        self.soft = self._target(size << self.doublings, samples=4 if supersample > 1 else 0)
        self.resolved = self._target(size << self.doublings, samples=0)
        self.sharp = self._target(size, samples=0)

    def _program(self, lighting: Lighting, *, geometry: bool, samples: bool) -> tuple[Any, Any]:
        words = {"QUALIFIER": "sample" if samples else "", "GEOMETRY": "true" if geometry else "false"}
        vertex, fragment = _VERTEX, _FRAGMENT
        for word, value in words.items():
            vertex, fragment = vertex.replace(word, value), fragment.replace(word, value)
        program = self.context.program(vertex_shader=vertex, fragment_shader=fragment)
        num = len(lighting.intensities)
        if not geometry:
            program["ambient"], program["num_lights"] = lighting.ambient, num
            program["directions"] = np.pad(lighting.directions, ((0, _MAX_LIGHTS - num), (0, 0))).tolist()
            program["intensities"] = np.pad(lighting.intensities, (0, _MAX_LIGHTS - num)).tolist()
        names = ("position", "shading", "tint", "uv", "kind")
        attributes = zip(("3f", "3f", "4f", "2f", "2f"), names, strict=True)
        used = [(form if name in program else f"{form[0]}x4", name) for form, name in attributes]
        layout = " ".join(form for form, _ in used)
        array = self.context.vertex_array(
            program, [(self.vertices, layout, *(name for _, name in used if name in program))]
        )
        return program, array

    def _target(self, size: int, samples: int) -> Any:
        colors = [self.context.texture((size, size), 4, dtype="f4", samples=samples) for _ in range(2)]
        return self.context.framebuffer(colors, self.context.depth_texture((size, size), samples=samples))

    def paint(self, pose: Float[ndarray, "4 4"], intrinsics: Float[ndarray, "3 3"]) -> Samples:
        """One view [size, size]: colours are means over the pixels, depth and normal are seen through their
        centres."""
        self._draw(self.color, self.soft, pose, intrinsics)
        self.context.copy_framebuffer(self.resolved, self.soft)
        lit, albedo = (self._read(texture) for texture in self.resolved.color_attachments)
        self._draw(self.geometry, self.sharp, pose, intrinsics)
        surface = self._read(self.sharp.color_attachments[0], halvings=0)
        color = np.concatenate([lit, albedo[..., :3]], axis=-1)
        unseen = color[..., 3] < 0.5 / 255  # alpha will be stored as 0: no depth without colour
        color[unseen], surface[unseen] = 0, 0
        return Samples(color, surface[..., 3].copy(), surface[..., :3].copy())

    def _read(self, texture: Any, halvings: int | None = None) -> Float32[ndarray, "size size 4"]:
        level = self.doublings if halvings is None else halvings
        if level:
            texture.build_mipmaps(0, level)  # each level: means of 2 x 2
        data = texture.read(level=level)
        return np.frombuffer(data, np.float32).reshape(self.size, self.size, 4).copy()

    def _draw(self, drawing: tuple[Any, Any], target: Any, pose: ndarray, intrinsics: ndarray) -> None:
        program, array = drawing
        target.use()
        target.clear(0, 0, 0, 0, depth=1)
        self.context.enable_only(self.context.DEPTH_TEST)
        uniforms = {
            "clip_from_world": _projection(intrinsics, self.size) @ np.linalg.inv(pose),
            "eye": pose[:3, 3],
            "forward": pose[:3, 2],
        }
        for name, value in uniforms.items():
            if name in program:
                program[name].write(np.ascontiguousarray(value.T, np.float32).tobytes())
        for texture, first, count in self.runs:
            program["textured"] = texture is not None
            if texture is not None:
                texture.use(0)
            array.render(vertices=count, first=first)


def _projection(intrinsics: ndarray, size: int) -> Float[ndarray, "4 4"]:
    """OpenCV camera to clip space: y stays as it is, for a texture's first row is its lowest."""
    focal, (x, y) = intrinsics[0, 0], intrinsics[:2, 2]
    depth = (_FAR + _NEAR) / (_FAR - _NEAR), -2 * _FAR * _NEAR / (_FAR - _NEAR)
    return np.array(
        [
            [2 * focal / size, 0, 2 * x / size - 1, 0],
            [0, 2 * focal / size, 2 * y / size - 1, 0],
            [0, 0, depth[0], depth[1]],
            [0, 0, 1, 0],
        ]
    )


def _vertices(mesh: Mesh, order: ndarray) -> Float32[ndarray, "corners 14"]:
    """Every corner's attributes, faces of one texture together."""
    num = len(order)
    opacity = np.ones((num, 3), np.float32) if mesh.opacity is None else mesh.opacity[order]
    kind = np.zeros((num, 3, 2), np.float32)
    kind[..., 0] = mesh.cutoff[order][:, None]
    if mesh.unlit is not None:
        kind[..., 1] = mesh.unlit[order][:, None]
    uv = mesh.uv[order].copy()
    uv[..., 1] = 1 - uv[..., 1]  # the first row of a texture is its top
    parts = [mesh.triangles[order], mesh.shading[order], mesh.tint[order], opacity[..., None], uv, kind]
    return np.concatenate(parts, axis=-1, dtype=np.float32, casting="same_kind").reshape(3 * num, 14)


def _runs(mesh: Mesh, order: ndarray, context: Any) -> list[tuple[Any, int, int]]:
    """Texture (none: -1), first corner and number of corners of each draw call."""
    runs = []
    indices, starts, counts = np.unique(mesh.texture[order], return_index=True, return_counts=True)
    for index, start, count in zip(indices.tolist(), starts.tolist(), counts.tolist(), strict=True):
        texture = None
        if index >= 0:
            sampler = mesh.samplers[index] if mesh.samplers else Sampler()
            texture = _upload(mesh.textures[index], sampler, context)
        runs.append((texture, 3 * start, 3 * count))
    return runs


def _upload(image: ndarray, sampler: Sampler, context: Any) -> Any:
    height, width = image.shape[:2]
    if image.dtype == np.float32:
        texture = context.texture((width, height), 4, np.ascontiguousarray(image).tobytes(), dtype="f4")
    else:
        srgb8_alpha8 = 0x8C43
        texture = context.texture((width, height), 4, image.tobytes(), internal_format=srgb8_alpha8)
    way = context.NEAREST if sampler.nearest else context.LINEAR
    texture.filter = (way, way)
    # moderngl knows repeat and clamp; mirrored look-ups are left to ray casting.
    texture.repeat_x, texture.repeat_y = sampler.wrap_u == "repeat", sampler.wrap_v == "repeat"
    return texture


def can_draw(mesh: Mesh) -> bool:
    """Whether a mesh has nothing that only ray casting shows right: blended or mirrored textures."""
    mirrored = any("mirror" in (sampler.wrap_u, sampler.wrap_v) for sampler in mesh.samplers)
    return not (mesh.cutoff < 0).any() and not mirrored
