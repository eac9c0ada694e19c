#!/usr/bin/env bash
# safetensors' NumPy front end writes a transposed array scrambled, without a word.
#
# Guess: as safetensors.torch does, it refuses what isn't contiguous, or it copies: points.T, a channel axis moved to
# the front and a slice of columns survive.
# Truth: the array's memory is written as it lies, under the shape that was asked for: save(points.T) loads as
# other numbers of the right shape and type. Call numpy.ascontiguousarray first. (The docstring says that tensors "need
# to be contiguous and dense"; nothing checks it.)
# Version: safetensors 0.8.0. Source: bindings/python/py_src/safetensors/numpy.py.
# The product saves by safetensors.torch, which raises, and makes every tensor contiguous (shapeloom/checkpoint.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'EOF'
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

print("safetensors", version("safetensors"))
points = np.arange(6, dtype=np.float32).reshape(2, 3)
back = load(save({"points": points.T}))["points"]
whole = load(save({"points": np.ascontiguousarray(points.T)}))["points"]
print("saved", points.T.tolist(), "loaded", back.tolist(), "made contiguous first", whole.tolist())
assert back.shape == points.T.shape and not np.array_equal(back, points.T)
assert np.array_equal(whole, points.T)
EOF
echo "holds: a transposed array is loaded as other numbers"
