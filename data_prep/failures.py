"""Assets that didn't make it: why, in a form that can be counted, written down and read again."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


class AssetError(Exception):
    """One asset can't be used. `reason` is a short class to count by, `message` says what was found."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True, slots=True)
class Failure:
    """A line of quarantine.jsonl."""

    path: str
    """Relative to the assets folder."""
    stage: str
    """sources, load, normalize, views, points or sdf."""
    reason: str
    """A short class to count by; those of an asset that was lost with its process: see `isolation.Lost`."""
    message: str
    sha256: str
    """Of the file's bytes; empty where there is no file."""
    stderr: str = ""
    """The end of what was written there on the asset's account, or the traceback of an unexpected error.

    For a reader alone: two runs need not agree on it.
    """

    @property
    def id(self) -> str:
        """What the asset's key would be."""
        return self.sha256[:16]


def to_jsonl(failures: Iterable[Failure]) -> str:
    """One JSON object a line."""
    entries = ({"id": failure.id, **asdict(failure)} for failure in failures)
    return "".join(json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n" for entry in entries)


def from_jsonl(text: str) -> list[Failure]:
    """Inverse of `to_jsonl`."""
    # Not splitlines(): a message may hold characters, such as U+2028, that it takes for line ends.
    entries = [json.loads(line) for line in text.split("\n") if line]
    return [Failure(**{name: entry[name] for name in entry if name != "id"}) for entry in entries]
