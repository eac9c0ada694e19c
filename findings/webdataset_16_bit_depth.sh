#!/usr/bin/env bash
# webdataset decodes a 16-bit depth map to 8 bits that are nearly all white.
#
# Guess: decode("l8") or decode("rgb8") scales 16 bits down to 8, or refuses; decode("l") gives fractions of 65,535.
# Truth: Pillow's conversion clips: any depth of 256 or more is 255. TarWriter writes uint16 pictures as 16-bit PNG
# without complaint, so a depth map goes in whole and comes out as a mask, in every image mode that decode has. Store
# depth as .npy, or decode the PNG's bytes yourself.
# Version: webdataset 1.0.2 with Pillow 12.3.0. Source: webdataset/autodecode.py, ImageHandler (img.convert).
# The product stores depth as .npy members and decodes pictures itself (shapeloom/shards/members.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6 pillow==12.3.0
venv/bin/python - <<'EOF'
import io
import tarfile
from importlib.metadata import version

import numpy as np
import webdataset as wds
from PIL import Image

print("webdataset", version("webdataset"), "Pillow", version("pillow"))
depth = np.array([[0, 100, 256, 1000, 30000, 65535]], np.uint16)
with wds.TarWriter("depth.tar") as writer:
    writer.write({"__key__": "asset", "png": depth})
with tarfile.open("depth.tar") as tar:
    stored = np.asarray(Image.open(io.BytesIO(tar.extractfile("asset.png").read())))
print("stored:", stored.tolist())
assert np.array_equal(stored, depth)
for mode in ("l8", "rgb8", "l"):
    (sample,) = wds.WebDataset("depth.tar", shardshuffle=False).decode(mode)
    seen = sample["png"].reshape(6, -1)[:, 0]
    print(f"decode({mode!r}):", seen.tolist())
    assert (seen[2:] == seen.max()).all() and seen[1] < seen[2]
EOF
echo "holds: depths of 256 and more are all the same"
