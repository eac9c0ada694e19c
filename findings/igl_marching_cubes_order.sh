#!/usr/bin/env bash
# libigl's marching_cubes takes a grid in NumPy's own order without a word and turns the surface inside out.
#
# Guess: it is given every corner's position, so the order in which corners are listed doesn't matter, or a wrong one
# gives a visibly torn mesh.
# Truth: corners must come x first (S[x + y nx + z nx ny]). A NumPy grid of indexing="ij" raveled as usual lists z
# first: for a cubic grid the result has the right shape, size and place and is closed, but its faces point inwards
# (negative volume), since the cubes' corners are mirrored. Normals, signs and culling are then wrong.
# Version: libigl 2.6.3. Source: include/igl/marching_cubes.h, "S(x + y*xres + z*xres*yres) for corner (x,y,z)".
# The product has its own isosurface (shapeloom/rendering/isosurface.py), whose tests check the volume's sign.
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
n = 24
axis = np.linspace(-1, 1, n)
grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def volume(places: np.ndarray) -> float:
    distance = np.linalg.norm(places * [1, 2, 3], axis=1) - 0.8  # negative inside
    vertices, faces, *_ = igl.marching_cubes(distance, places, n, n, n, 0.0)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    print("  extent", np.ptp(vertices, axis=0).round(2), "volume", round((a * np.cross(b, c)).sum() / 6, 3))
    return float((a * np.cross(b, c)).sum() / 6)


print("z first, as NumPy ravels:")
numpy_order = volume(np.ascontiguousarray(grid.reshape(-1, 3)))
print("x first:")
x_first = volume(np.ascontiguousarray(grid.transpose(2, 1, 0, 3).reshape(-1, 3)))
assert numpy_order < 0 < x_first
assert abs(numpy_order + x_first) < 0.01 * x_first
EOF
echo "holds: NumPy's order gives the same surface inside out"
