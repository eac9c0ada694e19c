"""What of a glTF file is settled before trimesh reads it, on the file's own JSON.

- Materials are renamed to their index, so that base colours come from the JSON as floats: trimesh keeps them
  as 8-bit *linear* numbers, which is coarse in the dark.
- Hidden nodes and colliders of game engines lose their meshes.
- Extensions that nobody decodes are refused, where they would silently give zeros.
"""

import json
import re
import struct
from typing import Any

from data_prep.failures import AssetError

_MAGIC, _JSON_CHUNK = 0x46546C67, 0x4E4F534A
_COLLIDER = re.compile(
    r"(^|[_\-. ])(collider|collision|colonly|ucx|ubx|usp|hitbox|navmesh)([_\-. \d]|$)", re.I
)
_GEOMETRY_EXTENSIONS = {"KHR_draco_mesh_compression", "KHR_mesh_quantization"}


def is_collider(name: str) -> bool:
    """Whether a node's name says that it is not to be seen: `rock_collider`, `UCX_wall`, `hitbox.001`."""
    return _COLLIDER.search(name) is not None


def settle(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON tree of a .glb or .gltf file, and the file with the changes named above.

    Raises AssetError for a file that isn't glTF 2 or needs an undecodable extension.
    """
    binary = data[:4] == b"glTF"
    text, rest = _split_glb(data) if binary else (data, b"")
    try:
        tree = json.loads(text)
        version = str(tree["asset"]["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise AssetError("unreadable", f"not a glTF file: its JSON can't be read ({error!r})") from error
    if not version.startswith("2"):
        raise AssetError("unsupported", f"glTF version {version}; version 2 is needed")
    required = set(tree.get("extensionsRequired", []))
    undecoded = {name for name in required if _changes_geometry(name)}
    if undecoded:
        raise AssetError("unsupported", f"needs the glTF extension {', '.join(sorted(undecoded))}")
    for index, material in enumerate(tree.get("materials", [])):
        material["name"] = str(index)
    for node in tree.get("nodes", []):
        visible = node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
        if not visible or is_collider(str(node.get("name", ""))):
            node.pop("mesh", None)
    text = json.dumps(tree).encode()
    return tree, _join_glb(text, rest) if binary else text


def _changes_geometry(name: str) -> bool:
    geometric = "mesh" in name.lower() or "instancing" in name.lower()
    return geometric and name not in _GEOMETRY_EXTENSIONS


def _split_glb(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < 20:
        raise AssetError("unreadable", f"cut short: {len(data)} bytes are less than a GLB header")
    _, _, length, size, kind = struct.unpack("<5I", data[:20])
    if kind != _JSON_CHUNK or length > len(data) or 20 + size > len(data):
        raise AssetError(
            "unreadable", f"cut short or damaged: its header says {length} bytes, it has {len(data)}"
        )
    return data[20 : 20 + size], data[20 + size :]


def _join_glb(text: bytes, rest: bytes) -> bytes:
    text += b" " * (-len(text) % 4)
    head = struct.pack("<5I", _MAGIC, 2, 20 + len(text) + len(rest), len(text), _JSON_CHUNK)
    return head + text + rest


def base_color_factor(material: dict[str, Any]) -> list[float]:
    """Linear RGBA factor of a material's JSON; of its diffuse colour in the specular-glossiness extension."""
    specular = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    if specular is not None:
        factor = specular.get("diffuseFactor", [1.0] * 4)
    else:
        factor = material.get("pbrMetallicRoughness", {}).get("baseColorFactor", [1.0] * 4)
    return [float(value) for value in factor]


def alpha_cutoff(material: dict[str, Any]) -> float:
    """Texture alpha below which the material has a hole; blended materials are cut at one half."""
    match material.get("alphaMode", "OPAQUE"):
        case "MASK":
            return float(material.get("alphaCutoff", 0.5))
        case "BLEND":
            return 0.5
        case _:
            return 0.0
