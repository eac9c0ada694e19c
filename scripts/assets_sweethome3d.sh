#!/usr/bin/env bash
# Fetches the Debian package sweethome3d-furniture (120 MB) and unpacks its libraries into FOLDER, without root.
# usage: assets_sweethome3d.sh FOLDER
set -euo pipefail
folder=$1
if compgen -G "$folder/*.sh3f" > /dev/null; then
    echo "$folder holds the libraries already."
    exit 0
fi
if ! command -v apt-get > /dev/null || ! command -v dpkg > /dev/null; then
    cat >&2 <<'HELP'
error: this machine has no apt-get and dpkg. Elsewhere, get the same five libraries in one of these ways:
  - download sweethome3d-furniture_*_all.deb from https://packages.debian.org/stable/sweethome3d-furniture and
    unpack it: `ar x *.deb && tar xf data.tar.xz`; the .sh3f files are in usr/share/sweethome3d/furniture
  - download the 3D model libraries (.sh3f) from https://www.sweethome3d.com/freeModels.jsp
Put the .sh3f files into one folder and prepare that: make data-prep ASSETS=FOLDER
HELP
    exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
echo "Downloading sweethome3d-furniture (120 MB) ..."
(cd "$work" && apt-get -qq download sweethome3d-furniture) || {
    echo "error: apt-get could not download it. Is there a network, and does apt know Debian's main archive?" >&2
    exit 1
}
dpkg -x "$work"/sweethome3d-furniture_*.deb "$work/unpacked"
mkdir -p "$folder"
# The libraries come last, since they tell that the folder is complete.
cp "$work/unpacked/usr/share/doc/sweethome3d-furniture/copyright" "$folder/COPYRIGHT"
mv "$work"/unpacked/usr/share/sweethome3d/furniture/*.sh3f "$folder/"
echo "$(ls "$folder"/*.sh3f | wc -l) libraries are in $folder. Prepare them: make data-prep ASSETS=$folder"
