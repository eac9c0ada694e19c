"""Local copies of remote shards: fetched whole, ahead of time, bounded, shared by a machine's processes.

A copy is read only once this process has seen that its bytes have the digest that its name says.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO

from shapeloom.config import UserError
from shapeloom.storage import AnyPath, fetch_file, file_digest, private_folder, scratch_file

FETCHERS = 4
"""Shards fetched at the same time."""


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process of this machine at a time; the lock of one that is killed is free again.

    Where one leaves and removes the file as another comes, two are in at once: no harm, one fetch too many.
    """
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


class ShardCache:
    """A folder of copies, named by their sha256. What was used longest ago goes first when it is full.

    Any number of processes may use one folder: a copy is fetched by one of them, appears whole, and is
    fetched again if another process has dropped it or it is damaged.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = 20 << 30) -> None:
        """`folder`: by default one for this user in the system's temporary folder; UserError if it isn't.

        `max_bytes`, to which comes what is just being fetched, should hold two windows of a `ReadingOrder`
        (processes of one run share theirs), or else shards are fetched more than once a pass.
        """
        default = Path(tempfile.gettempdir(), f"shapeloom-shards-{os.getuid()}")
        self.folder, self.max_bytes = folder or private_folder(default), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ahead: dict[str, Future[None]] = {}
        self._checked: set[tuple[str, int]] = set()  # digests and inodes of copies that have them
        self._lock = Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def open(self, shard: AnyPath, sha256: str) -> IO[bytes]:
        """The copy of a shard, fetched now if it isn't there yet.

        Raises UserError if the shard itself isn't what its digest says.
        """
        copy = self.folder / f"{sha256}.tar"
        ahead = self._ahead.get(sha256)
        if ahead is not None and not ahead.cancel():  # begun, and perhaps done
            wait([ahead])
        while True:
            try:
                os.utime(copy)  # first: once open, it can't be lost any more
                file = copy.open("rb", buffering=0)
            except FileNotFoundError:
                self._fetch(shard, copy)
                continue
            identity = (sha256, os.fstat(file.fileno()).st_ino)
            if identity in self._checked:
                return file
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                self._checked.add(identity)
                file.seek(0)
                return file
            file.close()
            copy.unlink(missing_ok=True)  # damaged, or put there by someone else

    def read_ahead(self, shards: Sequence[tuple[AnyPath, str]]) -> None:
        """Starts to fetch (shard, sha256) pairs, soonest needed first; forgets the others not yet begun."""
        wanted = {sha256: shard for shard, sha256 in shards}
        if self._ahead.keys() == wanted.keys():
            return
        with self._lock:
            for sha256 in self._ahead.keys() - wanted.keys():
                self._ahead.pop(sha256).cancel()
            for sha256 in [name for name in wanted if name not in self._ahead]:
                copy = self.folder / f"{sha256}.tar"
                self._ahead[sha256] = self._threads().submit(self._fetch, wanted[sha256], copy)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():  # threads don't survive a fork
            self._pool = (os.getpid(), ThreadPoolExecutor(FETCHERS))
        return self._pool[1]

    def _fetch(self, shard: AnyPath, copy: Path) -> None:
        with _alone(copy.with_suffix(".lock")):
            if not copy.exists():  # another process may just have fetched it
                self._fetch_now(shard, copy)

    def _fetch_now(self, shard: AnyPath, copy: Path) -> None:
        self._make_room(shard.stat().st_size)
        with scratch_file(copy) as temporary:
            fetch_file(shard, temporary)
            if file_digest(temporary) != copy.stem:
                raise UserError(
                    f"{shard} isn't the file that its data set's listing describes (its SHA-256 differs): it "
                    "was changed or damaged. Prepare that data again."
                )
            self._checked.add((copy.stem, temporary.stat().st_ino))
            temporary.replace(copy)

    def _make_room(self, size: int) -> None:
        copies = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process has made room
                copies.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in copies)
        for stat, path in sorted(copies, key=lambda copy: copy[0].st_mtime):
            if total + size <= self.max_bytes:
                return
            total -= stat.st_size
            path.unlink(missing_ok=True)
