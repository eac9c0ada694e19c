#!/usr/bin/env bash
# OpenUSD: a bounding box is what the file claims, not where the points are.
#
# Guess: BBoxCache.ComputeWorldBound looks at the points, so normalising assets by it is safe.
# Truth: where a prim has an authored `extent`, it is taken as it is, right or not, and tools that move points or
# deform meshes often leave it behind. Only a prim without one gets its box from its points. Compute it with
# UsdGeom.PointBased.ComputeExtent(points) when it matters.
# Version: usd-core 26.11. Source: OpenUSD, the documentation of UsdGeomBBoxCache and UsdGeomBoundable (extent).
# The product writes `extent` from the points themselves (sampling/usd.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check usd-core==26.11
venv/bin/python - <<'EOF'
from importlib.metadata import version

from pxr import Usd, UsdGeom

print("usd-core", version("usd-core"))
stage = Usd.Stage.CreateInMemory()
mesh = UsdGeom.Mesh.Define(stage, "/mesh")
mesh.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (0, 1, 0)])
mesh.CreateFaceVertexCountsAttr([3])
mesh.CreateFaceVertexIndicesAttr([0, 1, 2])


def size() -> list[float]:
    cache = UsdGeom.BBoxCache(Usd.TimeCode.Default(), [UsdGeom.Tokens.default_])
    return list(cache.ComputeWorldBound(mesh.GetPrim()).ComputeAlignedRange().GetSize())


plain = size()
mesh.CreateExtentAttr([(0, 0, 0), (9, 9, 9)])
claimed = size()
computed = UsdGeom.PointBased.ComputeExtent(mesh.GetPointsAttr().Get())
print("from the points:", plain, " with a stale extent:", claimed, " ComputeExtent:", computed)
assert plain == [1, 1, 0] and claimed == [9, 9, 9] and list(computed[1]) == [1, 1, 0]
EOF
echo "holds: a stale extent is the bounding box"
