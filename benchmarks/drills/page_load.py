"""python -m benchmarks.drills.page_load --model RUN [--requests 50] [--clients 10]: the web page under load.

Starts the page in a process of its own. In each round all requests come at once, spread over the clients,
each with a prompt and seed of its own. A request ends served, or refused with the page's words; whatever else
happens to it is a problem, as is an answer that isn't the requested object: the latent that comes back must
be the one that the pipeline makes here of the same prompt and seed (to 1e-4). Prints what became of them, the
latencies and the server's memory after each round; then what hostile requests were answered. The exit status
is 1 if there was any problem.
"""

import argparse
import atexit
import http.client
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import gradio_client
import psutil

from sampling.pipeline import ShapePipeline
from serving.orders import MAX_PROMPT
from serving.page import MAX_WAITING
from serving.studio import KINDS, MAX_UPLOAD_BYTES

PROMPTS = ("a red chair", "a blue table", "a green car", "a yellow house", "an orange mug")
STEPS = 4
TOLERANCE = 1e-4
START_SECONDS, END_SECONDS = 300, 120
"""In which the page must listen, and be gone; on an idle machine it takes a few."""


@dataclass(frozen=True)
class Answer:
    """What became of a request: the path of its latent, or the words of its refusal."""

    prompt: str
    seed: int
    seconds: float
    latent: Path | None
    words: str

    @property
    def is_polite(self) -> bool:
        """Whether a refusal says that the page is busy."""
        return self.latent is None and "queue is full" in self.words.lower()


def free_port() -> int:
    """Returns a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def downloads() -> str:
    """The folder of all visitors' downloads, which goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="shapeloom-client-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # For each download the client leaves an empty folder in the system's temporary one, whatever it is told.
    theirs = SimpleNamespace(gettempdir=lambda: folder, TemporaryDirectory=tempfile.TemporaryDirectory)
    gradio_client.client.tempfile = theirs
    return folder


def connect(url: str) -> gradio_client.Client:
    """Returns a visitor: a session of its own, quiet."""
    return gradio_client.Client(url, verbose=False, download_files=downloads())


def ask(client: gradio_client.Client, prompt: str, seed: int, *, image: Any = None) -> list[Any]:
    """Returns the page's answer to one order: what the view shows, then the files of `KINDS`."""
    values = client.predict(prompt, image, "", seed, STEPS, 3.0, api_name="/make")
    return [value["value"] if isinstance(value, dict) and "value" in value else value for value in values]


def _request(client: gradio_client.Client, prompt: str, seed: int) -> Answer:
    start = time.monotonic()
    latent, words = None, ""
    try:
        latent = Path(ask(client, prompt, seed)[1 + KINDS.index("safetensors")])
    except Exception as error:  # any: it is judged by what it says
        words = f"{type(error).__name__}: {error}"
    return Answer(prompt, seed, time.monotonic() - start, latent, words)


def burst(url: str, *, requests: int, clients: int, first_seed: int) -> list[Answer]:
    """Sends all requests at once, spread over the clients, and waits for the last answer."""
    with ThreadPoolExecutor(clients) as pool:
        visitors = list(pool.map(lambda _: connect(url), range(clients)))
    wanted = [(PROMPTS[i % len(PROMPTS)], first_seed + i) for i in range(requests)]
    with ThreadPoolExecutor(requests) as pool:
        jobs = [
            pool.submit(_request, visitors[i % clients], prompt, seed)
            for i, (prompt, seed) in enumerate(wanted)
        ]
        return [job.result() for job in jobs]


def problems(answers: Sequence[Answer], pipeline: ShapePipeline) -> list[str]:
    """Returns a line for each answer that is neither the right object nor a polite refusal."""
    found = []
    for answer in answers:
        name = f"{answer.prompt!r}, seed {answer.seed}"
        if answer.latent is None:
            if not answer.is_polite:
                found.append(f"{name}: {answer.words}")
            continue
        got = pipeline.load_latent(answer.latent)
        (true,) = pipeline(answer.prompt, seed=answer.seed, steps=STEPS, guidance_scale=3.0)
        off = float((got.latent - true.latent).abs().max())
        if (got.prompt, got.seed) != (answer.prompt, answer.seed) or off > TOLERANCE:
            found.append(f"{name}: got {got.prompt!r}, seed {got.seed}, off by {off:.1e}")
    return found


def summary(answers: Sequence[Answer]) -> str:
    """Returns what became of the requests, in words."""
    served = [answer.seconds for answer in answers if answer.latent is not None]
    polite = sum(answer.is_polite for answer in answers)
    seconds = f"median {statistics.median(served):.1f} s, longest {max(served):.1f} s" if served else "none"
    rest = len(answers) - len(served) - polite
    return f"{len(served)} served ({seconds}), {polite} told that the queue is full, {rest} otherwise"


def upload(url: str, name: str, data: bytes, *, stated: int | None = None) -> tuple[int, str]:
    """Sends one file of a form; returns the status and the text. stated: a size to claim."""
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + data + b"\r\n--edge--\r\n"
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=edge")
    connection.putheader("Content-Length", str(stated or len(body)))
    connection.endheaders()
    connection.send(body)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, text


def hostile(url: str, folder: Path) -> dict[str, tuple[bool, str]]:
    """Sends what nobody should; returns whether each was refused as it should be, and the words."""
    status, text = upload(url, "a.png", b"x" * 1000, stated=1 << 30)
    results = {"a 1 GB upload": (status == 413 and "too large" in text, text)}
    status, text = upload(url, "a.png", b"x" * (MAX_UPLOAD_BYTES + 1000))
    results["an upload just too large"] = (status == 413, text)
    status, text = upload(url, "../../../evil/../.bashrc", b"x")
    results["a path in a file name"] = (status != 200 or ("evil" not in text and ".." not in text), text)
    client = connect(url)
    (folder / "text.png").write_text("no picture at all")
    attempts = {
        "a non-image": (
            "a mug",
            gradio_client.handle_file(str(folder / "text.png")),
            "can't be read as a PNG",
        ),
        "a 100,000-character prompt": ("a" * 100_000, None, f"at most {MAX_PROMPT} characters"),
        "a file of the server's as the picture": ("a mug", {"path": "/etc/passwd"}, ""),
        "a picture by its address": (
            "a mug",
            gradio_client.handle_file("http://127.0.0.1:9/a.png"),
            "not fetched",
        ),
    }
    for name, (prompt, image, words) in attempts.items():
        try:
            results[name] = (False, str(ask(client, prompt, 0, image=image)))
        except Exception as error:  # any: it is judged by what it says
            results[name] = (words in str(error), str(error))
    return results


@contextmanager
def server(
    model: str | Path, settings: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, psutil.Process]]:
    """The page in a process of its own: its address and the process. environment: variables to add."""
    port = free_port()
    options = ["--port", str(port), "--set", f"model={model}", *settings]
    command = [sys.executable, "-m", "serving", *options]
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=variables) as process:
        try:
            _wait_for(port, process)
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until someone listens; raises SystemExit if the process ends, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("the page didn't start")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.page_load", description=__doc__)
    parser.add_argument("--model", required=True, help="a run or saved pipeline folder")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--set", nargs="+", default=[], help="settings of the page, such as mesh.resolution=32"
    )
    options = parser.parse_args(argv)
    found: list[str] = []
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory() as folder, server(options.model, options.set) as (url, process):
        print(f"queue of {MAX_WAITING}; memory at the start {process.memory_info().rss >> 20} MB")
        for number in range(options.rounds):
            some = burst(url, requests=options.requests, clients=options.clients, first_seed=1000 * number)
            memory = process.memory_info().rss >> 20
            print(f"round {number + 1}: {summary(some)}; memory {memory} MB", flush=True)
            answers += some
        for name, (refused, words) in hostile(url, Path(folder)).items():
            print(f"{name}: {words.strip()[:160]}")
            found += [] if refused else [f"{name} was not refused"]
    found += problems(answers, ShapePipeline.from_pretrained(options.model))
    print("".join(f"PROBLEM {problem}\n" for problem in found) or "no problems")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
