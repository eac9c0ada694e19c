"""Ray clusters that want a token are joined with it, and those without one as before."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    print("joined:", len(ray.nodes()), "node")
except UserError as error:
    print("UserError:", error)
"""
# Clusters of no cores start no workers: that tasks run, tests/data_prep/test_ray.py shows.
RAY_START = [
    sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false",
    "--no-monitor", "--num-cpus=0", "--object-store-memory=80000000", "--disable-usage-stats",
]  # fmt: skip
RAY_INIT = """
import ray, sys, time
ray.init("local", num_cpus=0, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
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
    # Ray knocks 20 times, once a second, where it isn't let in.
    known = environment(home, RAY_ADDRESS=address, RAY_NUM_REDIS_GET_RETRIES="2", **variables)
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


def test_a_cluster_that_wants_a_token_is_joined_with_it_alone(tmp_path: Path) -> None:
    """One of `ray.init`, which makes a token up and leaves it in the home folder."""
    home, elsewhere, noted = tmp_path / "home", tmp_path / "elsewhere", tmp_path / "address"
    with running([sys.executable, "-c", RAY_INIT, str(noted)], environment(home)):
        wait_until(lambda: noted.exists() and bool(noted.read_text()))
        address, token = noted.read_text(), (home / ".ray" / "auth_token").read_text().strip()
        with ThreadPoolExecutor() as pool:  # importing torch takes each long enough
            by_file = pool.submit(join, address, home)
            by_variable = pool.submit(join, address, elsewhere, RAY_AUTH_TOKEN=token)
            told = join(address, elsewhere)
        assert "joined: 1 node" in by_file.result() and "joined: 1 node" in by_variable.result()
        assert "UserError: Ray's cluster can't be joined" in told and "no token was shown" in told
        assert "RAY_AUTH_TOKEN here" in told
        assert not (elsewhere / ".ray").exists()


def test_a_cluster_that_wants_no_token_is_joined_with_that_of_another(tmp_path: Path) -> None:
    port = free_port()
    with running([*RAY_START, f"--port={port}"], environment(tmp_path / "theirs")):
        wait_until(lambda: listens(port))
        assert "joined: 1 node" in join(f"127.0.0.1:{port}", tmp_path / "home", RAY_AUTH_TOKEN=TOKEN)
