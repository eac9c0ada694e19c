#!/usr/bin/env bash
# Makes the virtual environment VENV with the tested versions, then STAMP, which says that it is complete.
# usage: setup.sh PYTHON VENV STAMP
set -euo pipefail
python=$1 venv=$2 stamp=$3
start=$(date +%s)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Shapeloom needs Python 3.11 or newer, but $("$python" --version) was found. Name another: make setup PYTHON=python3.12" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

echo "Installing into $venv (about 2 minutes and 7 GB the first time) ..."
"${pip[@]}" install --quiet --upgrade "pip>=25"
"${pip[@]}" install --progress-bar off --constraint constraints.txt --editable ".[dev,codecs]" | grep -E "^(Collecting|Downloading|Installing)" || true
"$venv/bin/python" -c "import torch, deepspeed, open_clip, trimesh" 2>/dev/null || {
    echo "error: the packages did not install; run again to see: ${pip[*]} install -c constraints.txt -e '.[dev,codecs]'" >&2
    exit 1
}
# pytorch3d is used where its wheel exists and done without elsewhere.
"${pip[@]}" install --quiet --no-deps --require-hashes --only-binary :all: --requirement requirements-pytorch3d.txt 2>/dev/null ||
    echo "pytorch3d has no wheel for this machine; going on without it."

# Views are drawn by compiled code where there is a C++ compiler, and several times slower elsewhere.
"$venv/bin/python" -c "from data_prep.render.zbuffer import require; require()" 2>/dev/null ||
    echo "No C++ compiler was found (g++ or clang++): views will be drawn by ray casting, several times slower."

rm -f "$venv"/.stamp-*
echo $(($(date +%s) - start)) > "$venv/.setup_seconds"
touch "$stamp"
