#!/usr/bin/env bash
# libigl's signed_distance with bounds gives NaN outside of them, not the bound.
#
# Guess: lower_bound and upper_bound truncate, as in a TSDF: beyond 0.1 the answer is 0.1.
# Truth: where the distance is outside of the bounds it isn't computed at all, and S is NaN. A mean, a loss or an
# isosurface over it is NaN; `np.clip` doesn't mend it. The other results there (face, closest point) mean nothing.
# Version: libigl 2.6.3 (measured). Source: include/igl/signed_distance.h and .cpp, of which the bounds are arguments.
# The product computes unbounded distances (data_prep/geometry/sdf.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check libigl==2.6.3 numpy==2.4.6
venv/bin/python - <<'EOF'
from importlib.metadata import version

import igl
import numpy as np

print("libigl", version("libigl"))
vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
points = np.array([[0.2, 0.2, -0.05], [0.2, 0.2, -0.5], [3, 3, 3.0]])
free = igl.signed_distance(points, vertices, faces)[0]
bounded = igl.signed_distance(points, vertices, faces, lower_bound=-0.1, upper_bound=0.1)[0]
print("distances:", free.round(3), " with bounds of 0.1:", bounded)
assert np.isfinite(free).all() and np.isfinite(bounded[0])
assert np.isnan(bounded[1:]).all() and np.isnan(np.clip(bounded, -0.1, 0.1)[1:]).all()
EOF
echo "holds: beyond its bounds a distance is NaN"
