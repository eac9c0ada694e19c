"""Sweet Home 3D furniture libraries: .sh3f archives of OBJ models with a catalogue.

`PluginFurnitureCatalog.properties` is a Java properties file in latin-1: `name#N`, `category#N`, `tags#N`,
`creator#N`, `model#N` (a member of the archive), `modelRotation#N` (row-major, in the model's frame), and the
library's own `name` and `license`.
"""

import re
from pathlib import Path

from data_prep.failures import Failure
from data_prep.formats.archives import read_member
from data_prep.sources.listings import Listed
from data_prep.sources.naming import group_of_name

CATALOGUE = "PluginFurnitureCatalog.properties"
_MAX_CATALOGUE = 64 << 20
_KEYS = ("id", "name", "category", "tags", "creator", "creationDate", "model", "modelRotation")


def read_library(archive: Path, relative: str) -> tuple[dict[str, Listed], list[Failure]]:
    """Assets of one library by path; `relative` is the archive's own path in the assets folder.

    Entries without a model of their own are failures. Raises AssetError without a readable catalogue.
    """
    text = read_member(archive, CATALOGUE, _MAX_CATALOGUE).decode("latin-1")
    properties = parse_properties(text)
    listed: dict[str, Listed] = {}
    failures = []
    numbers = sorted(
        {int(m[1]) for key in properties if (m := re.fullmatch(r"(?:id|name|model)#(\d{1,9})", key))}
    )
    for number in numbers:
        entry = {key: properties[f"{key}#{number}"] for key in _KEYS if f"{key}#{number}" in properties}
        name = f"{relative}/{entry.get('model', '').lstrip('/')}"
        if not entry.get("model"):
            failures.append(_failure(f"{relative}#{number}", "missing", f"entry {number} names no model"))
        elif name in listed:
            failures.append(_failure(name, "duplicate", f"entry {number} names a model that another one has"))
        else:
            listed[name] = _listed(entry, properties)
    return listed, failures


def _failure(path: str, reason: str, message: str) -> Failure:
    return Failure(path, "sources", reason, f"{CATALOGUE}: {message}", "")


def _listed(entry: dict[str, str], library: dict[str, str]) -> Listed:
    listed = Listed()
    name, category = entry.get("name", "").lower(), entry.get("category", "")
    # Tags name the collection too, which says nothing of the thing.
    tags = [tag.strip().lower() for tag in entry.get("tags", "").split(",")]
    tags = [tag for tag in tags if tag and tag != name and tag not in library.get("name", "").lower()]
    for caption in (name, f"{name}, {category.lower()}", ", ".join([name, *tags])):
        listed.add_caption(caption)
    listed.columns = {"category": category.lower(), "licence": " ".join(library.get("license", "").split())}
    if name:
        listed.columns["group"] = group_of_name(name)
    keys = {"id": "id", "creator": "creator", "creationDate": "created"}
    listed.provenance = {"source": "sweethome3d", "library": library.get("name", "")}
    listed.provenance |= {ours: entry[theirs] for theirs, ours in keys.items() if entry.get(theirs)}
    if "modelRotation" in entry:
        try:
            listed.rotation = [float(value) for value in entry["modelRotation"].split()]
        except ValueError:
            listed.rotation = []
        if len(listed.rotation) != 9:
            listed.warnings.append(f"modelRotation {entry['modelRotation']!r} is no matrix: left out")
            listed.rotation = None
    return listed


def parse_properties(text: str) -> dict[str, str]:
    r"""A Java properties file: `key=value` or `key: value`, `\` escapes and continuations, # comments."""
    joined = re.sub(r"(?<!\\)((?:\\\\)*)\\\r?\n[ \t]*", r"\1", text)
    result = {}
    for line in joined.splitlines():
        line = line.lstrip()
        if not line or line[0] in "#!":
            continue
        match = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL)
        if match and match[1]:
            result[_unescape(match[1])] = _unescape(match[2])
    return result


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}.get(match[2], match[2])

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", one, text)
