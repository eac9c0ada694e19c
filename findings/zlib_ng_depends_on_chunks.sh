#!/usr/bin/env bash
# zlib-ng: the same data gives other bytes by how it is cut into calls, and level 9 may be larger than level 6.
#
# Guess: it is zlib, faster: deflate's output depends on data and level, not on the calls that fed it, so a stream and
# one call agree, and hashes of PNGs, shards and archives can be compared.
# Truth: zlib gives the same bytes each time; zlib-ng doesn't at several levels (1 and 6 here). All of them inflate to
# the same data. Who wants equal bytes feeds equal chunks, best one call; and measures the level, since on noisy
# bytes 9 is larger than 6 and 1 much larger than zlib's.
# Version: zlib-ng 1.1.0 (Python). Source: measured; zlib-ng has deflate strategies of its
# own a level (deflate_quick, deflate_medium), where zlib has three.
# The product compresses each picture in one call of level 6 (shapeloom/shards/members.py); that shards are equal byte
# for byte is tested in tests/data_prep/test_build.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check zlib-ng==1.1.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import zlib
from importlib.metadata import version

import numpy as np
from zlib_ng import zlib_ng

print("zlib-ng", version("zlib-ng"))
data = np.random.default_rng(0).integers(0, 20, 200_000).astype(np.uint8).tobytes()


def whole_and_cut(library, level: int) -> tuple[bytes, bytes]:
    whole, cut = library.compressobj(level), library.compressobj(level)
    pieces = b"".join(cut.compress(data[i : i + 777]) for i in range(0, len(data), 777))
    return whole.compress(data) + whole.flush(), pieces + cut.flush()


differ = {}
for library in (zlib, zlib_ng):
    for level in (1, 6, 9):
        whole, cut = whole_and_cut(library, level)
        differ[library.__name__, level] = whole != cut
        assert library.decompress(whole) == library.decompress(cut) == data
        print(f"{library.__name__:16} level {level}: {len(whole)} bytes at once, {len(cut)} in chunks, "
              f"{'other' if whole != cut else 'the same'} bytes")
assert not any(differ["zlib", level] for level in (1, 6, 9))
assert differ["zlib_ng.zlib_ng", 1] and differ["zlib_ng.zlib_ng", 6]
assert len(whole_and_cut(zlib_ng, 9)[0]) > len(whole_and_cut(zlib_ng, 6)[0])
EOF
echo "holds: zlib-ng's bytes depend on the chunks, zlib's don't"
