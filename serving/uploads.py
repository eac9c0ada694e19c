"""The pictures and 3D files that visitors of the web page send: how they come in and how long they are kept.

Their addresses hold 128 random bits and nothing of the name that they came with. The oldest make room for the
new. A visitor who sends slowly, or nothing, is cut off.
"""

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from serving.studio import MAX_UPLOAD_BYTES
from shapeloom.storage import private_folder

MAX_KEPT_BYTES = 200 * 2**20
"""Of all of them together."""
MAX_AGE_SECONDS = 3600.0
MAX_ARRIVING = 8
"""Files that are being sent at the same time."""
STALL_SECONDS = 10.0
"""For which nothing may come of a request."""
REQUEST_SECONDS = 60.0
"""In which a request must have come."""
SWEEP_SECONDS = 300.0

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Refusal(Exception):
    """A request that gets no further: its HTTP status and the words that the sender reads."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


async def refuse(send: Send, refusal: Refusal) -> None:
    """Answers with a refusal and ends the connection."""
    await respond(send, {"detail": refusal.words}, status=refusal.status, close=True)


async def respond(
    send: Send, value: Any, *, status: int = 200, close: bool = False, event: bool = False
) -> None:
    """Answers with JSON, or a stream of that one event."""
    text = json.dumps(value)
    body = (f"data: {text}\n\n" if event else text).encode()
    kind = b"text/event-stream" if event else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if close else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def measured(receive: Receive, *, limit: int) -> Receive:
    """Returns a `receive` for the body of one request, which raises Refusal where it is too large or slow."""
    received, deadline, ended = 0, time.monotonic() + REQUEST_SECONDS, False

    async def next_part() -> Any:
        nonlocal received, ended
        if ended:
            return await receive()  # waits for the client to go
        patience = min(STALL_SECONDS, deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(receive(), patience)
        except TimeoutError as error:
            raise Refusal(408, "Nothing more came of that request, so it was given up. Try again.") from error
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large(limit)
        ended = not message.get("more_body", False)
        return message

    return next_part


def too_large(limit: int) -> Refusal:
    """The refusal of a body beyond `limit` bytes."""
    size = f"{limit >> 20} MB" if limit >> 20 else f"{limit >> 10} kB"
    return Refusal(413, f"That is too large: at most {size} are taken here.")


def suffix_of(data: bytes) -> str:
    """Returns what a file is by how it begins, whatever it was called; ".bin": nothing that is known here."""
    for start, suffix in ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"glTF", ".glb"), (b"ply", ".ply")):
        if data.startswith(start):
            return suffix
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return ".safetensors"
    if len(data) == 84 + 50 * int.from_bytes(data[80:84], "little"):  # binary: 50 bytes a triangle
        return ".stl"
    return ".bin"


class Uploads:
    """A folder of files. Takes the place of Gradio's own upload."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._arriving = 0
        self._lock, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._sweep_on, name="uploads", daemon=True).start()

    async def take(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answers a form with one file by a list of its path, as Gradio's clients expect.

        Raises Refusal for a form without a file or with several, or if too many are coming in.
        """
        if self._arriving >= MAX_ARRIVING:
            raise Refusal(503, "Many files are coming in just now: try again in a minute.")
        self._arriving += 1
        try:
            async with Request(scope, receive).form(max_files=1, max_fields=2) as form:
                sent = form.get("files")
                if not isinstance(sent, UploadFile):
                    raise Refusal(400, "Send one file, as `files` of a form.")
                if (sent.size or 0) > MAX_UPLOAD_BYTES:
                    raise too_large(MAX_UPLOAD_BYTES)
                path = await run_in_threadpool(self.keep, sent.file)
        except ClientDisconnect:
            return
        except (MultiPartException, HTTPException, FormParserError, KeyError) as error:
            reason = getattr(error, "detail", None) or getattr(error, "message", None) or str(error)
            raise Refusal(400, f"Send one file, as `files` of a form ({reason}).") from error
        finally:
            self._arriving -= 1
        await respond(send, [str(path)])

    def keep(self, sent: IO[bytes]) -> Path:
        """Stores a file; returns its path. Refuses once the folder is closed."""
        data = sent.read()
        suffix = suffix_of(data)
        with self._lock:
            if self._closed.is_set():
                raise Refusal(503, "This page is ending.")
            private_folder(self.folder.parent)  # which a cleaner may have taken
            self.folder.mkdir(exist_ok=True)
            self._sweep(len(data))
            path = self.folder / f"{secrets.token_hex(16)}{suffix}"
            path.write_bytes(data)
        return path

    def close(self) -> None:
        """Takes no more files."""
        with self._lock:
            self._closed.set()

    def _sweep(self, needed: int) -> None:
        """Removes what is old, then the oldest until `needed` bytes more have room."""
        kept = []
        for path in self.folder.glob("*.*"):
            with suppress(FileNotFoundError):
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
        total = needed + sum(size for _, size, _ in kept)
        for since, size, path in sorted(kept):
            if total > self.max_bytes or time.time() - since > MAX_AGE_SECONDS:
                path.unlink(missing_ok=True)
                total -= size

    def _sweep_on(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            with self._lock:
                self._sweep(0)
