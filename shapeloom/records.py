"""What a checkpoint consists of: a record of its files, their sizes and digests, and whether it holds."""

import json
from pathlib import Path
from typing import Any

from shapeloom.config import UserError
from shapeloom.storage import file_digest, read_json, write_atomic

RECORD = "record.json"


def write_record(folder: Path, facts: dict[str, Any]) -> None:
    """Writes `facts` and the list of all files in a checkpoint's folder, which is thereby complete."""
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, file_digest(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_atomic(folder / RECORD, json.dumps({**facts, "files": files}, indent=1))


def checkpoint_problem(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files, reading all of them; None for a sound one."""
    if not (folder / RECORD).is_file():
        # Before there were records, this was written last.
        return None if (folder / "world_size").is_file() else "it was never finished"
    try:
        files = read_json(folder / RECORD, advice="")["files"]
    except (UserError, KeyError):
        return f"its {RECORD} is damaged"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes in place of {size}"
        if file_digest(path) != digest:
            return f"{name} isn't what was written (another digest)"
    return None
