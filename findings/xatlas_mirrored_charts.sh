#!/usr/bin/env bash
# xatlas mirrors charts, fix_winding or not: much of a mesh gets texture coordinates that run backwards.
#
# Guess: faces that are all wound alike get charts that are all wound alike, so that baked tangent-space normals, text
# and the sign of a UV triangle's area can be trusted.
# Truth: charts are laid down as they come: on a ball and on a box most of the triangles are mirrored, and
# with `ChartOptions.fix_winding`, which promises consistent winding, both kinds are still there (the ball's are as
# before).
# Colours are unaffected; for tangents take each triangle's own sign, or mirror u of the charts whose sign is negative.
# Version: xatlas 0.0.11. Source: jpcy/xatlas, xatlas.h, `bool fixWinding = false; // Enforce consistent texture
# coordinate winding.`
# The product bakes colours alone (sampling/texture.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check xatlas==0.0.11 numpy==2.4.6 trimesh==5.2.0
venv/bin/python - <<'EOF'
from importlib.metadata import version

import numpy as np
import trimesh
import xatlas

print("xatlas", version("xatlas"))


def signs(mesh: trimesh.Trimesh, fix: bool) -> tuple[int, int]:
    atlas, options = xatlas.Atlas(), xatlas.ChartOptions()
    options.fix_winding = fix
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    atlas.generate(options, xatlas.PackOptions())
    _, faces, uv = atlas.get_mesh(0)
    a, b, c = (uv[faces[:, i]].astype(float) for i in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return int((area > 0).sum()), int((area < 0).sum())


for name, mesh in (("ball", trimesh.creation.icosphere(3)), ("box", trimesh.creation.box((1, 1, 1)))):
    as_it_is, fixed = signs(mesh, False), signs(mesh, True)
    print(f"{name}: (kept, mirrored) triangles {as_it_is}, with fix_winding {fixed}")
    assert min(as_it_is) > 0.1 * sum(as_it_is)
    assert min(fixed) > 0.1 * sum(fixed)
EOF
echo "holds: charts of one mesh are wound both ways, with fix_winding too"
