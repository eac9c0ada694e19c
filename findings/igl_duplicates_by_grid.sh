#!/usr/bin/env bash
# libigl's remove_duplicate_vertices rounds to a grid: epsilon is no distance within which vertices are joined.
#
# Guess: with epsilon = 1e-3 any two vertices nearer than 1e-3 become one and farther ones stay two.
# Truth: vertices are rounded to multiples of epsilon and joined if they round alike. Two that are 2e-7 apart on either
# side of a rounding border stay two, and two that are 0.8e-3 apart in one cell become one. Seams welded that way keep
# cracks at random places, whatever epsilon is. Weld by a tree of neighbours if all must close.
# Version: libigl 2.6.3. Source: include/igl/remove_duplicate_vertices.h, "uniqueness tolerance (significant
# digit)"; that it rounds is measured.
# The product's own weld (data_prep/geometry/sdf.py) rounds too, and says so: its step is 1e-5 of a box 2 wide, far above float
# noise at a seam, and what stays open counts as a sheet, with a thickness.
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


def left(first: float, second: float) -> int:
    places = np.array([[first, 0, 0], [second, 0, 0]])
    number = len(igl.remove_duplicate_vertices(places, 1e-3)[0])
    print(f"x = {first:g} and {second:g}, {second - first:.1g} apart, epsilon 0.001: {number} left")
    return number


assert left(0.4999e-3, 0.5001e-3) == 2
assert left(-0.4e-3, 0.4e-3) == 1
EOF
echo "holds: near ones stay two, farther ones become one"
