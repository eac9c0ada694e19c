"""COLLADA scenes to parts: nodes with their transforms, instances, skins in bind pose, morphs at rest.

Nodes named like colliders are left out as `colliders` tells them, with a warning.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.collada import Document, Node, floats, inputs
from data_prep.formats.collada_geometry import geometry_parts, mesh_of, mesh_positions
from data_prep.formats.collada_materials import Materials
from data_prep.formats.colliders import Shape, find_colliders, suspicious
from data_prep.formats.parts import Part

_MAX_NODES = 200_000
"""Of a scene, instances included: nodes that hold instances of nodes multiply."""
_SHIFT = 1e-3
"""Joints whose motions differ by more than this share of the matrix are posed."""


@dataclass(frozen=True)
class _Placed:
    """A node as it stands in the scene; a node of several instances does so several times."""

    node: Node
    place: Float[ndarray, "4 4"]


def scene_parts(
    document: Document, *, max_texture: int, max_faces: int
) -> Iterator[tuple[Part, Float[ndarray, "4 4"]]]:
    """Every visible primitive of the document's scene with its transform, in the order of nodes."""
    materials = Materials(document, max_texture)
    placed = _nodes(document)
    if placed is None:
        document.warn("has no scene: its geometries were taken as they are")
        for geometry in document.root.iter("geometry"):
            for part in geometry_parts(document, geometry, materials, {}, max_faces=max_faces):
                yield part, np.eye(4)
        return
    joints = {
        name: item.place for item in placed for name in (item.node.get("sid"), item.node.get("id")) if name
    }
    parts: dict[tuple[Node, tuple[str, ...]], tuple[list[Part], ndarray | None]] = {}
    for item in _without_colliders(document, placed):
        for instance in item.node.iterchildren("instance_geometry", "instance_controller"):
            bindings = {found.get("symbol"): found for found in instance.iterfind(".//instance_material")}
            key = (instance.get("url"), tuple(sorted(f"{s} {b.get('target')}" for s, b in bindings.items())))
            if key not in parts:
                parts[key] = _instance(document, instance, materials, bindings, joints, max_faces)
            own, skin = parts[key]
            for part in own:
                # A skinned mesh stands where its joints are, wherever its node is.
                yield part, item.place if skin is None else skin


def _nodes(document: Document) -> list[_Placed] | None:
    """All nodes of the scene; None if there is none."""
    instance = document.root.find("scene/instance_visual_scene")
    scene = None if instance is None else document.target(instance.get("url"), "visual_scene")
    if scene is None:
        scene = document.root.find(".//visual_scene")
        if scene is None:
            return None
        document.warn(f"names no scene: its {scene.get('id')!r} was read")
    placed: list[_Placed] = []
    todo: list[tuple[Node, ndarray, frozenset[Node]]] = [
        (node, np.eye(4), frozenset()) for node in reversed(scene.findall("node"))
    ]
    while todo:
        node, above, path = todo.pop()
        if node in path:
            raise AssetError("unreadable", f"node {node.get('id')!r} holds an instance of itself")
        if len(placed) == _MAX_NODES:
            raise AssetError("too_large", f"has more than {_MAX_NODES} nodes")
        with np.errstate(all="ignore"):  # absurd numbers are found where the mesh is put together
            place = above @ _local_matrix(node)
        placed.append(_Placed(node, place))
        below = list(node.iterchildren("node"))
        named = [document.target(item.get("url"), "node") for item in node.iterchildren("instance_node")]
        below += [found for found in named if found is not None]
        todo += [(child, place, path | {node}) for child in reversed(below)]
    return placed


def _local_matrix(node: Node) -> Float[ndarray, "4 4"]:
    """The product of a node's transforms in their order."""
    matrix = np.eye(4)
    for item in node:
        sizes = {"matrix": 16, "translate": 3, "rotate": 4, "scale": 3, "lookat": 9, "skew": 7}
        if item.tag not in sizes:
            continue
        values = floats(item.text)
        if len(values) != sizes[item.tag]:
            raise AssetError("unreadable", f"a node's {item.tag} has {len(values)} numbers")
        matrix = matrix @ _transform(item.tag, values)
    return matrix


def _transform(kind: str, values: ndarray) -> Float[ndarray, "4 4"]:
    matrix = np.eye(4)
    with np.errstate(all="ignore"):
        match kind:
            case "matrix":
                return values.reshape(4, 4)
            case "translate":
                matrix[:3, 3] = values
            case "scale":
                matrix[:3, :3] = np.diag(values)
            case "rotate":
                matrix[:3, :3] = _rotation(values[:3], np.radians(values[3]))
            case "lookat":
                eye, at, up = values.reshape(3, 3)
                back = _unit(eye - at)
                right = _unit(np.cross(up, back))
                matrix[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
            case "skew":
                along, around = _unit(values[4:7]), _unit(values[1:4])
                matrix[:3, :3] += np.tan(np.radians(values[0])) * np.outer(along, around)
    return matrix


def _rotation(axis: Float[ndarray, "3"], angle: float) -> Float[ndarray, "3 3"]:
    if not axis.any():
        return np.eye(3)
    x, y, z = _unit(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _unit(vector: ndarray) -> ndarray:
    return vector / np.linalg.norm(vector)


def _without_colliders(document: Document, placed: list[_Placed]) -> list[_Placed]:
    shown = [item for item in placed if item.node.find("instance_geometry") is not None]
    names = [item.node.get("name") or item.node.get("id") or "" for item in shown]
    if not any(map(suspicious, names)):
        return placed
    hidden = find_colliders([_shape(document, item, name) for item, name in zip(shown, names, strict=True)])
    if hidden:
        document.warn("left out as colliders: " + ", ".join(names[index] for index in hidden))
    dropped = {id(shown[index]) for index in hidden}
    return [item for item in placed if id(item) not in dropped]


def _shape(document: Document, item: _Placed, name: str) -> Shape:
    corners = []
    for instance in item.node.iterchildren("instance_geometry"):
        geometry = document.target(instance.get("url"), "geometry")
        mesh = None if geometry is None else mesh_of(document, geometry)
        try:
            if mesh is not None:
                corners.append(mesh_positions(document, mesh) @ item.place[:3, :3].T + item.place[:3, 3])
        except AssetError:  # said where it is read
            continue
    both = np.concatenate(corners) if corners else np.zeros((0, 3))
    bounds = np.stack([both.min(axis=0), both.max(axis=0)]) if len(both) else None
    return Shape(name, item.node.find(".//instance_material") is not None, bounds)


def _instance(
    document: Document,
    instance: Node,
    materials: Materials,
    bindings: dict[str, Node],
    joints: dict[str, ndarray],
    max_faces: int,
) -> tuple[list[Part], Float[ndarray, "4 4"] | None]:
    """What an instance of a geometry or controller shows, and where if it is skinned."""
    url, skin, positions = instance.get("url"), None, None
    found = document.by_id.get((url or "").removeprefix("#"))
    for _ in range(8):  # controllers may stand on one another
        if found is None or found.tag != "controller":
            break
        body = next(found.iterchildren("skin", "morph"), None)
        if body is None:
            break
        url = body.get("source")
        if body.tag == "skin":
            skin = _bind_place(document, body, joints) if skin is None else skin
        else:
            positions = _morphed(document, body)
        found = document.by_id.get((url or "").removeprefix("#"))
    geometry = document.target(url, "geometry")
    if geometry is None:
        return [], skin
    parts = geometry_parts(document, geometry, materials, bindings, positions=positions, max_faces=max_faces)
    return parts, skin


def _bind_place(document: Document, skin: Node, joints: dict[str, ndarray]) -> Float[ndarray, "4 4"]:
    """Where a skin's mesh stands in the pose in which it was bound.

    There every joint's motion, its place times its inverse bind matrix, is the same: none, or the one by
    which the skeleton as a whole was moved since. Where they differ, the skeleton is posed: none is taken.
    """
    text = skin.findtext("bind_shape_matrix")
    shape = np.eye(4) if text is None else floats(text)
    if shape.size != 16:
        raise AssetError("unreadable", f"a bind shape matrix has {shape.size} numbers")
    shape = shape.reshape(4, 4)
    sources = {semantic: source for semantic, _, _, source in inputs(skin.find("joints"))}
    try:
        inverse = document.rows(sources.get("INV_BIND_MATRIX")).reshape(-1, 4, 4)
    except (AssetError, ValueError):
        document.warn("a skin has no inverse bind matrices: it was left where its mesh is")
        return shape
    named = document.by_id.get((sources.get("JOINT") or "").removeprefix("#"))
    array = None if named is None else next(named.iterchildren("Name_array", "IDREF_array"), None)
    names = ((array.text if array is not None else "") or "").split()
    motions = [joints[name] @ matrix for name, matrix in zip(names, inverse, strict=False) if name in joints]
    if not motions or np.ptp(motions, axis=0).max() > _SHIFT * np.abs(motions).max():
        return shape
    return motions[0] @ shape


def _morphed(document: Document, morph: Node) -> Float[ndarray, "vertices 3"] | None:
    """The base's vertices moved by the weights that the file has; None where those move nothing."""
    targets = morph.find("targets")
    sources = {semantic: source for semantic, _, _, source in inputs(targets)}
    try:
        weights = document.rows(sources.get("MORPH_WEIGHT"))[:, 0]
        if not weights.any():
            return None
        named = document.by_id.get((sources.get("MORPH_TARGET") or "").removeprefix("#"))
        names = [] if named is None else (named.findtext("IDREF_array") or "").split()
        base, *others = (
            mesh_positions(document, geometry.find("mesh"))
            for geometry in (document.by_id[name.removeprefix("#")] for name in (morph.get("source"), *names))
        )
        total = sum(weight * other for weight, other in zip(weights, others, strict=False))
        relative = morph.get("method") == "RELATIVE"
        return base + total if relative else (1 - weights.sum()) * base + total
    except (AssetError, KeyError, ValueError, AttributeError) as error:
        document.warn(f"left out a morph: {error}")
        return None
