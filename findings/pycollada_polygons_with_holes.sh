#!/usr/bin/env bash
# pycollada drops polygons with holes without an error: walls with windows are missing.
#
# Guess: a polygon with a hole (<ph> with <p> and <h>, plain COLLADA 1.4) is read, or at least reported in
# `Collada.errors`, as other things that can't be read are.
# Truth: only the <p> children of <polygons> are looked at. What is in <ph> is gone: no exception, no entry in
# `errors`, a primitive of no polygons; and trimesh, which reads DAE by it, gives a scene without the part.
# Version: pycollada 0.9.3 (and trimesh 5.2.0). Source: collada/polygons.py, Polygons.load:
# `node.findall(collada.tag('p'))`.
# The product needs polygons with holes: its own reader (data_prep/formats/collada.py) has them, as
# tests/data_prep/formats/test_collada.py::test_polygons_keep_notches_and_holes shows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pycollada==0.9.3 trimesh==5.2.0 numpy==2.4.6 lxml==6.1.3
venv/bin/python - <<'EOF'
import io
from importlib.metadata import version

import collada
import trimesh

print("pycollada", version("pycollada"), "trimesh", version("trimesh"))
NUMBERS = "0 0 0 4 0 0 4 4 0 0 4 0 1 1 0 1 3 0 3 3 0 3 1 0"
WALL = "<p>0 1 2 3</p>"
WINDOW = "<ph><p>0 1 2 3</p><h>4 5 6 7</h></ph>"


def document(polygon: str) -> io.BytesIO:
    return io.BytesIO(f"""<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><created>2020-01-01T00:00:00Z</created><modified>2020-01-01T00:00:00Z</modified></asset>
<library_geometries><geometry id="g"><mesh>
<source id="s"><float_array id="a" count="24">{NUMBERS}</float_array><technique_common>
<accessor source="#a" count="8" stride="3"><param name="X" type="float"/><param name="Y" type="float"/>
<param name="Z" type="float"/></accessor></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#s"/></vertices>
<polygons count="1"><input semantic="VERTEX" source="#v" offset="0"/>{polygon}</polygons>
</mesh></geometry></library_geometries>
<library_visual_scenes><visual_scene id="w"><node><instance_geometry url="#g"/></node></visual_scene>
</library_visual_scenes><scene><instance_visual_scene url="#w"/></scene></COLLADA>""".encode())


found = {}
for name, polygon in (("wall", WALL), ("wall with a window", WINDOW)):
    read = collada.Collada(document(polygon))
    polygons = sum(len(primitive) for primitive in read.geometries[0].primitives)
    faces = sum(len(g.faces) for g in trimesh.load_scene(document(polygon), file_type="dae").geometry.values())
    found[name] = polygons, len(read.errors), faces
    print(f"{name}: {polygons} polygons, {len(read.errors)} errors; trimesh: {faces} faces")
assert found == {"wall": (1, 0, 2), "wall with a window": (0, 0, 0)}
EOF
echo "holds: a polygon with a hole is left out in silence"
