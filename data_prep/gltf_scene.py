"""glTF scenes to parts: node transforms, instances, skins and morph targets at rest, primitives of triangles.

Hidden nodes (with all below them) and colliders of game engines are dropped; lines and points are no surface.
Nodes must form trees, as the standard demands: a node that is reached twice is an error, never a loop.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from data_prep.gltf import Gltf, damaged, normalise
from data_prep.gltf_materials import Materials
from data_prep.parts import Part

_COLLIDER = re.compile(
    r"(^|[_\-. ])(collider|collision|colonly|ucx|ubx|usp|hitbox|navmesh)([_\-. \d]|$)", re.I
)
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_MAX_INSTANCES = 1_000_000


def is_collider(name: str) -> bool:
    """Whether a node's name says that it is not to be seen: `rock_collider`, `UCX_wall`, `hitbox.001`."""
    return _COLLIDER.search(name) is not None


def scene_parts(gltf: Gltf, materials: Materials) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """Every visible primitive of the file's scene with its transform, in the order of nodes."""
    places = node_places(gltf)
    parts: dict[int, list[Part]] = {}
    for index, place in places.items():
        node = gltf.entry("nodes", index)
        if "mesh" not in node or is_collider(str(node.get("name", ""))):
            continue
        mesh = gltf.entry("meshes", node["mesh"])
        if "skin" in node or any(node.get("weights", mesh.get("weights", []))):
            joints = _joint_matrices(gltf, node["skin"], places) if "skin" in node else None
            for primitive in mesh.get("primitives", []):
                part = read_primitive(
                    gltf,
                    materials,
                    primitive,
                    weights=node.get("weights", mesh.get("weights")),
                    joints=joints,
                )
                if part is not None:
                    # A skinned mesh stands where its joints are, wherever its node is.
                    yield part, np.eye(4) if joints is not None else place
            continue
        if node["mesh"] not in parts:
            read = [read_primitive(gltf, materials, primitive) for primitive in mesh.get("primitives", [])]
            parts[node["mesh"]] = [part for part in read if part is not None]
        for instance in _instances(gltf, node):
            with np.errstate(all="ignore"):
                matrix = place @ instance
            for part in parts[node["mesh"]]:
                yield part, matrix


def node_places(gltf: Gltf) -> dict[int, Float[ndarray, "4 4"]]:
    """World matrices of the scene's visible nodes, by number, parents first."""
    scenes = gltf.tree.get("scenes", [])
    if scenes:
        roots = gltf.entry("scenes", gltf.tree.get("scene", 0)).get("nodes", [])
    else:  # a library of nodes: those that nobody names as a child
        nodes = gltf.tree.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [index for index in range(len(nodes)) if index not in children]
    places: dict[int, ndarray] = {}
    todo = [(index, np.eye(4)) for index in reversed(roots)]
    while todo:
        index, above = todo.pop()
        node = gltf.entry("nodes", index)
        if index in places:
            raise damaged(f"nodes[{index}] is reached twice: its nodes form a cycle or share a child")
        with np.errstate(all="ignore"):  # absurd numbers are found where the mesh is put together
            places[index] = above @ _local_matrix(node)
        if not node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True):
            del places[index]
            continue
        todo += [(child, places[index]) for child in reversed(node.get("children", []))]
    return places


def _local_matrix(node: dict[str, Any]) -> Float[ndarray, "4 4"]:
    try:
        if "matrix" in node:
            return np.array(node["matrix"], float).reshape(4, 4).T
        return _compose(
            *(
                np.array([node.get(name, default)], float).reshape(1, len(default))
                for name, default in (
                    ("translation", [0, 0, 0]),
                    ("rotation", [0, 0, 0, 1]),
                    ("scale", [1, 1, 1]),
                )
            )
        )[0]
    except (TypeError, ValueError) as error:
        raise damaged(f"a node's transform is no matrix: {error}") from error


def _compose(
    translation: Float[ndarray, "n 3"], rotation: Float[ndarray, "n 4"], scale: Float[ndarray, "n 3"]
) -> Float[ndarray, "n 4 4"]:
    """Matrices T R S; rotations are quaternions x y z w, of unit length but for rounding."""
    with np.errstate(all="ignore"):  # absurd numbers are found where the mesh is put together
        x, y, z, w = (rotation / np.linalg.norm(rotation, axis=1, keepdims=True)).T
        turn = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        ).transpose(2, 0, 1)
        matrix = np.tile(np.eye(4), (len(rotation), 1, 1))
        matrix[:, :3, :3] = turn * scale[:, None, :]
    matrix[:, :3, 3] = translation
    return matrix


def _instances(gltf: Gltf, node: dict[str, Any]) -> Float[ndarray, "n 4 4"]:
    """Transforms of EXT_mesh_gpu_instancing; the identity alone without it."""
    extension = node.get("extensions", {}).get("EXT_mesh_gpu_instancing")
    attributes = extension.get("attributes", {}) if extension else {}
    columns = {name: normalise(gltf.accessor(index)).astype(float) for name, index in attributes.items()
               if name in ("TRANSLATION", "ROTATION", "SCALE")}  # fmt: skip
    if not columns:
        return np.eye(4)[None]
    count = len(next(iter(columns.values())))
    if count > _MAX_INSTANCES or any(len(column) != count for column in columns.values()):
        raise damaged(f"instancing has {', '.join(str(len(c)) for c in columns.values())} transforms")
    return _compose(
        columns.get("TRANSLATION", np.zeros((count, 3))),
        columns.get("ROTATION", np.tile([0.0, 0, 0, 1], (count, 1))),
        columns.get("SCALE", np.ones((count, 3))),
    )


def _joint_matrices(gltf: Gltf, index: int, places: dict[int, ndarray]) -> Float[ndarray, "joints 4 4"]:
    skin = gltf.entry("skins", index)
    joints = skin.get("joints", [])
    if not joints or not all(joint in places for joint in joints):
        raise damaged(f"skins[{index}] names joints that aren't in the scene")
    world = np.stack([places[joint] for joint in joints])
    if "inverseBindMatrices" not in skin:
        return world
    inverse = gltf.accessor(skin["inverseBindMatrices"])
    if inverse.shape[0] < len(joints) or inverse.shape[1] != 16:
        raise damaged(f"skins[{index}] has {len(inverse)} matrices for {len(joints)} joints")
    return world @ inverse[: len(joints)].astype(float).reshape(-1, 4, 4).transpose(0, 2, 1)


def read_primitive(
    gltf: Gltf,
    materials: Materials,
    primitive: dict[str, Any],
    *,
    weights: list[float] | None = None,
    joints: Float[ndarray, "joints 4 4"] | None = None,
) -> Part | None:
    """One primitive as a part, morphed by `weights` and skinned by `joints`; None for lines and points."""
    mode = primitive.get("mode", _TRIANGLES)
    if mode not in (_TRIANGLES, _STRIP, _FAN):
        return None
    packed = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
    columns, faces = gltf.draco(packed) if packed else ({}, None)
    names = primitive.get("attributes", {})

    def column(name: str) -> ndarray | None:
        if name in columns:  # Draco keeps the accessor's integers
            normalized = name in names and gltf.entry("accessors", names[name]).get("normalized")
            return normalise(columns[name]) if normalized else columns[name]
        return gltf.accessor(names[name]) if name in names else None

    vertices = column("POSITION")
    if vertices is None or not len(vertices):
        return None
    if vertices.shape[1] != 3:
        raise damaged("positions are no triples")
    if faces is None:
        faces = _faces(gltf, primitive, mode, len(vertices))
    vertices, normals = vertices.astype(float), column("NORMAL")
    if normals is not None and normals.shape != vertices.shape:
        normals = None
    for weight, target in zip(weights or [], primitive.get("targets", []), strict=False):
        if weight and "POSITION" in target:
            vertices = vertices + weight * _same_rows(gltf.accessor(target["POSITION"]), vertices)
    if joints is not None and "JOINTS_0" in names:
        blend = _skin(column, joints, len(vertices))
        vertices = np.einsum("vij,vj->vi", blend[:, :3, :3], vertices) + blend[:, :3, 3]
        normals = None if normals is None else np.einsum("vij,vj->vi", blend[:, :3, :3], normals)
    look, channel, transform = materials.look(primitive.get("material"))
    faces = faces.astype(np.int64)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise damaged(f"a face names vertex {faces.max()} of {len(vertices)}")
    return Part(
        vertices, faces, look, normals=normals,
        color=_colors(column("COLOR_0"), faces, len(vertices)),
        uv=_uv(column(channel), transform, faces, len(vertices)),
    )  # fmt: skip


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
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _FAN:
        return np.stack([order[1:-1], order[2:], np.full(len(order) - 2, order[0])], axis=1)
    # Every second triangle of a strip runs the other way round.
    first = np.arange(len(order) - 2)
    odd = first % 2
    return np.stack([order[first], order[first + 1 + odd], order[first + 2 - odd]], axis=1)


def _skin(column: Any, joints: Float[ndarray, "joints 4 4"], count: int) -> Float[ndarray, "vertices 4 4"]:
    """Each vertex's weighted mean of joint matrices (section 3.7.3.3)."""
    blend, total = np.zeros((count, 4, 4)), np.zeros((count, 1, 1))
    for number in range(4):
        which, weight = column(f"JOINTS_{number}"), column(f"WEIGHTS_{number}")
        if which is None or weight is None:
            break
        if which.shape != (count, 4) or weight.shape != (count, 4) or which.max(initial=0) >= len(joints):
            raise damaged(f"a vertex names joint {which.max(initial=0)} of {len(joints)}")
        for corner in range(4):
            share = weight[:, corner, None, None].astype(float)
            blend += share * joints[which[:, corner].astype(np.int64)]
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
