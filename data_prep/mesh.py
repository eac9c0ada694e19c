"""One asset as a triangle soup with base colours, and the look-ups that views and points share.

Colours here are linear RGB in [0, 1] unless a name says sRGB. UV origin is the bottom left of a texture;
what lies outside [0, 1] is the business of the texture's sampler. Alpha is coverage, as glTF has it: 1 on an
opaque material, 0 or 1 on a masked one, anything between on a blended one.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8
from numpy import ndarray

from shapeloom.color import SRGB_DECODE

BLEND = -1.0
"""In place of a cutoff: the material's alpha is its coverage."""
Wrap = Literal["repeat", "clamp", "mirror"]


@dataclass(frozen=True)
class Sampler:
    """How a texture is looked up: outside [0, 1] along u and v, and between its texels."""

    wrap_u: Wrap = "repeat"
    wrap_v: Wrap = "repeat"
    nearest: bool = False
    """The nearest texel's colour in place of a bilinear mean."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with everything needed to colour them; faces of all materials and nodes in one list."""

    vertices: Float[ndarray, "vertices 3"]
    faces: Int[ndarray, "faces 3"]
    tint: Float32[ndarray, "faces 3 3"]
    """Linear RGB at each corner: base colour factor times vertex colour."""
    shading: Float32[ndarray, "faces 3 3"]
    """Normal at each corner for lighting, of either sign: the file's where it has some, else the face's."""
    uv: Float32[ndarray, "faces 3 2"]
    texture: Int[ndarray, " faces"]
    """Index into `textures`, or -1."""
    cutoff: Float32[ndarray, " faces"]
    """Of a masked material: alpha below which it is a hole. 0: opaque. `BLEND`: alpha is coverage."""
    textures: list[UInt8[ndarray, "height width 4"] | Float32[ndarray, "height width 4"]] = field(
        default_factory=list
    )
    """Straight alpha; sRGB where they are 8-bit, as files have them, linear where they are float."""
    samplers: list[Sampler] = field(default_factory=list)
    """Of each texture; an empty list: all repeat and are bilinear."""
    opacity: Float32[ndarray, "faces 3"] | None = None
    """Alpha at each corner, of factor and vertex colour, which a texture's multiplies; none: 1."""
    unlit: Bool[ndarray, " faces"] | None = None
    """Faces whose colour is shown as it is, without lighting; none: no face."""
    warnings: list[str] = field(default_factory=list)

    @property
    def triangles(self) -> Float[ndarray, "faces 3 3"]:
        """Corner positions."""
        return self.vertices.take(self.faces, axis=0)  # several times as fast as indexing

    def select(self, keep: ndarray) -> "Mesh":
        """The same mesh with the faces of a mask or an index list alone."""
        return replace(
            self, faces=self.faces[keep], tint=self.tint[keep], shading=self.shading[keep],
            uv=self.uv[keep], texture=self.texture[keep], cutoff=self.cutoff[keep],
            opacity=None if self.opacity is None else self.opacity[keep],
            unlit=None if self.unlit is None else self.unlit[keep],
        )  # fmt: skip

    def flip(self, flipped: Bool[ndarray, " faces"]) -> "Mesh":
        """The same mesh with the winding of some faces reversed."""
        order = np.where(flipped[:, None], [0, 2, 1], [0, 1, 2])
        rows = np.arange(len(self.faces))[:, None]
        return replace(
            self, faces=self.faces[rows, order], tint=self.tint[rows, order],
            shading=self.shading[rows, order], uv=self.uv[rows, order],
            opacity=None if self.opacity is None else self.opacity[rows, order],
        )  # fmt: skip


def plain_triangles(mesh: Mesh) -> tuple[Float32[ndarray, "vertices 3"], Int32[ndarray, "faces 3"]]:
    """The geometry alone: equal positions are one vertex, and faces keep their order and winding."""
    positions, index = np.unique(
        mesh.triangles.reshape(-1, 3).astype(np.float32), axis=0, return_inverse=True
    )
    return positions, index.reshape(-1, 3).astype(np.int32)


def base_color(
    mesh: Mesh, faces: Int[ndarray, " hits"], weights: Float[ndarray, "hits 3"]
) -> tuple[Float32[ndarray, "hits 3"], Float32[ndarray, " hits"]]:
    """Unlit linear RGB and alpha in [0, 1] at points given by face and barycentric weights.

    Alpha is 1 on opaque materials and 0 (a hole) or 1 on masked ones; whoever shows blended ones lays the
    surfaces over one another, front to back.
    """
    weights = weights.astype(np.float32)
    color = np.einsum("hc,hcd->hd", weights, mesh.tint[faces])
    cutoff = mesh.cutoff[faces]
    alpha = np.ones(len(faces), np.float32)
    if mesh.opacity is not None:
        alpha = np.einsum("hc,hc->h", weights, mesh.opacity[faces])
    used = mesh.texture[faces]
    for index in np.flatnonzero(np.bincount(used[used >= 0])):
        mine = used == index
        hits = slice(None) if mine.all() else np.flatnonzero(mine)
        uv = np.einsum("hc,hcd->hd", weights[hits], mesh.uv[faces[hits]])
        sampler = mesh.samplers[index] if mesh.samplers else Sampler()
        texel = sample_texture(mesh.textures[index], uv, sampler)
        color[hits] *= texel[:, :3]
        alpha[hits] *= texel[:, 3]
    if not cutoff.any():
        return color, np.ones(len(faces), np.float32)
    masked = np.where(cutoff > 0, (alpha >= cutoff).astype(np.float32), np.float32(1))
    # The weights of a corner add up to 1 only to rounding.
    return color, np.where(cutoff < 0, np.clip(alpha, 0, 1), masked)


def sample_texture(
    texture: UInt8[ndarray, "height width 4"] | Float32[ndarray, "height width 4"],
    uv: Float32[ndarray, "hits 2"],
    sampler: Sampler | None = None,
) -> Float32[ndarray, "hits 4"]:
    """Linear RGB and alpha in [0, 1] at `uv`. Texel centres are at (i + 0.5) / size.

    texture: sRGB if it is 8-bit, linear if it is float. sampler: none repeats and is bilinear.
    """
    sampler = sampler or Sampler()
    height, width = texture.shape[:2]
    x, y = _fold(uv[:, 0], sampler.wrap_u) * width, _fold(1 - uv[:, 1], sampler.wrap_v) * height
    if sampler.nearest:
        row = _texel(np.floor(y).astype(np.int64), height, sampler.wrap_v)
        return _decode(texture[row, _texel(np.floor(x).astype(np.int64), width, sampler.wrap_u)])
    x, y = x - np.float32(0.5), y - np.float32(0.5)
    left, top = np.floor(x), np.floor(y)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    columns = [_texel(left.astype(np.int32) + d, width, sampler.wrap_u) for d in (0, 1)]
    rows = [_texel(top.astype(np.int32) + d, height, sampler.wrap_v) * width for d in (0, 1)]
    texels = texture.reshape(-1, 4)
    upper, lower = (
        _decode(texels[row + columns[0]]) * (1 - fx) + _decode(texels[row + columns[1]]) * fx for row in rows
    )
    return upper * (1 - fy) + lower * fy


def _fold(u: ndarray, wrap: Wrap) -> ndarray:
    """A coordinate far outside [0, 1] brought near, before scaling, where float32 is still exact."""
    match wrap:
        case "repeat":
            return np.mod(u, 1)
        case "mirror":
            return np.mod(u, 2)
        case "clamp":
            return np.clip(u, 0, 1)


def _texel(index: ndarray, size: int, wrap: Wrap) -> ndarray:
    """The texel that stands for one outside the texture."""
    match wrap:
        case "repeat":
            return index % size
        case "mirror":
            index = index % (2 * size)
            return np.where(index < size, index, 2 * size - 1 - index)
        case "clamp":
            return np.clip(index, 0, size - 1)


def _decode(
    texel: UInt8[ndarray, "hits 4"] | Float32[ndarray, "hits 4"],
) -> Float32[ndarray, "hits 4"]:
    if texel.dtype == np.float32:
        return texel
    decoded = np.empty(texel.shape, np.float32)
    decoded[:, :3], decoded[:, 3] = SRGB_DECODE[texel[:, :3]], texel[:, 3] / np.float32(255)
    return decoded
