"""glTF scenes to parts: node transforms, instances, the joints of skins, and what of it all is to be seen.

Hidden nodes (with all below them) and colliders of game engines are dropped, with a warning that lists them.
Nodes must form trees, as the standard demands: a node that is reached twice is an error, never a loop.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_prep.formats.colliders import Shape, find_colliders, suspicious
from data_prep.formats.gltf import Gltf, damaged, normalise
from data_prep.formats.gltf_materials import Materials
from data_prep.formats.gltf_primitives import read_primitive
from data_prep.formats.parts import Part

_MAX_INSTANCES = 1_000_000


def scene_parts(gltf: Gltf, materials: Materials) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """Every visible primitive of the file's scene with its transform, in the order of nodes."""
    # Joints count wherever they are: outside the scene, or hidden.
    everywhere = _places(gltf, _roots(gltf)) if gltf.tree.get("skins") else {}
    places = _without_colliders(gltf, node_places(gltf))
    parts: dict[int, list[Part]] = {}
    for index, place in places.items():
        node = gltf.entry("nodes", index)
        if "mesh" not in node:
            continue
        mesh = gltf.entry("meshes", node["mesh"])
        if "skin" in node or any(node.get("weights", mesh.get("weights", []))):
            joints = _joint_matrices(gltf, node["skin"], everywhere) if "skin" in node else None
            weights = node.get("weights", mesh.get("weights"))
            for primitive in mesh.get("primitives", []):
                part = read_primitive(gltf, materials, primitive, weights=weights, joints=joints)
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


def _without_colliders(gltf: Gltf, places: dict[int, ndarray]) -> dict[int, ndarray]:
    """The places of nodes that are to be seen; a warning names the others."""
    nodes = [index for index in places if "mesh" in gltf.entry("nodes", index)]
    if not any(suspicious(str(gltf.entry("nodes", index).get("name", ""))) for index in nodes):
        return places
    shapes = [_shape(gltf, gltf.entry("nodes", index), places[index]) for index in nodes]
    hidden = find_colliders(shapes)
    if hidden:
        gltf.warnings.append("left out as colliders: " + ", ".join(shapes[i].name for i in hidden))
    dropped = {nodes[i] for i in hidden}
    return {index: place for index, place in places.items() if index not in dropped}


def _shape(gltf: Gltf, node: dict[str, Any], place: Float[ndarray, "4 4"]) -> Shape:
    """What a node with a mesh shows; its bounds are those that its accessors claim."""
    primitives = gltf.entry("meshes", node["mesh"]).get("primitives", [])
    corners = []
    for primitive in primitives:
        number = primitive.get("attributes", {}).get("POSITION")
        entry = {} if number is None else gltf.entry("accessors", number)
        box = np.array([entry.get("min", []), entry.get("max", [])], float)
        if box.shape == (2, 3):
            corners.append(np.stack(np.meshgrid(*box.T), axis=-1).reshape(-1, 3))
    bounds = None
    if corners:
        with np.errstate(all="ignore"):
            moved = np.concatenate(corners) @ place[:3, :3].T + place[:3, 3]
        bounds = np.stack([moved.min(axis=0), moved.max(axis=0)])
    painted = any("material" in primitive for primitive in primitives)
    return Shape(str(node.get("name", "")), painted, bounds)


def node_places(gltf: Gltf) -> dict[int, Float[ndarray, "4 4"]]:
    """World matrices of the scene's visible nodes, by number, parents first."""
    if gltf.tree.get("scenes"):
        roots = gltf.entry("scenes", gltf.tree.get("scene", 0)).get("nodes", [])
    else:
        roots = _roots(gltf)
    hidden: list[str] = []
    places = _places(gltf, roots, hidden)
    if hidden:
        gltf.warnings.append("left out as hidden: " + ", ".join(hidden))
    return places


def _roots(gltf: Gltf) -> list[int]:
    """Nodes that nobody names as a child, which is all there is to see in a library of nodes."""
    nodes = gltf.tree.get("nodes", [])
    children = {child for node in nodes for child in node.get("children", [])}
    return [index for index in range(len(nodes)) if index not in children]


def _places(
    gltf: Gltf, roots: Sequence[int], hidden: list[str] | None = None
) -> dict[int, Float[ndarray, "4 4"]]:
    """World matrices of nodes and all below them, without hidden ones, whose names go to `hidden`.

    If that is None, hidden ones count too.
    """
    places: dict[int, ndarray] = {}
    todo = [(index, np.eye(4)) for index in reversed(roots)]
    while todo:
        index, above = todo.pop()
        node = gltf.entry("nodes", index)
        if index in places:
            raise damaged(f"nodes[{index}] is reached twice: its nodes form a cycle or share a child")
        with np.errstate(all="ignore"):  # absurd numbers are found where the mesh is put together
            places[index] = above @ _local_matrix(node)
        visible = node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
        if not visible and hidden is not None:
            del places[index]
            hidden.append(str(node.get("name", f"node {index}")))
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
