"""What captions files, manifests and catalogues say of assets, by path.

    path,caption[,category][,licence][,group][,split][,id][,anything else]

A folder's `captions.csv` describes some of the folder's files; a manifest (.csv or .parquet) is the list of
the assets themselves. Paths are relative to the file's own folder. Several rows of one path are several
captions of it; other columns count from the first row that fills them.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_prep.failures import Failure
from data_prep.naming import SPLITS, clean_caption
from shapeloom.config import UserError

Row = tuple[int, dict[str, str]]
"""Line (CSV) or row (Parquet) number, values by column."""


@dataclass
class Listed:
    """What is said of one path."""

    captions: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    """category, licence, group, split; anything else is an attribute."""
    provenance: dict[str, str] = field(default_factory=dict)
    rotation: list[float] | None = None
    warnings: list[str] = field(default_factory=list)

    def add_caption(self, text: str) -> None:
        """Append a caption, cleaned; one without words, or that is there already, is left out."""
        caption = clean_caption(text)
        if text.strip() and not caption:
            self.warnings.append(f"caption {text[:80]!r} has no words: left out")
        elif caption != " ".join(text.split()):
            self.warnings.append(f"caption {text[:80]!r} was cleaned")
        if caption and caption not in self.captions:
            self.captions.append(caption)


def read_captions(file: Path, paths: set[str]) -> tuple[dict[str, Listed], list[Failure]]:
    """A folder's captions file over the folder's `paths`; rows that name no file are failures."""
    if not file.is_file():
        return {}, []
    if file.is_symlink():
        raise UserError(f"{file} is a link: copy the file there, so that the folder holds all that it says.")
    header, rows = _read_csv(file)
    listed, failures = collect(file, header, rows)
    unknown = [path for path in listed if path not in paths]
    for path in unknown:
        line = next(number for number, row in rows if _path(row["path"]) == path)
        message = f"{file.name}, line {line}, names a file that is not in the folder"
        failures.append(Failure(path, "sources", "missing", message, ""))
        del listed[path]
    return listed, failures


def read_manifest(file: Path) -> tuple[dict[str, Listed], list[Failure]]:
    """A manifest's assets; rows whose path leads out of its folder are failures.

    Raises UserError, which names row and column, for a file that can't be understood.
    """
    header, rows = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    listed, failures = collect(file, header, rows)
    for path in [
        p for p in listed if not p or PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts
    ]:
        message = f"{file.name} may name files in its own folder and below; put it above all its assets"
        failures.append(Failure(path, "sources", "outside_folder", message, ""))
        del listed[path]
    for entry in listed.values():
        entry.provenance.setdefault("source", "manifest")
    return listed, failures


def _read_csv(file: Path) -> tuple[list[str], list[Row]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", restkey="")
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            return header, [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a UTF-8 CSV file: {error}. Save it as UTF-8 with commas.") from error


def _read_parquet(file: Path) -> tuple[list[str], list[Row]]:
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
    return list(table.column_names), rows


def collect(
    file: Path, header: Sequence[str], rows: Iterable[Row]
) -> tuple[dict[str, Listed], list[Failure]]:
    """Rows gathered by path. Raises UserError for columns and values that make no sense."""
    if "path" not in header:
        raise UserError(f"{file} has no column `path`; its columns are: {', '.join(header) or 'none'}.")
    if repeated := {name for name in header if header.count(name) > 1}:
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
        entry = listed.setdefault(path, Listed())
        entry.add_caption(row.get("caption", ""))
        for name, value in row.items():
            if name == "id" and value.strip():
                entry.provenance.setdefault("id", value.strip())
            elif name not in ("path", "caption", "id", "") and value.strip():
                entry.columns.setdefault(name, value.strip())
    return listed, failures


def _path(text: str) -> str:
    return text.strip().replace("\\", "/").removeprefix("./")
