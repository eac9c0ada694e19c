#!/usr/bin/env bash
# fast-simplification in large units: the target is silently not reached.
#
# Guess: a target_count of 500 gives about 500 faces whatever the unit, since simplification knows no unit.
# Truth: edges collapse only while their squared error is below a threshold that grows over 100 passes in absolute
# units, so the same sphere in units of 10,000 (a building in millimetres) keeps 704 faces, in units of 100,000 all
# 5,120, without an error or a warning. In units near 1 it is as asked. Scale to about [-1, 1] first, and back.
# Version: fast-simplification 0.2.0. Source: its Simplify.h, `threshold = 0.000000001*pow(iteration+3, agressiveness)`.
# The product simplifies within its box [-1, 1]^3; so nothing of it is lost there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check fast-simplification==0.2.0 numpy==2.4.6 trimesh==5.2.0
venv/bin/python - <<'EOF'
from importlib.metadata import version

import fast_simplification
import numpy as np
import trimesh

print("fast-simplification", version("fast-simplification"))
ball = trimesh.creation.icosphere(4)
left = {}
for scale in (1.0, 1e4, 1e5):
    vertices = (ball.vertices * scale).astype(np.float32)
    _, faces = fast_simplification.simplify(vertices, ball.faces.astype(np.int32), target_count=500)
    left[scale] = len(faces)
    print(f"radius {scale:g}: {len(ball.faces)} faces, 500 asked for, {len(faces)} left")
assert left[1.0] == 500
assert left[1e4] > 600
assert left[1e5] == len(ball.faces)
EOF
echo "holds: the same ball in larger units is simplified less, or not at all"
