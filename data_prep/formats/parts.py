"""What every file reader gives, parts of one look each in their place, and how they become one `Mesh`.

Frames and units are the file's own; `turn` brings the whole into the project's (right-handed, +Z up).
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, UInt8
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.mesh import Mesh, Sampler
from shapeloom.color import srgb_to_linear
from shapeloom.surfaces import face_normals

DEFAULT_GREY = float(srgb_to_linear(np.array(0.8)))
"""Linear light of surfaces without any colour (glTF's default is white)."""


@dataclass
class Look:
    """Base colour of one part."""

    factor: Float64[ndarray, "4"] = field(default_factory=lambda: np.ones(4))
    """Linear RGB and alpha, which multiply everything else."""
    texture: UInt8[ndarray, "height width 4"] | None = None
    sampler: Sampler = field(default_factory=Sampler)
    cutoff: float = 0.0
    """As in `Mesh`: 0 opaque, positive masked, `BLEND` blended."""
    unlit: bool = False


@dataclass
class Part:
    """Triangles of one look."""

    vertices: Float[ndarray, "vertices 3"]
    faces: Int[ndarray, "faces 3"]
    look: Look
    color: Float[ndarray, "faces 3 4"] | None = None
    """Linear vertex colours and alpha at each corner."""
    normals: Float[ndarray, "vertices 3"] | None = None
    corner_normals: Float[ndarray, "faces 3 3"] | None = None
    """In place of `normals`, where faces that share a vertex have their own."""
    uv: Float32[ndarray, "faces 3 2"] | None = None
    """Origin at the texture's bottom left."""


class Soup:
    """Collects parts into one mesh; refuses more than `max_faces` faces before their memory is spent."""

    def __init__(self, max_faces: int) -> None:
        self.max_faces = max_faces
        self.num_vertices = self.num_faces = self.num_broken = 0
        self.columns: dict[str, list[ndarray]] = {}
        self.textures: list[ndarray] = []
        self.samplers: list[Sampler] = []
        self.slots: dict[tuple[int, Sampler], int] = {}
        self.warnings: list[str] = []

    def add(self, part: Part, transform: Float[ndarray, "4 4"]) -> None:
        """Append one part at its place."""
        part = self._whole(part)
        faces, look = np.asarray(part.faces, np.int64), part.look
        num = len(faces)
        if not num:
            return
        if self.num_faces + num > self.max_faces:
            raise AssetError("too_large", f"has more than {self.max_faces} faces")
        linear = np.asarray(transform, float)[:3, :3]
        # Absurd numbers become infinite here and are refused as such in `build`.
        with np.errstate(all="ignore"):
            vertices = np.asarray(part.vertices, float) @ linear.T + transform[:3, 3]
            normals = _corner_normals(part, vertices, linear)
            mirrored = np.linalg.det(linear) < 0
        uv = part.uv if part.uv is not None and np.isfinite(part.uv).all() else None
        slot = self._slot(look) if uv is not None else -1
        factor = np.asarray(look.factor, float)
        color = np.broadcast_to(factor, (num, 3, 4)) if part.color is None else part.color * factor
        see_through = look.cutoff != 0 and (
            color[..., 3].min() < 1 or (slot >= 0 and self.textures[slot][..., 3].min() < 255)
        )
        # A mirror turns faces inside out: they, and all that goes by their corners, are turned back.
        order = [0, 2, 1] if mirrored else [0, 1, 2]
        part_columns = {
            "vertices": vertices,
            "faces": faces[:, order] + self.num_vertices,
            "tint": color[:, order, :3].astype(np.float32),
            "opacity": color[:, order, 3].astype(np.float32),
            "shading": normals[:, order].astype(np.float32),
            "uv": np.zeros((num, 3, 2), np.float32) if slot < 0 or uv is None else uv[:, order],
            "texture": np.full(num, slot),
            "cutoff": np.full(num, look.cutoff if see_through else 0, np.float32),
            "unlit": np.full(num, look.unlit),
        }
        for name, value in part_columns.items():
            self.columns.setdefault(name, []).append(value)
        self.num_vertices += len(vertices)
        self.num_faces += num

    def _whole(self, part: Part) -> Part:
        """The part without faces that name vertices it hasn't, with a warning."""
        faces = np.asarray(part.faces, np.int64)
        good = np.all((faces >= 0) & (faces < len(part.vertices)), axis=1)
        if good.all():
            return part
        self.num_broken += int((~good).sum())
        self.warnings.append(
            f"left out {(~good).sum()} of {len(good)} faces: they name vertices beyond the "
            f"{len(part.vertices)} that are there"
        )
        color, normals, uv = (
            None if column is None else column[good] for column in (part.color, part.corner_normals, part.uv)
        )
        return replace(part, faces=faces[good], color=color, corner_normals=normals, uv=uv)

    def _slot(self, look: Look) -> int:
        """Where the look's texture is among the mesh's, with its sampler; -1 for none."""
        if look.texture is None:
            return -1
        key = (id(look.texture), look.sampler)
        if key not in self.slots:
            self.slots[key] = len(self.textures)
            self.textures.append(look.texture)
            self.samplers.append(look.sampler)
        return self.slots[key]

    def build(self, turn: Float[ndarray, "3 3"]) -> Mesh:
        """The whole mesh, turned; without faces that have no area. Raises AssetError if nothing is left."""
        if not self.columns and self.num_broken:
            raise AssetError("unreadable", "; ".join(self.warnings))
        if not self.columns:
            raise AssetError("empty", "; ".join(["holds no triangles to be seen", *self.warnings]))
        columns = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        if not columns["unlit"].any():
            del columns["unlit"]
        mesh = Mesh(**columns, textures=self.textures, samplers=self.samplers, warnings=self.warnings)
        if not np.isfinite(mesh.triangles).all():
            raise AssetError("not_finite", "has vertices at infinity or NaN")
        mesh.vertices[:] = mesh.vertices @ turn.T
        mesh.shading[:] = mesh.shading @ turn.T.astype(np.float32)
        if np.ptp(mesh.triangles.reshape(-1, 3), axis=0).max() <= 0:
            raise AssetError("empty", "has no extent: all its vertices coincide")
        with np.errstate(over="ignore"):
            solid = np.linalg.norm(face_normals(mesh.triangles), axis=1) > 0
        if not solid.any():
            raise AssetError("empty", "has no area: all its triangles are degenerate")
        return mesh if solid.all() else mesh.select(solid)


def _corner_normals(part: Part, vertices: ndarray, linear: ndarray) -> ndarray:
    """Unit normals at each corner [faces, 3, 3]: the file's own, else (or where they are zero) the face's."""
    flat = np.repeat(face_normals(vertices[part.faces])[:, None], 3, axis=1)
    given = part.normals if part.corner_normals is None else part.corner_normals
    if given is None or not np.isfinite(linear).all():
        return flat
    cofactor = np.linalg.det(linear) * np.linalg.pinv(linear).T
    normals = np.asarray(given, float) @ cofactor.T
    if part.corner_normals is None:
        normals = normals[part.faces]
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    return np.where(good, normals / np.where(good, length, 1), flat)
