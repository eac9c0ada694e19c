"""python -m benchmarks.drills.page [--model RUN] [--requests 50] [--clients 10] [--uploads 200]: strangers.

Starts the page as a user does, with a credential of a hub that is a fake in this process, and a temporary
folder of its own. Then come strangers who ask for all addresses that Gradio has or had, rounds of requests,
uploads (many, slow, huge, guessed at), a cleaner that deletes what lies in temporary folders, and SIGTERM.
Prints each with the sentence that the visitor reads. The exit status is 1 if anything got through, anything
stayed on disk, the fake hub was asked anything, or memory grew by over 20 MB after the first round.
"""

import argparse
import http.client
import http.server
import io
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import psutil
from PIL import Image

from benchmarks.drills.page_load import END_SECONDS, ask, burst, connect, server, summary, upload
from benchmarks.drills.tiny_model import write_tiny_model
from serving.gate import API

MAX_GROWTH_MB = 20
SMALL = (
    "mesh.resolution=16", "mesh.texture_size=32", "turntable.frames=2", "turntable.size=16",
    "turntable.samples.coarse=8", "turntable.samples.fine=0",
)  # fmt: skip
STRANGERS = (
    ("POST", f"{API}/run-history/connect"), ("GET", f"{API}/run-history/buckets"),
    ("GET", f"{API}/run-history/records"), ("GET", f"{API}/runs"), ("GET", f"{API}/token"),
    ("GET", f"{API}/proxy=https://a-space.hf.space/"), ("GET", f"{API}/file=http://127.0.0.1:9/a"),
    ("GET", f"{API}/file=HTTPS://example.com/a"), ("GET", f"{API}/file=/etc/hostname"),
    ("GET", f"{API}/file=../../etc/hostname"), ("GET", "/monitoring"), ("POST", f"{API}/process_recording"),
    ("POST", f"{API}/component_server"), ("POST", f"{API}/vibe-edit"), ("POST", "/login"),
    ("PUT", f"{API}/queue/join"), ("GET", "/whatever/comes/next"),
)  # fmt: skip


@dataclass
class Findings:
    """What a drill saw: lines for people, and what should not have been."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def tell(self, what: str, words: str, good: bool) -> None:
        """Prints and keeps one finding."""
        self.lines.append(f"{what}: {words.strip()[:200]}")
        print(("" if good else "PROBLEM ") + self.lines[-1], flush=True)
        if not good:
            self.problems.append(self.lines[-1])


def routes(app: Any) -> set[tuple[str, str]]:
    """Every method and address of a FastAPI app, those of its parts too."""
    found = set()
    for route in app.routes:
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(inner, "routes"):
            found |= {(method, getattr(route, "path", "") + path) for method, path in routes(inner)}
        found |= {(method, route.path) for method in getattr(route, "methods", None) or ()}
    return found


def get(url: str, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    """One request as it is written; returns the status and the text."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        headers = {"Content-Type": "application/json", "X-Gradio-History-Bucket": "me/bucket"}
        connection.request(method, quote(path, safe="/:=?&"), body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(10_000).decode(errors="replace")
    finally:
        connection.close()


@contextmanager
def fake_hub() -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine: its address, and what it was asked."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@contextmanager
def page(model: Path, home: Path, hub: str) -> Iterator[tuple[str, psutil.Process]]:
    """The page in a process of its own, whose home and temporary folder are `home`."""
    (home / "tmp").mkdir(parents=True)
    environment = {
        "HOME": str(home), "TMPDIR": str(home / "tmp"), "HF_ENDPOINT": hub, "HF_TOKEN": "hf_owner",
        "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    with server(model, SMALL, environment) as served:
        yield served


def strangers(url: str, found: Findings) -> None:
    """Addresses that act for strangers or tell of other files."""
    for method, path in STRANGERS:
        status, words = get(url, method, path, b'{"bucket_id": "me/bucket"}' if method == "POST" else None)
        found.tell(f"{method} {path}", f"{status} {words}", status in (403, 404) and "detail" in words)


def picture(number: int) -> bytes:
    """A small PNG that no other number has."""
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


def slow_upload(url: str) -> tuple[float, str]:
    """An upload that stops coming; returns after how many seconds it was ended, and the words."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=60) as connection:
        lines = [
            f"POST {API}/upload HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 5000000",
            "Content-Type: multipart/form-data; boundary=e", "", "--e", "",
        ]  # fmt: skip
        connection.sendall("\r\n".join(lines).encode())
        words = b"".join(iter(lambda: connection.recv(4096), b"")).decode(errors="replace")
    return time.monotonic() - start, words.partition("\r\n\r\n")[2]


def uploads(url: str, home: Path, found: Findings, *, count: int) -> None:
    """Many pictures, a stalled one, a long one, and addresses that one might guess."""
    addresses = {upload(url, f"{number}.png", picture(number))[1] for number in range(count)}
    same = {upload(url, "same.png", picture(0))[1] for _ in range(2)}
    found.tell("the same picture twice", f"{len(same)} addresses", len(same) == 2 and len(addresses) == count)
    seconds, words = slow_upload(url)
    found.tell(
        "a stalled upload", f"ended after {seconds:.0f} s: {words}", seconds < 30 and "given up" in words
    )
    data = io.BytesIO()
    Image.new("1", (500_000, 30)).save(data, "PNG")
    _, text = upload(url, "long.png", data.getvalue())
    path = text.strip('[]"\n ')
    try:
        words = str(ask(connect(url), "", 0, image={"path": path, "meta": {"_type": "gradio.FileData"}}))
    except Exception as error:  # any: it is judged by what it says
        words = str(error)
    found.tell("a picture of 500,000 x 30", words, "a side" in words)


def cleaner(url: str, home: Path, found: Findings) -> None:
    """Deletes what lies in the page's temporary folder, as cleaners do; the same prompt must work again."""
    (folder,) = (home / "tmp").glob("shapeloom-page-*")
    client = connect(url)
    before = ask(client, "a red chair", 1)
    for taken in (next((folder / "objects").rglob("*.gif")), folder / "objects", folder):
        shutil.rmtree(taken) if taken.is_dir() else taken.unlink()
        again = ask(client, "a red chair", 1)
        good = Path(again[-1]).name == Path(before[-1]).name
        found.tell(f"a cleaner took {taken.name[:14]}", "the same prompt is made again", good)
    words = upload(url, "a.png", picture(1))[1]
    found.tell("an upload after it", words, words.startswith("["))


def end(process: psutil.Process, home: Path, found: Findings) -> None:
    """SIGTERM, and what it leaves."""
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=END_SECONDS)
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    left += [str(path.relative_to(home)) for path in (home / "tmp").iterdir()]
    words = f"ended after {time.monotonic() - start:.1f} s with status {status}, left {left or 'nothing'}"
    found.tell("SIGTERM", words, status == 0 and not left)


def drill(model: Path, home: Path, *, requests: int, clients: int, num_uploads: int) -> Findings:
    """All of it; `home` is empty."""
    found = Findings()
    with fake_hub() as (hub, asked), page(model, home, hub) as (url, process):
        strangers(url, found)
        first = 0
        for number in range(3):
            answers = burst(url, requests=requests, clients=clients, first_seed=1000 * number)
            memory = process.memory_info().rss >> 20
            first = first or memory
            fine = all(answer.latent is not None or answer.is_polite for answer in answers)
            found.tell(f"round {number + 1}", f"{summary(answers)}; memory {memory} MB", fine)
        uploads(url, home, found, count=num_uploads)
        growth = (process.memory_info().rss >> 20) - first
        what = f"memory after the rounds and {num_uploads} uploads"
        found.tell(what, f"{growth:+d} MB since the first round", growth <= MAX_GROWTH_MB)
        cleaner(url, home, found)
        end(process, home, found)
        found.tell("the fake hub", f"was asked {asked or 'nothing'}", not asked)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.page", description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="a run or saved pipeline folder; none: a tiny untrained one"
    )
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--uploads", type=int, default=200)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="drill-") as name:
        model = options.model or write_tiny_model(Path(name, "model"))
        counts = {"requests": options.requests, "clients": options.clients, "num_uploads": options.uploads}
        found = drill(model.resolve(), Path(name, "home"), **counts)
    print(f"{len(found.lines)} drills, {len(found.problems)} problems")
    raise SystemExit(bool(found.problems))


if __name__ == "__main__":
    main()
