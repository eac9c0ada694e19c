"""A folder of objects: metadata.json lists them and counts the broken ones, contact sheets show them."""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sampling.faults import FAULTS
from sampling.pictures import contact_sheet, png
from shapeloom.config import UserError
from shapeloom.storage import read_json, write_atomic

SCHEMA = 1
LIST = "list of objects"
"""Of a shard's meta.json: the digest of what all shards make together."""
PORTRAIT_SIZE = 256
SHEET_COLUMNS = 2
SHEET_OBJECTS = 40
"""More than that on one contact sheet are hard to look at."""
SAVING_SHARE = 10
"""Adding objects to thousands takes at most a tenth of the time that is spent: so much of it is between two
saves, in units of what one takes."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """One object to make. `image`: its pictures' digests, joined by +, or ""."""

    prompt: str
    seed: int
    image: str
    label: str


class Album:
    """The objects of a folder. metadata.json is rewritten as they are added, so that a killed run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "metadata.json"
        self.records: list[Record] = []
        self._saved, self._took = 0.0, 0.0
        if self.path.is_file():
            advice = "Copy it back, or use another --out: without it the objects there have no settings."
            saved = read_json(self.path, advice=advice)
            if saved.get("schema") != SCHEMA:
                raise UserError(
                    f"{self.path} has schema {saved.get('schema')!r}, but this version writes {SCHEMA}. "
                    "Use another --out."
                )
            self.records = saved["samples"]
        self._places = {_identity(record): place for place, record in enumerate(self.records)}
        self.next_number = 1 + max(map(number_of, self.records), default=-1)
        """Of an object that is new in the folder."""

    def find(self, wish: Wish) -> Record | None:
        """The record of an object, whether or not its files are there."""
        place = self._places.get((wish.prompt, wish.seed, wish.image))
        return None if place is None else self.records[place]

    def holds(self, wish: Wish) -> bool:
        """Whether an object is recorded and all its files are there."""
        record = self.find(wish)
        return record is not None and all((self.folder / name).is_file() for name in record["files"].values())

    def name_for(self, wish: Wish, number: int | None = None) -> str:
        """The file stem of an object: its number in the folder (none: the next), its words, its seed."""
        record = self.find(wish)
        if record is not None:
            return str(record["name"])
        return f"{self.next_number if number is None else number:03d}_{file_stem(wish.label, wish.seed)}"

    def add(self, record: Record) -> None:
        """Adds or replaces a record, and saves, unless that has just been done and takes long."""
        place = self._places.setdefault(_identity(record), len(self.records))
        if place == len(self.records):
            self.records.append(record)
        else:
            self.records[place] = record
        self.next_number = max(self.next_number, 1 + number_of(record))
        if time.monotonic() - self._saved >= SAVING_SHARE * self._took:
            self.save()

    def save(self) -> None:
        """Writes metadata.json, objects by their numbers."""
        began = time.monotonic()
        records = sorted(self.records, key=number_of)
        content = {"schema": SCHEMA, "counts": count_faults(records), "samples": records}
        write_atomic(self.path, json.dumps(content, indent=1) + "\n")
        self._saved = time.monotonic()
        self._took = self._saved - began

    def save_contact_sheets(self) -> None:
        """Draws every object's portrait: contact_sheet.png, contact_sheet_2.png, ... of SHEET_OBJECTS each.

        Objects of which there is a latent alone are left out.
        """
        records = sorted(self.records, key=number_of)
        named = [(record, self.folder / record.get("portrait", "")) for record in records]
        shown = [(label_of(record), path) for record, path in named if path.is_file()]
        for start in range(0, len(shown), SHEET_OBJECTS):
            part = shown[start : start + SHEET_OBJECTS]
            sheet = contact_sheet(
                [first_frame(path) for _, path in part], [label for label, _ in part],
                size=PORTRAIT_SIZE, columns=SHEET_COLUMNS,
            )  # fmt: skip
            number = start // SHEET_OBJECTS + 1
            name = "contact_sheet.png" if number == 1 else f"contact_sheet_{number}.png"
            write_atomic(self.folder / name, png(sheet))


def number_of(record: Record) -> int:
    """Returns an object's number in its folder, with which its name begins."""
    return int(record["name"].split("_")[0])


def _identity(record: Record) -> tuple[str, int, str]:
    return record["prompt"], record["seed"], record["image"]


def count_faults(records: Sequence[Record]) -> dict[str, int]:
    """Returns how many objects there are, how many have each fault, and how many were made anew for one."""
    faults = Counter(record.get("fault", "") for record in records)
    counts = {"objects": len(records), **{fault: faults[fault] for fault in FAULTS}}
    return counts | {"retried": sum(bool(record.get("tried")) for record in records)}


def label_of(record: Record) -> str:
    """Returns what a picture of an object says: its words, and what is wrong with it."""
    fault = record.get("fault", "")
    return f"{record['label']} [{fault}]" if fault else str(record["label"])


def file_stem(label: str, seed: int) -> str:
    """Returns a file name's stem of small letters, digits and dashes, whatever the label holds."""
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:48].rstrip("-") or "object"
    return f"{slug}_seed{seed}"


def first_frame(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a picture on white, or an animation's first frame."""
    with Image.open(path) as image:
        frame = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB"))
