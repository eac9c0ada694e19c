#!/usr/bin/env bash
# embreex: geometry that is added after a scene's first query is never hit.
#
# Guess: a mesh that is added to a scene counts from then on, or is refused.
# Truth: the scene is committed at the first `run` and never again, so what is added later is in no query, silently:
# rays through it report -1, "nothing there". Build a scene whole before its first query, or make a new one.
# Version: embreex 4.4.0.post1. Source: trimesh/embreex, embreex/rtcore_scene.pyx at f630bb5, `run`: it commits only `if
# self.is_committed == 0` (an older release than this, which behaves alike).
# The product builds a scene an asset (data_prep/render/raycast.py) and never adds to one.
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
triangle = np.float32([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]])
aside = triangle + np.float32([5, 0, 0])
origins, down = np.float32([[0.2, 0.2, 1], [5.2, 0.2, 1]]), np.float32([[0, 0, -1], [0, 0, -1]])

whole = EmbreeScene()
TriangleMesh(whole, triangle), TriangleMesh(whole, aside)
print("both before the first query:", whole.run(origins, down))
grown = EmbreeScene()
TriangleMesh(grown, triangle)
first = grown.run(origins, down)
TriangleMesh(grown, aside)
second = grown.run(origins, down)
print("the second after it:        ", first, "then", second)
assert (whole.run(origins, down) >= 0).all()
assert second[0] >= 0 and second[1] == -1
EOF
echo "holds: a mesh added after the first query is not there"
