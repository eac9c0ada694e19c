"""Assets that didn't make it: why, in a form that can be counted, written down and read again."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


class AssetError(Exception):
    """One asset can't be used. `reason` is a short class to count by, `message` says what was found."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Failure:
    """A line of quarantine.jsonl."""

    path: str
    """Relative to the assets folder."""
    stage: str
    """sources, load, normalize, views, points or sdf."""
    reason: str
    message: str
    sha256: str
    """Of the file's bytes; empty where there is no file."""


def to_jsonl(failures: Iterable[Failure]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(f), sort_keys=True, ensure_ascii=False) + "\n" for f in failures)


def from_jsonl(text: str) -> list[Failure]:
    """Inverse of `to_jsonl`."""
    # Not splitlines(): a message may hold characters, such as U+2028, that it takes for line ends.
    return [Failure(**json.loads(line)) for line in text.split("\n") if line]
