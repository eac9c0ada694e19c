"""A COLLADA document's tree: elements by their names without prefixes, references, arrays of numbers.

Versions 1.4 and 1.5. Documents that declare entities are refused, since none needs them. Source: "COLLADA -
Digital Asset Schema Release 1.4.1, Specification" (Khronos), chapters 4 and 5.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from urllib.parse import unquote

from jaxtyping import Float
from lxml import etree
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.faces import as_indices, numbers
from data_prep.formats.files import Files

Node = Any
"""An lxml element, whose package has no types."""


@dataclass
class Document:
    """One file, parsed; make it with `open_collada`."""

    root: Node
    files: Files
    warnings: list[str]
    by_id: dict[str, Node] = field(default_factory=dict)

    def warn(self, message: str) -> None:
        """Adds a line to the asset's warnings, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    @property
    def up_axis(self) -> Literal["x", "y", "z"]:
        """The axis that the document says is up: x, y or z; y where it says nothing."""
        found = re.fullmatch(r"\s*([XYZ])_UP\s*", self.root.findtext("asset/up_axis") or "")
        return cast(Literal["x", "y", "z"], found[1].lower()) if found else "y"

    def target(self, url: str | None, kind: str) -> Node | None:
        """The element of this kind that `#id` names; None, with a warning, if it isn't there."""
        found = self.by_id.get(unquote((url or "").strip().removeprefix("#")))
        if found is None or found.tag != kind:
            self.warn(f"missing {kind} {url!r}")
            return None
        return found

    def rows(self, url: str | None) -> Float[ndarray, "rows columns"]:
        """The numbers of a <source>, as its accessor arranges them; parameters without a name are skipped.

        Raises AssetError for one that is missing or damaged.
        """
        source = self.by_id.get(unquote((url or "").strip().removeprefix("#")))
        accessor = None if source is None else source.find("technique_common/accessor")
        array = None if source is None else source.find("float_array")
        if accessor is None or array is None:
            raise AssetError("unreadable", f"its source {url!r} is missing or damaged")
        stride, count = _integer(accessor, "stride", 1), _integer(accessor, "count", 0)
        offset = _integer(accessor, "offset", 0)
        values = floats(array.text)
        if stride < 1 or offset < 0 or count < 0 or offset + count * stride > len(values):
            raise AssetError(
                "unreadable",
                f"cut short: source {url!r} has {len(values)} of {offset + count * stride} numbers",
            )
        table = values[offset : offset + count * stride].reshape(count, stride)
        params = accessor.findall("param")
        if len(params) != stride:  # a matrix has one for all of its numbers
            return table
        named = [number for number, param in enumerate(params) if param.get("name")]
        return table[:, named] if named else table


def open_collada(files: Files, warnings: list[str]) -> Document:
    """Parses the asset. Raises AssetError if it is no COLLADA document.

    warnings: gets a line for whatever is left out.
    """
    data = files.own()
    # In UTF-16 every second byte is zero.
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", data.replace(b"\0", b""), re.IGNORECASE):
        raise AssetError("unsupported", "declares XML entities, which no COLLADA file needs")
    root = _parse(data, warnings)
    document = Document(root, files, warnings)
    for element in root.iter():
        if isinstance(element.tag, str):
            # Without its namespace, and without a prefix that stands for none.
            with suppress(ValueError):  # damaged names stay
                element.tag = element.tag.rpartition("}")[2].rpartition(":")[2]
            if "id" in element.attrib:
                document.by_id.setdefault(element.get("id"), element)
    if root.tag != "COLLADA":
        raise AssetError("unreadable", f"not a COLLADA document: its root is {root.tag}")
    return document


def _parse(data: bytes, warnings: list[str]) -> Node:
    options = {
        "resolve_entities": False, "no_network": True, "huge_tree": True,
        "remove_comments": True, "remove_pis": True,
    }  # fmt: skip
    try:
        return etree.fromstring(data, etree.XMLParser(**options))
    except etree.XMLSyntaxError as error:
        # Wrong encodings are common, and the rest can be read; of a file that was cut, half an object.
        root = etree.fromstring(data, etree.XMLParser(**options, recover=True)) if data.strip() else None
        if root is None or b"COLLADA>" not in data.replace(b"\0", b"")[-200:]:
            raise AssetError("unreadable", f"its XML is damaged or cut short: {error}") from error
        warnings.append(f"its XML is damaged: {error}")
        return root


def _integer(element: Node, name: str, default: int) -> int:
    text = element.get(name, str(default)).strip()
    return int(text) if re.fullmatch(r"\d{1,12}", text) else -1


def floats(text: str | None) -> Float[ndarray, " numbers"]:
    """Numbers between blanks, also with decimal commas, as some exporters write them in some countries."""
    return numbers((text or "").replace(",", ".").encode())


def integers(element: Node | None) -> ndarray:
    """The integers of an element's text, -1 for what is none; none if there is no element."""
    return as_indices(numbers((("" if element is None else element.text) or "").encode()))


def claimed(element: Node) -> int | None:
    """An element's `count`, None if it has none."""
    count = _integer(element, "count", -1)
    return count if count >= 0 else None


def inputs(element: Node | None) -> Iterator[tuple[str, int, int, str | None]]:
    """Semantic, set, offset and source of each <input>; a set is 0 where it isn't said."""
    for item in () if element is None else element.findall("input"):
        yield (
            item.get("semantic", ""),
            max(_integer(item, "set", 0), 0),
            max(_integer(item, "offset", 0), 0),
            item.get("source"),
        )
