"""glTF primitives to parts: triangles, strips and fans, Draco's too, morphed, skinned and coloured.

Lines and points are no surface and are left out with a warning (glTF 2.0, sections 3.7.2 and 3.7.3).
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.gltf import Gltf, damaged, normalise
from data_prep.formats.gltf_materials import Materials
from data_prep.formats.parts import Part

_TRIANGLES, _STRIP, _FAN = 4, 5, 6


def read_primitive(
    gltf: Gltf,
    materials: Materials,
    primitive: dict[str, Any],
    *,
    weights: list[float] | None = None,
    joints: Float[ndarray, "joints 4 4"] | None = None,
) -> Part | None:
    """One primitive as a part, morphed by `weights` and skinned by `joints`; None where it has no faces."""
    mode = primitive.get("mode", _TRIANGLES)
    if mode not in (_TRIANGLES, _STRIP, _FAN):
        materials.warn("left out lines and points: they are no surface")
        return None
    columns = Columns(gltf, primitive)
    vertices = columns.get("POSITION")
    if vertices is None or not len(vertices):
        materials.warn("left out a primitive without positions")
        return None
    if vertices.shape[1] != 3:
        raise damaged("positions are no triples")
    faces = columns.faces if columns.faces is not None else _faces(gltf, primitive, mode, len(vertices))
    with np.errstate(invalid="ignore"):  # NaN is refused later
        vertices = vertices.astype(float)
    normals = columns.optional("NORMAL")
    if normals is not None and normals.shape != vertices.shape:
        normals = None
    for weight, target in zip(weights or [], primitive.get("targets", []), strict=False):
        if weight and "POSITION" in target:
            vertices = vertices + weight * _same_rows(gltf.accessor(target["POSITION"]), vertices)
    if joints is not None and "JOINTS_0" in columns.names:
        blend = _skin(columns, joints, len(vertices))
        vertices = np.einsum("vij,vj->vi", blend[:, :3, :3], vertices) + blend[:, :3, 3]
        normals = None if normals is None else np.einsum("vij,vj->vi", blend[:, :3, :3], normals)
    surface = materials.surface(primitive.get("material"))
    # Faces that name no vertex are left out, with a warning, where the parts are put together.
    known = np.clip(faces, 0, len(vertices) - 1)
    color = _colors(columns.optional("COLOR_0"), known, len(vertices))
    if color is not None and not surface.tinted:
        color[..., :3] = 1
    uv = _uv(columns.optional(surface.channel), surface.uv_transform, known, len(vertices))
    return Part(vertices, faces, surface.look, normals=normals, color=color, uv=uv)


class Columns:
    """A primitive's attributes by name, whether packed by Draco or not."""

    def __init__(self, gltf: Gltf, primitive: dict[str, Any]) -> None:
        self.gltf, self.names = gltf, primitive.get("attributes", {})
        packed = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
        self.packed, faces = gltf.draco(packed, self.names) if packed else ({}, None)
        self.faces = None if faces is None else faces.astype(np.int64)

    def get(self, name: str) -> ndarray | None:
        if name in self.packed:
            return self.packed[name]
        return self.gltf.accessor(self.names[name]) if name in self.names else None

    def optional(self, name: str) -> ndarray | None:
        """None with a warning for one that is damaged."""
        try:
            return self.get(name)
        except AssetError as error:
            if error.reason != "unreadable":
                raise
            self.gltf.warnings.append(f"left out {name}: {error.message}")
            return None


def _same_rows(rows: ndarray, like: ndarray) -> ndarray:
    if rows.shape != like.shape:
        raise damaged(f"a morph target has {len(rows)} rows for {len(like)} vertices")
    return rows


def _faces(gltf: Gltf, primitive: dict[str, Any], mode: int, count: int) -> Int[ndarray, "faces 3"]:
    if "indices" in primitive:
        order = gltf.accessor(primitive["indices"]).reshape(-1).astype(np.int64)
    else:
        order = np.arange(count)
    if mode == _TRIANGLES:
        if len(order) % 3:
            gltf.warnings.append(f"left out {len(order) % 3} of {len(order)} indices: they make no triangle")
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _FAN:
        return np.stack([order[1:-1], order[2:], np.full(len(order) - 2, order[0])], axis=1)
    # Every second triangle of a strip runs the other way round.
    first = np.arange(len(order) - 2)
    odd = first % 2
    return np.stack([order[first], order[first + 1 + odd], order[first + 2 - odd]], axis=1)


def _skin(
    columns: Columns, joints: Float[ndarray, "joints 4 4"], count: int
) -> Float[ndarray, "vertices 4 4"]:
    """Each vertex's weighted mean of joint matrices (section 3.7.3.3); a joint without weight may be any."""
    blend, total = np.zeros((count, 4, 4)), np.zeros((count, 1, 1))
    for number in range(4):
        which, weight = columns.get(f"JOINTS_{number}"), columns.get(f"WEIGHTS_{number}")
        if which is None or weight is None:
            break
        if which.shape != (count, 4) or weight.shape != (count, 4):
            raise damaged(f"joints of {len(which)} and weights of {len(weight)} for {count} vertices")
        which = np.where(weight > 0, which, 0).astype(np.int64)
        if which.max(initial=0) >= len(joints):
            raise damaged(f"a vertex names joint {which.max(initial=0)} of {len(joints)}")
        for corner in range(4):
            share = weight[:, corner, None, None].astype(float)
            blend += share * joints[which[:, corner]]
            total += share
    with np.errstate(all="ignore"):
        return np.where(total > 0, blend / total, np.eye(4))


def _colors(colors: ndarray | None, faces: ndarray, count: int) -> Float[ndarray, "faces 3 4"] | None:
    if colors is None or len(colors) != count or colors.shape[1] not in (3, 4):
        return None
    # Integer colours are fractions of their range, also where an exporter forgot to say so.
    colors = np.nan_to_num(np.clip(normalise(colors), 0, 1))
    return np.concatenate([colors, np.ones((count, 4 - colors.shape[1]))], axis=1)[faces]


def _uv(uv: ndarray | None, transform: ndarray, faces: ndarray, count: int) -> ndarray | None:
    """Coordinates at each corner, transformed, with the origin at the bottom left."""
    if uv is None or uv.shape != (count, 2):
        return None
    moved = uv.astype(float) @ transform[:, :2].T + transform[:, 2]
    return np.stack([moved[:, 0], 1 - moved[:, 1]], axis=1).astype(np.float32)[faces]
