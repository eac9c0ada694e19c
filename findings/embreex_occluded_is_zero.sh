#!/usr/bin/env bash
# embreex: query="OCCLUDED" answers 0 for a ray that is blocked and -1 for one that is free.
#
# Guess: a shadow query gives a mask, or primitive numbers as "INTERSECT" does, so that its truth or a comparison with
# the other query says what is in shadow.
# Truth: it is 0 on any hit, whichever mesh and triangle it was, and -1 otherwise. As a mask it is exactly inverted:
# bool(-1) is True. Compare with `>= 0`, and read no mesh from it.
# Version: embreex 4.4.0.post1. Source: trimesh/embreex, embreex/rtcore_scene.pyx at f630bb5, `run`, "OCCLUDED": the
# ray's geomID after rtcOccluded, which Embree 2 sets to 0 on any hit (an older release, whose answers this one keeps).
# The product asks for hits alone (data_prep/render/raycast.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check embreex==4.4.0.post1 numpy==2.4.6
venv/bin/python - <<'EOF'
from importlib.metadata import version

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

print("embreex", version("embreex"))
scene = EmbreeScene()
triangle = np.float32([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]])
for offset in (0, 5, 10):
    TriangleMesh(scene, triangle + np.float32([offset, 0, 0]))
origins = np.float32([[0.2, 0.2, 1], [5.2, 0.2, 1], [10.2, 0.2, 1], [50, 0.2, 1]])
down = np.float32([[0, 0, -1]]).repeat(4, axis=0)
occluded = scene.run(origins, down, query="OCCLUDED")
meshes = scene.run(origins, down, output=True)["geomID"]
print("meshes hit:", meshes, " OCCLUDED:", occluded, " as a mask:", occluded.astype(bool))
assert meshes.tolist() == [0, 1, 2, -1]
assert occluded.tolist() == [0, 0, 0, -1]
EOF
echo "holds: OCCLUDED is 0 where blocked, -1 where free"
