"""The elements of a PLY file as columns: header, text and binary bodies, lists of any lengths."""

import re
import struct
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.faces import numbers, say_lost

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8", "float32": "f4", "float64": "f8",
}  # fmt: skip
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class Ragged:
    """A column of lists."""

    values: ndarray
    """Of all rows, one after another."""
    counts: Int[ndarray, " rows"]
    """How many of each row."""


@dataclass
class Element:
    """Columns by the names of their properties."""

    rows: int
    numbers: dict[str, ndarray] = field(default_factory=dict)
    lists: dict[str, Ragged] = field(default_factory=dict)

    def put(self, prop: "_Property", values: ndarray, counts: Int[ndarray, " rows"]) -> None:
        """Adds a column: all rows' values, one after another, and how many of each."""
        if prop.count_dtype is None:
            self.numbers[prop.name] = values
        else:
            self.lists[prop.name] = Ragged(values, counts)


@dataclass(frozen=True)
class _Property:
    name: str
    dtype: np.dtype
    count_dtype: np.dtype | None
    """Of a list's length; None for a single number."""


def damaged(what: str) -> AssetError:
    """An AssetError that says what of the file can't be."""
    return AssetError("unreadable", what)


def read_ply(data: bytes, warnings: list[str]) -> tuple[dict[str, Element], list[str]]:
    """A file's elements by name, and the names of its textures in order.

    Raises AssetError for a damaged header, and for a body that is cut short before its faces.
    """
    header = re.match(rb"\s*ply\b.*?^[ \t]*end_header[ \t]*", data, re.DOTALL | re.MULTILINE)
    lines = re.split(r"\r\n|\n|\r", header[0].decode("latin-1")) if header else []
    order: str | None = None
    elements: list[tuple[str, int, list[_Property]]] = []
    textures: list[str] = []
    for words in (line.split() for line in lines):
        match words:
            case ["format", name, *_]:
                order = _FORMATS.get(name)
            case ["element", name, count]:
                elements.append((name, _count(name, count, len(data)), []))
            case ["property", "list", count_type, value_type, name] if elements:
                elements[-1][2].append(_property(name, value_type, order, count_type))
            case ["property", value_type, name] if elements:
                elements[-1][2].append(_property(name, value_type, order))
            case ["comment", "TextureFile", *name]:
                textures.append(" ".join(name))
    if header is None or order is None or not elements:
        raise damaged("not a PLY file: its header is damaged or cut short")
    body = data[header.end() :]
    body = body[2:] if body.startswith(b"\r\n") else body[1:]
    total = sum(count for _, count, _ in elements)
    read = _Binary(body, order).element if order else _Text(body, total).element
    found = {}
    for name, count, properties in elements:
        found[name] = read(count, properties)
        lost = count - found[name].rows
        if lost and (name != "face" or lost == count):
            raise damaged(f"cut short: {lost} of its {count} {name} elements aren't there")
        say_lost(warnings, lost, count, "the file is cut short")
    return found, textures


def _count(name: str, count: str, size: int) -> int:
    # A vertex or face takes a byte at the least.
    if not count.isdecimal() or len(count) > 12 or int(count) > size:
        raise damaged(f"claims {count} {name} elements in {size} bytes")
    return int(count)


def _property(name: str, value: str, order: str | None, count: str | None = None) -> _Property:
    unknown = [kind for kind in (value, count) if kind is not None and kind not in _TYPES]
    if unknown:
        raise damaged(f"property {name} is of the unknown type {', '.join(unknown)}")
    dtypes = [None if kind is None else np.dtype((order or "<") + _TYPES[kind]) for kind in (value, count)]
    assert dtypes[0] is not None
    return _Property(name, dtypes[0], dtypes[1])


class _Text:
    """A body of numbers between blanks: a row a line if there are as many of both, else all in one."""

    def __init__(self, body: bytes, num_rows: int) -> None:
        self.values, self.at, self.line = numbers(body), 0, 0
        sizes = [len(line.split()) for line in body.splitlines() if line.strip()]
        # Some writers add numbers to their rows that the header doesn't tell of.
        self.lines = np.cumsum([0, *sizes]).tolist() if len(sizes) == num_rows else None

    def element(self, count: int, properties: list[_Property]) -> Element:
        """The next element's columns, of the types that the header says; fewer rows if it is cut short."""
        if any(prop.count_dtype for prop in properties) or self.lines is not None:
            starts = self._ragged(count, properties)
        else:
            rows = min(count, (len(self.values) - self.at) // max(len(properties), 1))
            first = self.at + np.arange(rows) * len(properties)
            starts = [(first + column, np.ones(rows, np.int64)) for column in range(len(properties))]
            self.at += rows * len(properties)
        columns = Element(len(starts[0][0]) if starts else 0)
        for prop, (at, lengths) in zip(properties, starts, strict=True):
            picked = self.values[_runs(at, lengths)]
            columns.put(prop, picked if prop.dtype.kind == "f" else _as_integers(picked, prop), lengths)
        self.line += count
        return columns

    def _ragged(self, count: int, properties: list[_Property]) -> list[tuple[ndarray, ndarray]]:
        """Where each property of each row starts, and how many numbers it has."""
        values = self.values.tolist()
        places, lengths = _empty(properties), _empty(properties)
        for row in range(count):
            at = self.at if self.lines is None else self.lines[self.line + row]
            end = len(values) if self.lines is None else self.lines[self.line + row + 1]
            found = []
            for prop in properties:
                length = 1
                if prop.count_dtype is not None and at < end:
                    length, at = _length(values[at], prop), at + 1
                found.append((at, length))
                at += length
            if at > end:
                break
            self.at = at
            for column, (place, length) in enumerate(found):
                places[column].append(place)
                lengths[column].append(length)
        return _as_arrays(places, lengths)


def _empty(properties: list[_Property]) -> list[list[int]]:
    return [[] for _ in properties]


def _as_arrays(places: list[list[int]], lengths: list[list[int]]) -> list[tuple[ndarray, ndarray]]:
    return [(np.array(a, np.int64), np.array(b, np.int64)) for a, b in zip(places, lengths, strict=True)]


def _length(value: float, prop: _Property) -> int:
    if not value >= 0:
        raise damaged(f"a list of {prop.name} has {value:g} entries")
    return int(value)


def _as_integers(values: ndarray, prop: _Property) -> ndarray:
    limits = np.iinfo(prop.dtype)
    return np.clip(np.nan_to_num(values), limits.min, limits.max).astype(prop.dtype.newbyteorder("="))


class _Binary:
    """A body of packed numbers."""

    def __init__(self, body: bytes, order: str) -> None:
        self.body, self.order, self.at = body, order, 0

    def element(self, count: int, properties: list[_Property]) -> Element:
        """The next element's columns; fewer rows if it is cut short."""
        return self._uniform(count, properties) or self._ragged(count, properties)

    def _uniform(self, count: int, properties: list[_Property]) -> Element | None:
        """All rows at once if their lists have the first row's lengths; None if not, or if cut short."""
        fields: list[tuple[str, np.dtype, tuple[int, ...]]] = []
        at = self.at
        for number, prop in enumerate(properties):
            length = 1
            if prop.count_dtype is not None:
                size = prop.count_dtype.itemsize
                if at + size > len(self.body):
                    return None
                length = int(np.frombuffer(self.body, prop.count_dtype, 1, at)[0])
                fields.append((f"n{number}", prop.count_dtype, ()))
                at += size
            at += length * prop.dtype.itemsize
            if length < 0 or at > len(self.body):
                return None
            fields.append((f"v{number}", prop.dtype, (length,)))
        row = np.dtype(fields)
        if self.at + count * row.itemsize > len(self.body):
            return None
        rows = np.frombuffer(self.body, row, count, self.at)
        columns = Element(count)
        for number, prop in enumerate(properties):
            values = _native(rows[f"v{number}"])
            counts = np.full(count, values.shape[1])
            if prop.count_dtype is not None and (rows[f"n{number}"] != counts).any():
                return None
            columns.put(prop, values.reshape(-1), counts)
        self.at += count * row.itemsize
        return columns

    def _ragged(self, count: int, properties: list[_Property]) -> Element:
        """Row after row."""
        places, lengths = _empty(properties), _empty(properties)
        readers = [
            struct.Struct(self.order + prop.count_dtype.char) if prop.count_dtype else None
            for prop in properties
        ]
        rows, size = 0, len(self.body)
        for _ in range(count):
            at, found = self.at, []
            for prop, reader in zip(properties, readers, strict=True):
                length = 1
                if reader is not None and at + reader.size <= size:
                    length = _length(float(reader.unpack_from(self.body, at)[0]), prop)
                    at += reader.size
                found.append((at, length))
                at += length * prop.dtype.itemsize
            if at > size:
                break
            self.at, rows = at, rows + 1
            for column, (place, length) in enumerate(found):
                places[column].append(place)
                lengths[column].append(length)
        raw, columns = np.frombuffer(self.body, np.uint8), Element(rows)
        for prop, (at_bytes, sizes) in zip(properties, _as_arrays(places, lengths), strict=True):
            picked = raw[_runs(at_bytes, sizes * prop.dtype.itemsize)]
            columns.put(prop, _native(picked.view(prop.dtype)), sizes)
        return columns


def _runs(starts: Int[ndarray, " rows"], lengths: Int[ndarray, " rows"]) -> Int[ndarray, " entries"]:
    """Numbers from each start on, as many as its length."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _native(values: ndarray) -> ndarray:
    return values.astype(values.dtype.newbyteorder("="))
