#!/usr/bin/env bash
# fpsample: where points coincide, one number is given again and again.
#
# Guess: n numbers are n different points, since n_samples <= n_pts is asserted, so that they can index a subset, a mask
# or a table of labels.
# Truth: once every distinct place is taken, all further numbers are one and the same, though points are left: 100
# places ten times each give 100 numbers, however many are asked for. Count distinct numbers where they must be.
# Version: fpsample 1.0.2 (measured). Source: its README doesn't tell of it.
# Shapeloom went with it until 2026-11-29 and has its own order now (data_prep/geometry/farthest.py): every number once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check fpsample==1.0.2 numpy==2.4.6
venv/bin/python - <<'PY'
from importlib.metadata import version

import fpsample
import numpy as np

print("fpsample", version("fpsample"))
points = np.random.default_rng(0).random((1000, 3), dtype=np.float32)
doubled = np.repeat(points[:100], 10, axis=0)
samplers = {
    "fps_sampling": fpsample.fps_sampling,
    "fps_npdu_kdtree_sampling": fpsample.fps_npdu_kdtree_sampling,
    "bucket_fps_kdtree_sampling": fpsample.bucket_fps_kdtree_sampling,
    "bucket_fps_kdline_sampling": lambda *a, **k: fpsample.bucket_fps_kdline_sampling(*a, h=5, **k),
}
for name, sample in samplers.items():
    whole, few = (len(set(sample(p, 500, start_idx=0).tolist())) for p in (points, doubled))
    print(f"{name}: 500 asked for, distinct {whole}; of 100 places ten times each {few}")
    assert whole == 500 and few == 100
PY
echo "holds: numbers repeat once all places are taken"
