#!/usr/bin/env bash
# opengl-basisu: a KTX2 file's KTXorientation and KTXswizzle are ignored, and nothing tells that they are there.
#
# Guess: `transcode("rgba8")` gives the picture as it is meant, upright and with its channels in place; or `y_flipped`
# says that it isn't.
# Truth: rows and channels come as they are stored. A file with KTXorientation "ru" (first row at the bottom) comes
# upside down and `y_flipped` is False, since it is a flag of .basis files alone; KTXswizzle isn't applied, and neither
# key can be asked for. Textures of glTF are safe: KHR_texture_basisu allows "rd" and "rgba" alone. For other KTX2
# files read the key/value data yourself.
# Version: opengl-basisu 0.1.0a2. Source: opengl_basisu/texture.py ("Rows run from the first row stored in the file")
# and measured; KTX 2.0 specification, "KTXorientation" and "KTXswizzle"; KHR_texture_basisu.
# The product reads KTX2 in glTF alone (data_prep/formats/textures.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check opengl-basisu==0.1.0a2 numpy==2.4.6
venv/bin/python - <<'EOF'
import struct
from importlib.metadata import version

import opengl_basisu

print("opengl-basisu", version("opengl-basisu"))
DESCRIPTOR = bytes.fromhex(
    "2c0000000000000002002800a601020003030000100000000000000000007f000000000000000000ffffffff"
)
BLOCK = bytes.fromhex("fb160b001000002000000000ffffffff")  # 4 x 4 texels in UASTC: red above blue


def ktx2(**keys: str) -> bytes:
    table = b""
    for key, value in keys.items():
        entry = f"{key}\0{value}\0".encode()
        table += struct.pack("<I", len(entry)) + entry + bytes(-len(entry) % 4)
    place = -(-(148 + len(table)) // 16) * 16
    head = b"\xabKTX 20\xbb\r\n\x1a\n" + struct.pack("<9I", 0, 1, 4, 4, 0, 0, 1, 1, 0)
    head += struct.pack("<4I2Q", 104, 44, 148 if table else 0, len(table), 0, 0) + struct.pack("<3Q", place, 16, 16)
    return (head + DESCRIPTOR + table).ljust(place, b"\0") + BLOCK


for keys in ({}, {"KTXorientation": "rd"}, {"KTXorientation": "ru"}, {"KTXswizzle": "bgra"}):
    texture = opengl_basisu.open(ktx2(**keys))
    rows = texture.transcode("rgba8").data[[0, -1], 0].tolist()
    print(f"{keys}: first row {rows[0]}, last row {rows[1]}, y_flipped {texture.y_flipped}")
    assert rows == [[255, 0, 0, 255], [0, 0, 255, 255]] and not texture.y_flipped
EOF
echo "holds: orientation and swizzle of KTX2 are ignored"
