"""Ray clusters that want a token are joined with it, and those without one as before."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")
TOKEN = "0123456789abcdef" * 4
JOIN = """
from shapeloom.config import UserError
from shapeloom.executors import _join_cluster

try:
    ray = _join_cluster()
    print("answer:", ray.get(ray.remote(lambda: 6 * 7).remote()))
except UserError as error:
    print("UserError:", error)
"""
RAY_START = [
    sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false",
    "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats",
]  # fmt: skip
RAY_INIT = """
import ray, sys, time
ray.init("local", num_cpus=1, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
open(sys.argv[1], "w").write(ray.get_runtime_context().gcs_address)
time.sleep(600)
"""


def environment(home: Path, **variables: str) -> dict[str, str]:
    """This process's, without anything of Ray's, with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    home.mkdir(exist_ok=True)
    return kept | {"HOME": str(home), "PYTHONPATH": os.getcwd(), "RAY_USAGE_STATS_ENABLED": "0"} | variables


def join(address: str, home: Path, **variables: str) -> str:
    """What a program that joins the cluster says."""
    known = environment(home, RAY_ADDRESS=address, **variables)
    command = [sys.executable, "-c", JOIN]
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


@contextmanager
def running(command: list[str], known: dict[str, str]) -> Iterator[None]:
    # Its sockets, whose names must be short, and its note of the latest cluster.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    known = known | {"RAY_TMPDIR": folder}
    process = subprocess.Popen(command, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in family:
            member.kill()
        psutil.wait_procs(family[:-1], timeout=30)
        process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(ready: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "the cluster didn't start"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_cluster_of_ray_start_is_joined_with_its_token_or_without_one_if_it_wants_none(
    tmp_path: Path,
) -> None:
    home, port = tmp_path / "home", free_port()
    command = [*RAY_START, f"--port={port}"]
    address = f"127.0.0.1:{port}"
    with running(command, environment(tmp_path / "theirs", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)):
        wait_until(lambda: listens(port))
        assert "answer: 42" in join(address, home, RAY_AUTH_TOKEN=TOKEN)
        told = join(address, home)
        assert "UserError: Ray's cluster can't be joined" in told and "no token was shown" in told
        assert "RAY_AUTH_TOKEN here" in told
        assert not (home / ".ray").exists()
    with running(command, environment(tmp_path / "theirs")):
        wait_until(lambda: listens(port))
        assert "answer: 42" in join(address, home, RAY_AUTH_TOKEN=TOKEN)  # that of another cluster


def test_a_cluster_of_ray_init_is_joined_by_the_token_that_it_left_in_the_home_folder(tmp_path: Path) -> None:
    home, address = tmp_path / "home", tmp_path / "address"
    with running([sys.executable, "-c", RAY_INIT, str(address)], environment(home)):
        wait_until(lambda: address.exists() and bool(address.read_text()))
        assert (home / ".ray" / "auth_token").is_file()
        assert "answer: 42" in join(address.read_text(), home)
