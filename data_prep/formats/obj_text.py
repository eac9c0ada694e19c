"""The text of OBJ files as arrays: statements by kind, numbers by line, corners of faces by reference.

Lines are told apart and numbers are gathered for a whole file at once, since models of a hundred megabytes
are common. Statements may be indented, parted by tabs, continued by a backslash, and followed by comments.
"""

import re
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

_NEWLINE, _BACKSLASH, _SLASH, _HASH = 10, 92, 47, 35
_CHUNK = 1 << 24
"""Bytes of text at a time, which take about 20 times that while they are looked at."""


@dataclass(frozen=True)
class Lines:
    """A file's text and where its lines are."""

    text: ndarray
    """Bytes [bytes]; each line ends with a newline, none starts with a blank."""
    starts: Int[ndarray, " lines"]
    ends: Int[ndarray, " lines"]
    """Of the newlines."""
    kinds: ndarray
    """Bytes [lines, 3] at their starts."""

    def starting(self, keyword: bytes) -> Int[ndarray, " found"]:
        """Numbers of the lines whose first word is `keyword`, or begins so where it has three letters."""
        match = np.ones(len(self.starts), bool)
        for place, letter in enumerate(keyword[:3]):
            match &= self.kinds[:, place] == letter
        if len(keyword) < 3:
            match &= self.kinds[:, len(keyword)] <= 32
        return np.flatnonzero(match)

    def statements(self, keyword: str) -> tuple[list[str], Int[ndarray, " found"]]:
        """What follows a keyword, and the numbers of the lines where it stands."""
        found = self.starting(keyword.encode())
        words = [decode(self.line(number)).replace("\t", " ").partition(" ") for number in found.tolist()]
        mine = [n for n, word in enumerate(words) if word[0].strip() == keyword]
        return [words[n][2].strip() for n in mine], found[mine]

    def line(self, number: int) -> bytes:
        """One line without its end."""
        return self.text[self.starts[number] : self.ends[number]].tobytes()

    def select(self, numbers: Int[ndarray, " some"], skip: int) -> ndarray:
        """The text of some lines, with the first `skip` bytes and the comment of each blanked out."""
        first, last = numbers[0], numbers[-1]
        kept = np.zeros(last + 1 - first, bool)
        kept[numbers - first] = True
        lengths = self.ends[first : last + 1] + 1 - self.starts[first : last + 1]
        text = self.text[self.starts[first] : self.ends[last] + 1]
        text = text.copy() if kept.all() else text[np.repeat(kept, lengths)]
        starts = np.cumsum(lengths[kept]) - lengths[kept]
        for place in range(skip):  # of a bare keyword the line's end stays
            text[starts + np.minimum(place, lengths[kept] - 2)] = 32
        if _HASH in text:
            data = re.sub(rb"[ \t]#[^\n]*", b"", text.tobytes())
            text = np.frombuffer(data, np.uint8).copy()
        return text


def decode(data: bytes) -> str:
    """Words of an OBJ or MTL file, which say nothing of their encoding."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def library_names(data: bytes) -> list[str]:
    """What the `mtllib` statements of a file name."""
    names = []
    for match in re.finditer(rb"mtllib[ \t]+([^\r\n]+)", data):
        start = match.start()
        while start and data[start - 1] in b" \t":
            start -= 1
        if not start or data[start - 1] in b"\r\n\xbf":  # the last byte of a byte-order mark
            names.append(decode(match[1]).strip())
    return list(dict.fromkeys(names))


def split_lines(data: bytes) -> Lines:
    """The lines of a file, whatever ends them."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = data.decode("utf-16", errors="replace").encode()
    data = data.removeprefix(b"\xef\xbb\xbf") + b"\n\n\n"  # so that every line has three bytes to look at
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\\\n" in data:
        data = re.sub(rb"\\\n[ \t]*", b" ", data)
    text = np.frombuffer(data, np.uint8)
    first = text[np.flatnonzero(text[:-1] == _NEWLINE) + 1]
    if data[:1] in b" \t" or ((first == 32) | (first == 9)).any():
        text = np.frombuffer(re.sub(rb"^[ \t]+", b"", data, flags=re.MULTILINE), np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)[:-2]
    starts = np.concatenate([[0], ends[:-1] + 1])
    return Lines(text, starts, ends, text[starts[:, None] + np.arange(3)])


def read_rows(lines: Lines, keyword: bytes) -> tuple[Float[ndarray, "rows width"], Int[ndarray, " rows"]]:
    """Numbers of all lines of one kind, and how many each has. What is missing is 0, what is no number NaN.

    The width is that of the longest row, but 8 at most and 3 at least.
    """
    numbers = lines.starting(keyword)
    values, counts = [], []
    for chunk in _chunks(lines, numbers):
        text = lines.select(chunk, len(keyword))
        words, per_line = _count_words(text)
        values.append(_floats(text.tobytes(), words))
        counts.append(per_line)
    flat, count = np.concatenate([*values, []]), np.concatenate([*counts, np.zeros(0, np.int64)])
    width = min(int(count.max(initial=1)), 8)
    rows = np.zeros((len(count), max(width, 3)))
    if (count == width).all():
        rows[:, :width] = flat.reshape(-1, width)
        return rows, count
    column = np.arange(len(flat)) - np.repeat(np.cumsum(count) - count, count)
    kept = column < width
    rows[np.repeat(np.arange(len(count)), count)[kept], column[kept]] = flat[kept]
    return rows, count


def read_faces(
    lines: Lines, numbers: Int[ndarray, " faces"]
) -> tuple[Int[ndarray, "corners 3"], Int[ndarray, " faces"], Bool[ndarray, " faces"]]:
    """References to position, texture coordinates and normal of each corner as they are written (0: none),
    corners of each face, and the faces that hold anything else than such references."""
    found = [_corners(lines.select(chunk, 2)) for chunk in _chunks(lines, numbers)]
    if not found:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64), np.zeros(0, bool)
    corners, counts, odd = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return corners, counts, odd


def _chunks(lines: Lines, numbers: Int[ndarray, " some"]) -> list[ndarray]:
    size = lines.ends[numbers] - lines.starts[numbers]
    cuts = np.flatnonzero(np.diff(np.cumsum(size) // _CHUNK)) + 1
    return [chunk for chunk in np.split(numbers, cuts) if len(chunk)]


def _count_words(text: ndarray) -> tuple[int, Int[ndarray, " lines"]]:
    """Words in all, and in each line."""
    word = text > 32
    starts = np.flatnonzero(word & ~np.concatenate([[False], word[:-1]]))
    before = np.searchsorted(starts, np.flatnonzero(text == _NEWLINE))
    return len(starts), np.diff(before, prepend=0)


def _floats(text: bytes, count: int) -> Float[ndarray, " count"]:
    values = _from_string(text, count, float)
    if values is not None:
        return values
    return np.array([_float(word) for word in text.split()])


def _from_string(text: bytes, count: int, dtype: type) -> ndarray | None:
    """All of `count` numbers of a text; None if some of its words are no numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of text that ends before its end
        try:
            values: ndarray = np.fromstring(text, dtype, sep=" ")
        except ValueError:
            return None
    return values if len(values) == count else None


def _float(word: bytes) -> float:
    try:
        return float(word.replace(b",", b"."))  # of writers in countries with a decimal comma
    except ValueError:
        return np.nan


def _corners(text: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """`read_faces` of lines whose keyword is blanked out: words such as 7, 7/3, 7//5, 7/3/5, -1/-1."""
    digit = (text >= 48) & (text <= 57)
    sign = ((text == 45) | (text == 43)) & np.concatenate([digit[1:], [False]])
    known = digit | sign | (text <= 32) | (text == _SLASH)
    line_ends = np.flatnonzero(text == _NEWLINE)
    odd = np.zeros(len(line_ends), bool)
    if not known.all():
        text = text.copy()
        odd[np.searchsorted(line_ends, np.flatnonzero(~known))] = True
        blank = np.repeat(odd, np.diff(line_ends, prepend=-1)) & (text != _NEWLINE)
        text[blank], digit[blank] = 32, False
    word, slash = text > 32, text == _SLASH
    starts = np.flatnonzero(word & ~np.concatenate([[False], word[:-1]]))
    counts = np.diff(np.searchsorted(starts, line_ends), prepend=0)
    values = np.flatnonzero(digit & ~np.concatenate([[False], digit[:-1]]))
    numbers = _from_string(np.where(slash, np.uint8(32), text).tobytes(), len(values), np.int64)
    corners = np.zeros((len(starts), 3), np.int64)
    assert numbers is not None
    if len(values) == len(starts) and not slash.any():
        corners[:, 0] = numbers
    else:
        slashes = np.cumsum(slash, dtype=np.int32)
        owner = np.searchsorted(starts, values, side="right") - 1
        slot = slashes[values] - slashes[starts[owner]]
        corners[owner[slot < 3], slot[slot < 3]] = numbers[slot < 3]
    return corners, counts, odd
