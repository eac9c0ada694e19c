"""The elements of a PLY file as columns: header, text and binary bodies, lists of any lengths."""

import re
import struct
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from data_prep.faces import numbers
from data_prep.failures import AssetError

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


def read_ply(data: bytes) -> tuple[dict[str, Element], list[str]]:
    """A file's elements by name, and the names of its textures in order.

    Raises AssetError for a damaged header, and for a body that is cut short.
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
    read = _Binary(body, order).element if order else _Text(body).element
    return {name: read(name, count, properties) for name, count, properties in elements}, textures


def _count(name: str, count: str, size: int) -> int:
    # A vertex or face takes a byte at the least.
    if not count.isdecimal() or len(count) > 12 or int(count) > size:
        raise damaged(f"claims {count} {name} elements in {size} bytes")
    return int(count)


def _property(name: str, value: str, order: str | None, count: str | None = None) -> _Property:
    unknown = [kind for kind in (value, count) if kind is not None and kind not in _TYPES]
    if unknown or order is None:
        raise damaged(f"property {name} is of the unknown type {', '.join(unknown)}")
    dtypes = [None if kind is None else np.dtype((order or "<") + _TYPES[kind]) for kind in (value, count)]
    assert dtypes[0] is not None
    return _Property(name, dtypes[0], dtypes[1])


def _cut_short(name: str, count: int) -> AssetError:
    return damaged(f"cut short: its {count} {name} elements aren't all there")


class _Text:
    """A body of numbers between blanks."""

    def __init__(self, body: bytes) -> None:
        self.rest = numbers(body)

    def element(self, name: str, count: int, properties: list[_Property]) -> Element:
        """The next element's columns, of the types that the header says."""
        starts = self._starts(name, count, properties)
        columns = Element(count)
        for prop, (at, lengths) in zip(properties, starts, strict=True):
            picked = self.rest[_runs(at, lengths)]
            columns.put(prop, picked if prop.dtype.kind == "f" else _as_integers(picked, prop), lengths)
        self.rest = self.rest[self.end :]
        return columns

    def _starts(self, name: str, count: int, properties: list[_Property]) -> list[tuple[ndarray, ndarray]]:
        """Where each property of each row starts, and how many numbers it has; `end` is where all end."""
        if not any(prop.count_dtype for prop in properties):
            self.end = count * len(properties)
            if self.end > len(self.rest):
                raise _cut_short(name, count)
            rows = np.arange(count) * len(properties)
            return [(rows + column, np.ones(count, np.int64)) for column in range(len(properties))]
        at, rest = 0, self.rest.tolist()
        places: list[list[int]] = [[] for _ in properties]
        lengths: list[list[int]] = [[] for _ in properties]
        try:
            for _ in range(count):
                for column, prop in enumerate(properties):
                    length = 1
                    if prop.count_dtype is not None:
                        length, at = int(rest[at]), at + 1
                    if length < 0:
                        raise damaged(f"a list of {prop.name} has {length} entries")
                    places[column].append(at)
                    lengths[column].append(length)
                    at += length
        except (IndexError, ValueError) as error:
            raise _cut_short(name, count) from error
        if at > len(rest):
            raise _cut_short(name, count)
        self.end = at
        return [(np.array(a, np.int64), np.array(b, np.int64)) for a, b in zip(places, lengths, strict=True)]


def _as_integers(values: ndarray, prop: _Property) -> ndarray:
    limits = np.iinfo(prop.dtype)
    return np.clip(np.nan_to_num(values), limits.min, limits.max).astype(prop.dtype.newbyteorder("="))


class _Binary:
    """A body of packed numbers."""

    def __init__(self, body: bytes, order: str) -> None:
        self.body, self.order, self.at = body, order, 0

    def element(self, name: str, count: int, properties: list[_Property]) -> Element:
        """The next element's columns."""
        return self._uniform(count, properties) or self._ragged(name, count, properties)

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

    def _ragged(self, name: str, count: int, properties: list[_Property]) -> Element:
        """Row after row."""
        places: list[list[int]] = [[] for _ in properties]
        lengths: list[list[int]] = [[] for _ in properties]
        readers = [
            struct.Struct(self.order + prop.count_dtype.char) if prop.count_dtype else None
            for prop in properties
        ]
        at = self.at
        try:
            for _ in range(count):
                for column, prop in enumerate(properties):
                    length, reader = 1, readers[column]
                    if reader is not None:
                        length = int(reader.unpack_from(self.body, at)[0])
                        at += reader.size
                    if length < 0:
                        raise damaged(f"a list of {prop.name} has {length} entries")
                    places[column].append(at)
                    lengths[column].append(length)
                    at += length * prop.dtype.itemsize
        except (struct.error, ValueError) as error:
            raise _cut_short(name, count) from error
        if at > len(self.body):
            raise _cut_short(name, count)
        self.at = at
        raw = np.frombuffer(self.body, np.uint8)
        columns = Element(count)
        for column, prop in enumerate(properties):
            sizes = np.array(lengths[column], np.int64)
            bytes_at = _runs(np.array(places[column], np.int64), sizes * prop.dtype.itemsize)
            columns.put(prop, _native(raw[bytes_at].view(prop.dtype)), sizes)
        return columns


def _runs(starts: Int[ndarray, " rows"], lengths: Int[ndarray, " rows"]) -> Int[ndarray, " entries"]:
    """Numbers from each start on, as many as its length."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _native(values: ndarray) -> ndarray:
    return values.astype(values.dtype.newbyteorder("="))
