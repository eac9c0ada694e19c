"""Where things are written: local folders, and URLs of whatever fsspec knows (s3://, gs://, memory://, ...).

A local path is a `pathlib.Path`, anything else a `UPath` with the same methods. Both kinds get whole files or
none: locally by writing beside the place and renaming, elsewhere because an object store's put is atomic.
"""

import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from upath import UPath

from shapeloom.config import UserError

AnyPath = Path | UPath
MAX_JSON_BYTES = 16 << 20
"""Of a description: the words that a CLIP knows are the longest part of one."""
Location = Annotated[str, BeforeValidator(str)]
"""A path or URL in a config; `parse_path` opens it."""


def parse_path(text: str | AnyPath) -> AnyPath:
    """A path or URL as users write it. Raises UserError where fsspec lacks what the URL's protocol needs."""
    if not isinstance(text, str) or "://" not in text:
        return Path(text) if isinstance(text, str) else text
    try:
        # Other processes write there too, so no listing is remembered.
        path = UPath(text, use_listings_cache=False)
        path.fs  # noqa: B018  imports the protocol's library
    except (ImportError, ValueError) as error:
        raise UserError(f"{text} can't be opened: {error}") from error
    return Path(path.path) if path.protocol in ("file", "local") else path


def is_local(path: AnyPath) -> bool:
    """Whether the operating system's own calls work on it."""
    return isinstance(path, Path)


def write_atomic(path: AnyPath, data: bytes | str) -> None:
    """Writes `data` so that a reader sees all or nothing; locally it is synced to disk as well."""
    with scratch_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        put_file(temporary, path)


@contextmanager
def scratch_file(path: AnyPath) -> Iterator[Path]:
    """A local name for what `put_file` will put at `path`: beside it if that is local. Removed at the end."""
    # Random, since processes of several machines may write into one folder.
    name = f".{path.name}.{secrets.token_hex(6)}.tmp"
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(name)
    else:
        temporary = Path(tempfile.gettempdir(), name)
    try:
        with naming(path):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: AnyPath) -> Iterator[None]:
    """Gives an OSError from within the name of the file: writing to a full disk raises one without."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def put_file(temporary: Path, path: AnyPath) -> None:
    """Moves a file from `scratch_file(path)` into its place."""
    if isinstance(path, Path):
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    else:
        path.fs.put_file(str(temporary), path.path)


def private_folder(path: Path) -> Path:
    """Makes a folder in a place that others may write to, or takes it if it is this user's alone.

    Raises UserError for a link, another user's folder or one that others may write into: whatever lies there
    could be anyone's.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        fault = "is a link"
    elif facts.st_uid != os.getuid():
        fault = "belongs to another user"
    elif facts.st_mode & 0o022:
        fault = f"can be written by others (mode {stat.S_IMODE(facts.st_mode):03o})"
    else:
        return path
    raise UserError(
        f"{path} {fault}, so what lies there may be anyone's. Remove it, or set TMPDIR to a folder of yours."
    )


def fetch_file(path: AnyPath, local: Path) -> None:
    """Copies a file to the local `local`, whole or not at all."""
    with scratch_file(local) as temporary:
        if isinstance(path, Path):
            temporary.write_bytes(path.read_bytes())
        else:
            path.fs.get_file(path.path, str(temporary))
        temporary.replace(local)


def read_json(path: AnyPath, *, advice: str) -> dict[str, Any]:
    """Returns the object in a JSON file; raises UserError that names it and gives `advice` if it is damaged.

    One that is too large to be a description counts as damaged. A file that isn't there is FileNotFoundError.
    """
    size = path.stat().st_size
    try:
        if size > MAX_JSON_BYTES:
            raise ValueError(f"at most {MAX_JSON_BYTES >> 20} MB are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is damaged ({size} bytes; {error}). {advice}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not what was written there. {advice}")
    return value


def file_digest(path: AnyPath) -> str:
    """Returns the SHA-256 of a file as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
