#!/usr/bin/env bash
# OpenUSD: opening a file that has changed on disk gives its old content while any stage of it is alive.
#
# Guess: Usd.Stage.Open(path) reads the file that is there now.
# Truth: layers live in a registry by their path. As long as one stage anywhere in the process still holds the layer,
# opening the path again gives the layer as it was first read: a viewer, or a test that writes, looks and writes again,
# sees the old mesh. Layer.Reload() reads it anew; so does opening once the last holder is gone.
# Version: usd-core 26.11. Source: OpenUSD, the documentation of SdfLayer::FindOrOpen and of its layer registry.
# The product writes each package once, in a temporary folder of its own (sampling/usd.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check usd-core==26.11
venv/bin/python - <<'EOF'
from importlib.metadata import version
from pathlib import Path

from pxr import Usd, UsdGeom

print("usd-core", version("usd-core"))
path = Path("mesh.usda")


def write(size: int) -> None:
    path.write_text(
        f"#usda 1.0\ndef Mesh \"m\"\n{{\n    point3f[] points = [(0, 0, 0), ({size}, 0, 0), (0, 1, 0)]\n}}\n"
    )


def seen(stage: Usd.Stage) -> float:
    return UsdGeom.Mesh(stage.GetPrimAtPath("/m")).GetPointsAttr().Get()[1][0]


write(1)
holder = Usd.Stage.Open(str(path))
before = seen(holder)
write(5)
again = seen(Usd.Stage.Open(str(path)))
holder.GetRootLayer().Reload(True)
reloaded = seen(Usd.Stage.Open(str(path)))
print(f"written 1, then 5: seen {before:g}, reopened {again:g}, after Reload {reloaded:g}")
assert (before, again, reloaded) == (1, 1, 5)
EOF
echo "holds: a reopened stage shows the old content"
