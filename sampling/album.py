"""A folder of objects: metadata.json lists them and counts the broken ones, contact sheets show them."""

import json
import re
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
PORTRAIT_SIZE = 256
SHEET_COLUMNS = 2
SHEET_OBJECTS = 40
"""More than that on one contact sheet are hard to look at."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """One object to make. `image`: its pictures' digests, joined by +, or ""."""

    prompt: str
    seed: int
    image: str
    label: str

    def answered_by(self, record: Record) -> bool:
        """Whether a record of metadata.json is of this object."""
        return (self.prompt, self.seed, self.image) == (record["prompt"], record["seed"], record["image"])


class Album:
    """The objects of a folder: metadata.json is rewritten after each, so that a killed run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "metadata.json"
        self.records: list[Record] = []
        if self.path.is_file():
            advice = "Copy it back, or use another --out: without it the objects there have no settings."
            saved = read_json(self.path, advice=advice)
            if saved.get("schema") != SCHEMA:
                raise UserError(
                    f"{self.path} has schema {saved.get('schema')!r}, but this version writes {SCHEMA}. "
                    "Use another --out."
                )
            self.records = saved["samples"]

    def find(self, wish: Wish) -> Record | None:
        """The record of an object, whether or not its files are there."""
        return next((record for record in self.records if wish.answered_by(record)), None)

    def holds(self, wish: Wish) -> bool:
        """Whether an object is recorded and all its files are there."""
        record = self.find(wish)
        return record is not None and all((self.folder / name).is_file() for name in record["files"].values())

    def name_for(self, wish: Wish) -> str:
        """The file stem of an object: its number in the folder, its words, its seed."""
        record = self.find(wish)
        if record is not None:
            return str(record["name"])
        number = 1 + max((int(record["name"].split("_")[0]) for record in self.records), default=-1)
        return f"{number:03d}_{file_stem(wish.label, wish.seed)}"

    def add(self, record: Record) -> None:
        """Adds or replaces a record, and saves."""
        self.records = [old for old in self.records if old["name"] != record["name"]] + [record]
        self.records.sort(key=lambda each: int(each["name"].split("_")[0]))
        content = {"schema": SCHEMA, "counts": count_faults(self.records), "samples": self.records}
        write_atomic(self.path, json.dumps(content, indent=1) + "\n")

    def save_contact_sheets(self) -> None:
        """Draws every object's portrait: contact_sheet.png, contact_sheet_2.png, ... of SHEET_OBJECTS each.

        Objects of which there is a latent alone are left out.
        """
        named = [(record, self.folder / record.get("portrait", "")) for record in self.records]
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
