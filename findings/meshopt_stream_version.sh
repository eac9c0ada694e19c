#!/usr/bin/env bash
# meshopt: the plain vertex encoder's streams are no valid EXT_meshopt_compression data.
#
# Guess: what encode_vertex_buffer gives can be put into a glTF buffer view of that extension, since the decoder of
# the same package reads it back.
# Truth: it writes version 1 of the bitstream (header byte 0xa1), and the extension demands 0xa0, version 0: readers of
# the specification refuse it. encode_gltf_buffer writes 0xa0 unless told otherwise, and is the one to use. (Version 1
# belongs to KHR_meshopt_compression.)
# Version: meshopt 0.1.0. Source: KhronosGroup/glTF, EXT_meshopt_compression, Appendix A, "Header byte, which must be
# equal to 0xa0".
# The product reads both versions under both names (data_prep/formats/gltf.py; tests/data_prep/formats/test_gltf.py,
# test_meshopt_buffers_are_unpacked) and writes none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check meshopt==0.1.0 numpy==2.4.6
venv/bin/python - <<'EOF'
from importlib.metadata import version

import meshopt
import numpy as np

print("meshopt", version("meshopt"))
rows = np.random.default_rng(0).random((64, 4), dtype=np.float32)
plain, gltf = meshopt.encode_vertex_buffer(rows), meshopt.encode_gltf_buffer(rows, "ATTRIBUTES")
print(f"encode_vertex_buffer: {plain[0]:#x}, encode_gltf_buffer: {gltf[0]:#x}")
assert (plain[0], gltf[0]) == (0xA1, 0xA0)
for data in (plain, gltf):
    back = meshopt.decode_gltf_buffer(data, 64, 16, "ATTRIBUTES")
    assert np.array_equal(np.frombuffer(bytes(back), np.float32).reshape(64, 4), rows)
EOF
echo "holds: only encode_gltf_buffer writes what the extension allows"
