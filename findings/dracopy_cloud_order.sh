#!/usr/bin/env bash
# DracoPy: a point cloud comes back in another order and without its duplicates.
#
# Guess: n points in, the same n points out in their order, since quantisation alone is lossy; so labels or features
# that are kept beside the file still fit.
# Truth: by default a cloud is sorted to pack it tightly: hardly a point is where it was, and points that fall together
# are one. Colours that went through the file stay with their points; arrays beside it don't. `preserve_order=True` keeps
# order and number.
# Version: DracoPy 2.2.0. Source: its README (the signature of encode, `preserve_order=False`) and measured.
# The product reads Draco inside glTF, where all attributes of a primitive travel together (data_prep/formats/gltf.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check DracoPy==2.2.0 numpy==2.4.6
venv/bin/python - <<'EOF'
from importlib.metadata import version

import DracoPy
import numpy as np

print("DracoPy", version("DracoPy"))
points = np.random.default_rng(0).random((500, 3), dtype=np.float32)
step = 1e-3  # quantisation is finer
back = np.asarray(DracoPy.decode(DracoPy.encode(points)).points)
kept = np.asarray(DracoPy.decode(DracoPy.encode(points, preserve_order=True)).points)
same_place = (np.abs(back - points).max(axis=1) < step).mean()
print(f"500 points: {len(back)} back, {same_place:.1%} in their place; with preserve_order "
      f"{(np.abs(kept - points).max(axis=1) < step).mean():.0%}")
doubled = np.repeat(points[:100], 5, axis=0)
merged = len(DracoPy.decode(DracoPy.encode(doubled)).points)
ordered = len(DracoPy.decode(DracoPy.encode(doubled, preserve_order=True)).points)
print(f"100 points five times each: {merged} back; with preserve_order {ordered}")
assert same_place < 0.05 and (np.abs(kept - points) < step).all()
assert merged == 100 and ordered == 500
EOF
echo "holds: order and duplicates are lost unless preserve_order is set"
