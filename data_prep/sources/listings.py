"""What captions files, manifests and catalogues say of assets, by path.

    path,caption[,category][,licence][,group][,split][,id][,anything else]

A folder's `captions.csv` describes some of the folder's files; a manifest (.csv or .parquet) is the list of
the assets themselves. Paths are relative to the file's own folder. Several rows of one path are several
captions of it; other columns count from the first row that fills them.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from data_prep.failures import Failure
from data_prep.formats.archives import fold
from data_prep.sources.naming import SPLITS, clean_caption
from shapeloom.config import UserError

_MAX_LINES = 100
"""Of one record: a longer one is an unclosed quote."""
Row = tuple[int, dict[str, str]]
"""Line (CSV) or row (Parquet) number, values by column."""


@dataclass(slots=True)  # there may be a million
class Listed:
    """What is said of one path."""

    captions: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    """category, licence, group, split; anything else is an attribute."""
    provenance: dict[str, str] = field(default_factory=dict)
    rotation: list[float] | None = None
    warnings: list[str] = field(default_factory=list)
    line: int = 0
    """Of its first row."""

    def add_caption(self, text: str) -> None:
        """Append a caption, cleaned; one without words, or that is there already, is left out."""
        caption = clean_caption(text)
        if text.strip() and not caption:
            self.warnings.append(f"caption {text[:80]!r} has no words: left out")
        elif caption != " ".join(text.split()):
            self.warnings.append(f"caption {text[:80]!r} was cleaned")
        if caption and caption not in self.captions:
            self.captions.append(caption)


def read_cap3d(file: Path) -> dict[str, list[str]]:
    """Returns the captions of each UID of Objaverse, from Cap3D's lines UID,caption without a header.

    Raises UserError that names the first line of anything else. Luo et al. 2023, "Scalable 3D Captioning with
    Pretrained Models".
    """
    captions: dict[str, list[str]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for row in reader:
                if len(row) != 2 or not row[0].strip():
                    raise UserError(
                        f"{file}, line {reader.line_num}: expected UID,caption, got {row!r}; quote captions "
                        "that hold commas."
                    )
                if text := " ".join(row[1].split()):
                    captions.setdefault(row[0].strip(), []).append(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a UTF-8 CSV file of captions that can be read: {error}") from error
    return captions


def read_captions(file: Path, paths: set[str]) -> tuple[dict[str, Listed], list[Failure]]:
    """A folder's captions file over the folder's `paths`; rows that name no file are failures."""
    if not file.is_file():
        return {}, []
    if file.is_symlink():
        raise UserError(f"{file} is a link: copy the file there, so that the folder holds all that it says.")
    header, rows, failures = _read_csv(file)
    listed, odd = collect(file, header, rows)
    failures += odd
    in_any_case = {fold(path): path for path in sorted(paths, reverse=True)}
    for path in [path for path in listed if path not in paths]:
        entry, actual = listed.pop(path), in_any_case.get(fold(path))
        if actual is None:
            message = f"{file.name}, line {entry.line}, names a file that is not in the folder"
            failures.append(Failure(path, "sources", "missing", message, ""))
            continue
        known = listed.setdefault(actual, entry)
        known.captions = list(dict.fromkeys(known.captions + entry.captions))
        known.warnings.append(f"{file.name} calls it {path}")
    return listed, failures


def read_manifest(file: Path) -> tuple[dict[str, Listed], list[Failure]]:
    """A manifest's assets; rows whose path leads out of its folder are failures.

    Raises UserError, which names row and column, for a file that can't be understood.
    """
    header, rows, failures = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    listed, odd = collect(file, header, rows)
    failures += odd
    for path in [
        p for p in listed if not p or PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts
    ]:
        message = f"{file.name} may name files in its own folder and below; put it above all its assets"
        failures.append(Failure(path, "sources", "outside_folder", message, ""))
        del listed[path]
    for entry in listed.values():
        entry.provenance.setdefault("source", "manifest")
    return listed, failures


def _read_csv(file: Path) -> tuple[list[str], list[Row], list[Failure]]:
    """Header, rows that aren't blank, and rows that can't be read."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(stream)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a UTF-8 CSV file: {error}. Save it as UTF-8 with commas.") from error
    header: list[str] | None = None
    rows, failures = [], []
    for number, fields, problem in _records(lines):
        if problem:
            path = lines[number - 1].partition(",")[0].strip() or file.name
            message = f"{file.name}, line {number}, {problem}"
            failures.append(Failure(path, "sources", "bad_row", message, ""))
        elif header is None:
            header = [name.strip() for name in fields]
        elif any(field.strip() for field in fields):
            row = dict(zip_longest(header, fields[: len(header)], fillvalue=""))
            rows.append((number, row | {"": "".join(fields[len(header) :]).strip()}))
    return header or [], rows, failures


def _records(lines: list[str]) -> Iterator[tuple[int, list[str], str]]:
    """Line number, fields, and what is wrong, of each record of a CSV file.

    A quote that is never closed costs its own line; the lines after it are read as if it weren't there.
    """
    start = 0
    while start < len(lines):
        end, fields, problem = start + 1, [], ""
        try:
            # A second line that is swallowed by the first tells that a quote is open.
            fields, *rest = csv.reader([lines[start], "x"])
            if not rest:
                fields, end = _several_lines(lines, start)
                problem = "" if fields else "has a quote that isn't closed"
        except csv.Error as error:
            problem = f"can't be read: {error}"
        yield start + 1, fields, problem
        start = end


def _several_lines(lines: list[str], start: int) -> tuple[list[str], int]:
    """The record that begins with an open quote, and the line after it; no fields if it doesn't end well."""
    text = lines[start]
    for end in range(start + 1, min(start + _MAX_LINES, len(lines))):
        text += lines[end]
        if '"' in lines[end]:
            try:
                return next(csv.reader([text], strict=True)), end + 1
            except csv.Error as error:
                if "end of data" not in str(error):  # the quote that closes it opens another field
                    break
    return [], start + 1


def _read_parquet(file: Path) -> tuple[list[str], list[Row], list[Failure]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is not a Parquet file that can be read: {error}") from error
    rows = []
    for number, values in enumerate(table.to_pylist(), start=1):
        if isinstance(values.get("caption"), list):
            raise UserError(f"{file}, row {number}: column `caption` is a list; write one row a caption.")
        rows.append((number, {name: "" if v is None else str(v) for name, v in values.items()}))
    return list(table.column_names), rows, []


def collect(
    file: Path, header: Sequence[str], rows: Iterable[Row]
) -> tuple[dict[str, Listed], list[Failure]]:
    """Rows gathered by path. Raises UserError for columns and values that make no sense."""
    if "path" not in header:
        raise UserError(f"{file} has no column `path`; its columns are: {', '.join(header) or 'none'}.")
    if repeated := {name for name in header if name and header.count(name) > 1}:
        raise UserError(f"{file} has more than one column {', '.join(sorted(repeated))}.")
    listed: dict[str, Listed] = {}
    failures = []
    for line, row in rows:
        path, split = _path(row["path"]), row.get("split", "").strip()
        if split and split not in SPLITS:
            raise UserError(f"{file}, line {line}: split {split!r} is none of {', '.join(SPLITS)}.")
        if not path:
            raise UserError(f"{file}, line {line}: column `path` is empty.")
        if row.get(""):
            message = f"{file.name}, line {line}, has more fields than the header: quote captions with commas"
            failures.append(Failure(path, "sources", "bad_row", message, ""))
            continue
        entry = listed.setdefault(path, Listed(line=line))
        entry.add_caption(row.get("caption", ""))
        for name, value in row.items():
            if name == "id" and value.strip():
                entry.provenance.setdefault("id", value.strip())
            elif name not in ("path", "caption", "id", "") and value.strip():
                entry.columns.setdefault(name, value.strip())
    return listed, failures


def _path(text: str) -> str:
    """`./a//b.obj` and `a\\b.obj` as `a/b.obj`."""
    return str(PurePosixPath(text.strip().replace("\\", "/"))) if text.strip() else ""
