"""Asset files that try to break their reader: each kind is a function that writes one case into its folder.

Cases are a function of the seed. Beside the cases' folders lie files that no asset may read (`secret.*`).
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

Rng = np.random.Generator
Case = Callable[[Path, Rng], None]

_BOX = trimesh.creation.box()
_TRIANGLE = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\n"
_FACE = b"usemtl m\nf 1/1 2/2 3/3\n"


def gltf_tree(**more: Any) -> dict[str, Any]:
    """A sound glTF of one triangle in `a.bin` beside it, with entries replaced."""
    return {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}], "images": [{"uri": "a.png"}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC2"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": 36}], "buffers": [{"byteLength": 36, "uri": "a.bin"}],
        **more,
    }  # fmt: skip


def write_gltf(folder: Path, tree: dict[str, Any] | bytes) -> None:
    """A glTF with its buffer and picture."""
    (folder / "a.bin").write_bytes(np.float32([[0, 0, 0], [1, 0, 0], [0, 2, 0]]).tobytes())
    Image.new("RGB", (4, 4), (200, 90, 30)).save(folder / "a.png")
    (folder / "a.gltf").write_bytes(tree if isinstance(tree, bytes) else json.dumps(tree).encode())


def write_obj(folder: Path, *, mtl: bytes = b"newmtl m\nmap_Kd a.png\n", obj: bytes | None = None) -> None:
    """A textured OBJ triangle."""
    Image.new("RGB", (4, 4), (200, 90, 30)).save(folder / "a.png")
    (folder / "a.mtl").write_bytes(mtl)
    (folder / "a.obj").write_bytes(b"mtllib a.mtl\n" + _TRIANGLE + _FACE if obj is None else obj)


def good_files() -> dict[str, bytes]:
    """Sound self-contained files by suffix; "draco" is a GLB."""
    files = {name: _BOX.export(file_type=name) for name in ("glb", "obj", "ply", "stl", "off", "dae")}
    files["draco"] = _BOX.export(file_type="glb", extension_draco=True)
    return {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}


_GOOD = good_files()


def _pick(rng: Rng) -> tuple[str, bytes]:
    name = str(rng.choice(sorted(_GOOD)))
    return name.replace("draco", "glb"), _GOOD[name]


def truncated(folder: Path, rng: Rng) -> None:
    suffix, data = _pick(rng)
    (folder / f"a.{suffix}").write_bytes(data[: rng.integers(0, len(data))])


def bit_flipped(folder: Path, rng: Rng) -> None:
    suffix, data = _pick(rng)
    raw = np.frombuffer(data, np.uint8).copy()
    where = rng.integers(0, min(len(raw), 1200), int(2 ** rng.integers(0, 6)))
    raw[where] ^= (1 << rng.integers(0, 8, len(where))).astype(np.uint8)
    (folder / f"a.{suffix}").write_bytes(raw.tobytes())


def noise(folder: Path, rng: Rng) -> None:
    suffix, data = _pick(rng)
    head = data[: int(rng.integers(0, 100))]
    (folder / f"a.{suffix}").write_bytes(head + rng.bytes(int(rng.integers(0, 5000))))


def wrong_extension(folder: Path, rng: Rng) -> None:
    _, data = _pick(rng)
    others = [
        data,
        b"%!PS\n(/etc/passwd) run\n",
        b"\x7fELF" + bytes(200),
        b"<html></html>",
        zlib.compress(data),
    ]
    (folder / f"a.{_pick(rng)[0]}").write_bytes(others[rng.integers(len(others))])


def zip_bomb(folder: Path, rng: Rng) -> None:
    member = str(rng.choice(["a.obj", "deep/a.stl", "b.glb"]))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        match rng.integers(4):
            case 0:
                archive.writestr(member, bytes(64 << 20))
            case 1:  # a bomb that only an asset's texture sets off
                archive.writestr("a.obj", b"mtllib a.mtl\n" + _TRIANGLE + _FACE)
                archive.writestr("a.mtl", b"newmtl m\nmap_Kd a.png\n")
                archive.writestr("a.png", bytes(64 << 20))
            case 2:
                archive.writestr("inner.zip", bytes(1000))
                archive.writestr("a.obj", b"")
            case _:
                for number in range(2000):
                    archive.writestr(f"{number}.obj", b"")
    if rng.integers(2):  # sizes in the directory that are lies
        data = bytearray((folder / "a.zip").read_bytes())
        at = data.rfind(b"PK\x01\x02")
        data[at + 24 : at + 28] = struct.pack("<I", int(rng.integers(1, 2**32)))
        (folder / "a.zip").write_bytes(data)


def damaged_archive(folder: Path, rng: Rng) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(
            "PluginFurnitureCatalog.properties", "id#1=x\nname#1=Chair\nmodel#1=/../../secret.obj\n"
        )
        archive.writestr("a.obj", _TRIANGLE + b"f 1 2 3\n# %d\n" % rng.integers(10**9))
    data = bytearray((folder / "a.zip").read_bytes())
    match rng.integers(3):
        case 0:
            data[int(rng.integers(len(data)))] ^= 0xFF
        case 1:
            del data[int(rng.integers(len(data))) :]
    (folder / "a.zip").unlink()
    (folder / str(rng.choice(["a.zip", "a.sh3f"]))).write_bytes(data)


def traversal(folder: Path, rng: Rng) -> None:
    up = str(
        rng.choice(["../", "../../", "x/../../", "..\\", "%2e%2e/", "/etc/", "file:///etc/", "....//../"])
    )
    match rng.integers(6):
        case 0:
            write_obj(folder, mtl=f"newmtl m\nmap_Kd {up}secret.png\nmap_d {up}secret.png\n".encode())
        case 1:
            write_obj(folder, obj=f"mtllib {up}secret.mtl\n".encode() + _TRIANGLE + _FACE)
        case 2:
            write_gltf(folder, gltf_tree(buffers=[{"byteLength": 36, "uri": f"{up}secret.bin"}]))
        case 3:
            write_gltf(folder, gltf_tree(images=[{"uri": f"{up}secret.png"}]))
        case 4:
            ply = (
                b"ply\nformat ascii 1.0\ncomment TextureFile " + f"{up}secret.png".encode() + _GOOD["ply"][3:]
            )
            (folder / "a.ply").write_bytes(ply)
        case _:
            with zipfile.ZipFile(folder / "a.zip", "w") as archive:
                archive.writestr(f"{up}evil.obj", _TRIANGLE + b"f 1 2 3\n")
                archive.writestr("a.obj", f"mtllib {up}secret.mtl\n".encode() + _TRIANGLE + _FACE)


def huge_texture(folder: Path, rng: Rng) -> None:
    size = int(rng.choice([9000, 20000, 60000]))
    write_obj(folder)
    ihdr = struct.pack(">2I5B", size, size, 8, int(rng.choice([0, 2, 6])), 0, 0, 0)
    body = zlib.compress(bytes(1 << 24)) if rng.integers(2) else b""
    chunks = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", ihdr), (b"IDAT", body), (b"IEND", b""))
    )
    texture = b"\x89PNG\r\n\x1a\n" + chunks
    if rng.integers(3) == 0:
        head = b"\xabKTX 20\xbb\r\n\x1a\n" + struct.pack("<8I", 0, 1, size, size, 0, 0, 1, 1)
        texture = head + rng.bytes(400)
    (folder / "a.png").write_bytes(texture)


def odd_texture(folder: Path, rng: Rng) -> None:
    write_obj(folder)
    texture = [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n", b"", rng.bytes(500),
               (folder / "a.png").read_bytes()[:60], b"GIF89a\xff\xff\xff\xff\xf7\0\0" + rng.bytes(300),
               b"RIFF\xff\xff\xff\x7fWEBPVP8L" + rng.bytes(100)]  # fmt: skip
    (folder / "a.png").write_bytes(texture[rng.integers(len(texture))])


def absurd_numbers(folder: Path, rng: Rng) -> None:
    word = str(rng.choice(["nan", "inf", "-inf", "1e308", "1e-320", "1e30", "9" * 400]))
    if rng.integers(2):
        (folder / "a.obj").write_bytes(f"v {word} 0 0\nv 1 {word} 0\nv 0 1 0\nf 1 2 3\n".encode())
        return
    number = {"9" * 400: 1e39}.get(word) or float(word)
    node = {
        "mesh": 0,
        "scale": [number, 1, 1],
        "rotation": [number, 0, 0, number],
        "translation": [number] * 3,
    }
    write_gltf(folder, gltf_tree(nodes=[node]))


def odd_nodes(folder: Path, rng: Rng) -> None:
    match rng.integers(5):
        case 0:
            nodes = [{"mesh": 0, "children": [1]}, {"children": [0]}]
        case 1:
            nodes = [{"mesh": 0, "children": [0]}]
        case 2:  # 2^40 paths
            nodes = [{"children": [i + 1, i + 1]} for i in range(40)] + [{"mesh": 0}]
        case 3:  # 20,000 deep: sound, but too deep for recursion
            nodes = [{"children": [i + 1]} for i in range(20_000)] + [{"mesh": 0}]
        case _:
            nodes = [{"mesh": 0, "children": [-1, 99, "x", None][: int(rng.integers(1, 5))]}]
    write_gltf(folder, gltf_tree(nodes=nodes))


def huge_claims(folder: Path, rng: Rng) -> None:
    count = int(rng.choice([10**8, 2**31 - 1, 10**15]))
    accessor = {"componentType": 5126, "count": count, "type": "VEC3"}
    sparse = {
        "count": count,
        "indices": {"bufferView": 0, "componentType": 5125},
        "values": {"bufferView": 0},
    }
    match rng.integers(8):
        case 0:
            ply = "ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\n"
            ply += f"element face {count}\n"
            (folder / "a.ply").write_bytes(
                ply.encode() + b"property list uchar int vertex_indices\nend_header\n"
            )
        case 1:
            (folder / "a.off").write_bytes(f"OFF\n{count} {count} 0\n0 0 0\n".encode())
        case 2:
            (folder / "a.stl").write_bytes(bytes(80) + struct.pack("<I", count % 2**32) + bytes(100))
        case 3:
            write_gltf(folder, gltf_tree(accessors=[accessor]))
        case 4:
            write_gltf(folder, gltf_tree(accessors=[accessor | {"count": 3, "sparse": sparse}]))
        case 5:
            instancing = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 2}}}
            accessors = [*gltf_tree()["accessors"], accessor]
            write_gltf(folder, gltf_tree(accessors=accessors, nodes=[{"mesh": 0, "extensions": instancing}]))
        case 6:
            packed = {"buffer": 0, "byteLength": 36, "byteStride": 12, "count": count, "mode": "ATTRIBUTES"}
            view = {"buffer": 0, "byteLength": 36, "extensions": {"EXT_meshopt_compression": packed}}
            write_gltf(folder, gltf_tree(bufferViews=[view]))
        case _:
            (folder / "a.obj").write_bytes(_TRIANGLE + f"f 1 2 {count}\nf -{count} 1 2\n".encode())


def links(folder: Path, rng: Rng) -> None:
    write_obj(folder)
    match rng.integers(6):
        case 0:
            (folder / "b.obj").symlink_to("/etc/passwd")
        case 1:
            (folder / "a.png").unlink()
            (folder / "a.png").symlink_to("../../secret.png")
        case 2:
            (folder / "a.obj").unlink()
            (folder / "a.obj").symlink_to("a.obj")
        case 3:
            (folder / "deeper").symlink_to("/etc")
        case 4:
            (folder / "a.mtl").unlink()
            (folder / "a.mtl").symlink_to("/dev/zero")
        case _:
            (folder / "b.zip").symlink_to("../../secret.zip")


def odd_files(folder: Path, rng: Rng) -> None:
    write_obj(folder)
    match rng.integers(5):
        case 0:
            os.mkfifo(folder / "b.glb")
        case 1:
            (folder / "a.png").unlink()
            os.mkfifo(folder / "a.png")
        case 2:
            (folder / "b.glb").mkdir()
        case 3:
            (folder / "b.glb").symlink_to("/dev/zero")
        case _:
            (folder / ("n" * 240 + ".obj")).write_bytes(b"")
            (folder / "new\nline <b>&\u202e.obj").write_bytes(_TRIANGLE + b"f 1 2 3\n")


def odd_json(folder: Path, rng: Rng) -> None:
    if rng.integers(6) == 0:
        write_gltf(folder, b'{"asset":{"version":"2.0"},"nodes":' + b"[" * 100_000)
        return
    odd: list[Any] = [None, -1, 10**30, 1e308, "x", [], {}, [[]], True, [1e308] * 16]
    tree = gltf_tree()
    for _ in range(int(rng.integers(1, 4))):
        place: Any = tree
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            if isinstance(place[key], dict | list) and place[key] and rng.integers(4):
                place = place[key]
                continue
            place[key] = odd[rng.integers(len(odd))]
            break
    write_gltf(folder, tree)


def odd_xml(folder: Path, rng: Rng) -> None:
    laughs = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    heads = [f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]>', '<!DOCTYPE x [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>',
             '<!DOCTYPE x SYSTEM "../secret.dtd">']  # fmt: skip
    body = _GOOD["dae"].decode()
    if rng.integers(4) == 0:
        (folder / "a.dae").write_text("<a>" * 100_000)
        return
    start = body.index("<COLLADA")
    head = heads[rng.integers(len(heads))]
    (folder / "a.dae").write_text(
        body[:start] + head + body[start:].replace("<asset>", "<asset><x>&a9;</x>", 1)
    )


def slow_patterns(folder: Path, rng: Rng) -> None:
    blank = b" " * 300_000
    match rng.integers(5):
        case 0:
            write_obj(folder, obj=b"\n" * 500_000 + b"mtllib a" + blank + b"b\n" + _TRIANGLE + b"f 1 2 3\n")
        case 1:
            write_obj(
                folder, mtl=b"newmtl m\nmap_Kd " + b"-1 " * 100_000 + b"\n" + b"map_Kd a" + blank + b"b\n"
            )
        case 2:
            (folder / "a.dae").write_bytes(b"<init_from>" + blank + b"x")
        case 3:
            write_obj(folder, obj=_TRIANGLE + b"f" + b" 1 2 3" * 30_000 + b"\n")
        case _:
            write_obj(folder, obj=_TRIANGLE + b"o x\nusemtl m\nf 1 2 3\n" * 20_000)


KINDS: list[Case] = [
    truncated, bit_flipped, noise, wrong_extension, zip_bomb, damaged_archive, traversal, huge_texture,
    odd_texture, absurd_numbers, odd_nodes, huge_claims, links, odd_files, odd_json, odd_xml, slow_patterns,
]  # fmt: skip


def _tell_apart(folder: Path, number: int) -> None:
    """Gives text files contents of their own: equal ones would be left out as duplicates, untried."""
    for path in folder.iterdir():
        if path.suffix in (".obj", ".gltf", ".dae") and path.is_file() and not path.is_symlink():
            ending = b"\n# case %d\n" % number if path.suffix == ".obj" else b" " * (number + 1)
            path.write_bytes(path.read_bytes() + ending)


def write_cases(root: Path, num: int, seed: int) -> Path:
    """Writes `num` cases into `root/assets`, each in its own folder, and the secrets beside; returns it."""
    assets = root / "assets"
    for number in range(num):
        kind = KINDS[number % len(KINDS)]
        folder = assets / f"{kind.__name__}_{number:03d}"
        folder.mkdir(parents=True)
        kind(folder, np.random.default_rng([seed, number]))
        _tell_apart(folder, number)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(root / "secret.png")
    (root / "secret.bin").write_bytes(bytes(36))
    (root / "secret.mtl").write_bytes(b"newmtl m\nKd 1 0 0\n")
    (root / "secret.dtd").write_bytes(b"")
    with zipfile.ZipFile(root / "secret.zip", "w") as archive:
        archive.writestr("a.obj", _TRIANGLE + b"f 1 2 3\n")
    return assets
