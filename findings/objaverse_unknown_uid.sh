#!/usr/bin/env bash
# objaverse: one unknown uid stops load_annotations with a bare KeyError, where load_objects skips it.
#
# Guess: both take a list of uids alike; Cap3D's CSV, which is said to caption Objaverse, can be passed to either.
# Truth: load_objects warns and leaves unknown uids out; load_annotations looks each one up and raises KeyError with
# nothing but the uid, so a list of half a million falls over one name. Cap3D's captions cover Objaverse-XL too, whose
# names are no uids of 1.0. Intersect with load_uids() first.
# Version: objaverse 0.1.7 (offline, with a cache made here). Source: objaverse/__init__.py, load_annotations
# (`object_paths[uid]`) and load_objects (warnings.warn ... "Skipping it").
# The product asks load_uids() first and lists the others as failures of their own (data_prep/sources/objaverse_cache.py;
# tests/data_prep/sources/test_archives.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps objaverse==0.1.7 tqdm==4.70.1
venv/bin/python - <<'EOF'
import gzip
import json
import os
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ["HOME"] = os.getcwd()  # the cache lies in the home folder
import objaverse

print("objaverse", version("objaverse"))
root = Path(".objaverse/hf-objaverse-v1")
(root / "metadata").mkdir(parents=True)
(root / "glbs/000-000").mkdir(parents=True)
uid, path = "a" * 32, f"glbs/000-000/{'a' * 32}.glb"
(root / path).write_bytes(b"glTF")
(root / "object-paths.json.gz").write_bytes(gzip.compress(json.dumps({uid: path}).encode()))
(root / "metadata/000-000.json.gz").write_bytes(gzip.compress(json.dumps({uid: {"name": "chair"}}).encode()))

wanted = [uid, "b" * 64]  # as an Objaverse-XL object is named
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    objects = objaverse.load_objects(wanted)
print("load_objects:", len(objects), "of 2,", [str(each.message)[:45] for each in told])
try:
    annotations = objaverse.load_annotations(wanted)
except KeyError as error:
    annotations = error
print("load_annotations:", repr(annotations)[:30])
assert list(objects) == [uid] and len(told) == 1
assert isinstance(annotations, KeyError)
EOF
echo "holds: load_objects skips an unknown uid, load_annotations raises KeyError"
