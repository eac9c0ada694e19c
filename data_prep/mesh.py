"""One asset as a triangle soup with base colours, and the look-ups that views and points share.

Colours here are linear RGB in [0, 1] unless a name says sRGB. UV origin is the bottom left of a texture,
coordinates repeat outside [0, 1]. A surface is either there or not: a texel whose alpha is below the cutoff
is a hole, everything else is opaque.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy import ndarray


def srgb_to_linear(srgb: ndarray) -> ndarray:
    """Linear light of sRGB-encoded values in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: ndarray) -> ndarray:
    """sRGB encoding of linear values; inverse of `srgb_to_linear` on [0, 1]."""
    # The power sees values above the toe alone, so that it has no negative or subnormal input.
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    )


SRGB_DECODE = srgb_to_linear(np.arange(256) / 255).astype(np.float32)
"""Linear light of each 8-bit sRGB value."""


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
    texture: Int[ndarray, "faces"]
    """Index into `textures`, or -1."""
    cutoff: Float32[ndarray, "faces"]
    """Texture alpha below which a texel is a hole; 0 where the material is opaque."""
    textures: list[UInt8[ndarray, "height width 4"]] = field(default_factory=list)
    """Straight alpha, sRGB."""
    warnings: list[str] = field(default_factory=list)

    @property
    def triangles(self) -> Float[ndarray, "faces 3 3"]:
        """Corner positions."""
        return self.vertices[self.faces]

    @property
    def has_holes(self) -> bool:
        """Whether any texel may be a hole."""
        return bool(self.cutoff.any())

    def select(self, keep: ndarray) -> "Mesh":
        """The same mesh with the faces of a mask or an index list alone."""
        return replace(
            self, faces=self.faces[keep], tint=self.tint[keep], shading=self.shading[keep],
            uv=self.uv[keep], texture=self.texture[keep], cutoff=self.cutoff[keep],
        )  # fmt: skip

    def flip(self, flipped: Bool[ndarray, "faces"]) -> "Mesh":
        """The same mesh with the winding of some faces reversed."""
        order = np.where(flipped[:, None], [0, 2, 1], [0, 1, 2])
        rows = np.arange(len(self.faces))[:, None]
        return replace(
            self, faces=self.faces[rows, order], tint=self.tint[rows, order],
            shading=self.shading[rows, order], uv=self.uv[rows, order],
        )  # fmt: skip


def face_crosses(triangles: Float[ndarray, "faces 3 3"]) -> Float[ndarray, "faces 3"]:
    """Cross products of two edges: along the normal of a counter-clockwise face, twice its area long."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def unit_normals(triangles: Float[ndarray, "faces 3 3"]) -> Float[ndarray, "faces 3"]:
    """Unit face normals; zero for a face without area."""
    crosses = face_crosses(triangles)
    length = np.linalg.norm(crosses, axis=1, keepdims=True)
    return np.divide(crosses, length, out=np.zeros_like(crosses), where=length > 0)


def base_color(
    mesh: Mesh, faces: Int[ndarray, "hits"], weights: Float[ndarray, "hits 3"]
) -> tuple[Float32[ndarray, "hits 3"], Bool[ndarray, "hits"]]:
    """Unlit linear RGB at points given by face and barycentric weights, and whether they are no holes."""
    weights = weights.astype(np.float32)
    color = np.einsum("hc,hcd->hd", weights, mesh.tint[faces])
    solid = np.ones(len(faces), bool)
    used = mesh.texture[faces]
    for index in np.unique(used[used >= 0]):
        hits = np.flatnonzero(used == index)
        uv = np.einsum("hc,hcd->hd", weights[hits], mesh.uv[faces[hits]])
        texel = sample_texture(mesh.textures[index], uv)
        color[hits] *= texel[:, :3]
        solid[hits] = texel[:, 3] >= mesh.cutoff[faces[hits]]
    return color, solid


def sample_texture(
    texture: UInt8[ndarray, "height width 4"], uv: Float32[ndarray, "hits 2"]
) -> Float32[ndarray, "hits 4"]:
    """Bilinear, repeating look-up: linear RGB and alpha in [0, 1]. Texel centres are at (i + 0.5) / size."""
    height, width = texture.shape[:2]
    # Wrapping before scaling keeps float32 exact for coordinates far outside [0, 1].
    x = np.mod(uv[:, 0], 1) * width - 0.5
    y = np.mod(1 - uv[:, 1], 1) * height - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    result = np.zeros((len(uv), 4), np.float32)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            texel = texture[(y0 + dy) % height, (x0 + dx) % width]
            value = np.concatenate([SRGB_DECODE[texel[:, :3]], texel[:, 3:] / np.float32(255)], axis=1)
            result += wx * wy * value
    return result
