"""Hosts as network namespaces: three that train as one, a cable that is pulled, a folder that isn't shared.

    sudo make drill-cluster

Each host has its own network, name and /etc/hosts, with Debian's habit of calling itself 127.0.1.1. It needs
root, `ip` and `unshare`; leaves nothing behind. A small training runs on them by launch/torchrun.sh.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HOSTS = {"loom-a": "10.77.0.1", "loom-b": "10.77.0.2", "loom-c": "10.77.0.3"}
PAIR = ("loom-a", "loom-b")
BRIDGE = "loom-br"
PORT = "29477"
MODULE = "tests.shapeloom.line_training"


def run(*words: str) -> None:
    """Runs a command that must succeed."""
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def network() -> Iterator[None]:
    """A namespace a host, on a bridge."""
    try:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "link", "set", BRIDGE, "up")
        for host, address in HOSTS.items():
            cable = f"{host}-0"
            run("ip", "netns", "add", host)
            run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host)
            run("ip", "link", "set", cable, "master", BRIDGE, "up")
            for words in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                run("ip", "-n", host, *words.split())
            folder = Path("/etc/netns", host)
            folder.mkdir(parents=True)
            others = "".join(f"{where} {name}\n" for name, where in HOSTS.items() if name != host)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host}\n{others}")
        yield
    finally:
        for host in HOSTS:
            for left in (["netns", "del", host], ["link", "del", f"{host}-0"]):
                subprocess.run(["ip", *left], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns", host), ignore_errors=True)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)


def start(
    host: str, out: Path, log: Path, *, before: str = "true", nodes: str = "1:2", processes: int = 1,
    **settings: float,
) -> subprocess.Popen:  # fmt: skip
    """The training on one host; before: a shell's command to run there first, in its own mount namespace."""
    line = f"hostname {host}; {before}; exec bash launch/torchrun.sh {MODULE} {out} '{json.dumps(settings)}'"
    own = {"NNODES": nodes, "NPROC": str(processes), "MASTER_PORT": PORT, "MASTER_ADDR": HOSTS["loom-a"]}
    own |= {"OMP_NUM_THREADS": "1", "VENV": sys.prefix, "LAST_CALL": "20"}
    words = ["ip", "netns", "exec", host, "unshare", "--uts", "--mount", "bash", "-c", line]
    with log.open("w") as file:
        return subprocess.Popen(words, env={**os.environ, **own}, stderr=file, stdout=file)


def wait_for(condition: Path, processes: list[subprocess.Popen], seconds: float) -> None:
    """Until a file is there; RuntimeError if it never comes."""
    end = time.monotonic() + seconds
    while not condition.exists():
        if time.monotonic() > end or all(process.poll() is not None for process in processes):
            raise RuntimeError(f"{condition} never came")
        time.sleep(0.1)


def losses(out: Path) -> list[float]:
    """What the run has logged."""
    return [json.loads(line)["train/loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def pulled_cable(folder: Path) -> list[str]:
    """What is wrong after host b's cable was pulled: a is to go on alone, to the same losses."""
    out, logs = folder / "cable", {host: folder / f"cable-{host}.log" for host in PAIR}
    both = [start(host, out, log, seconds=0.5, steps=40) for host, log in logs.items()]
    wait_for(out / "state" / "latest", both, 300)
    two = "2 process(es)" in logs["loom-a"].read_text()
    run("ip", "link", "set", "loom-b-0", "down")
    pulled = time.monotonic()
    told = None
    while both[0].poll() is None:
        if told is None and "no sign of life" in logs["loom-a"].read_text():
            told = time.monotonic() - pulled
        time.sleep(0.1)
    took = time.monotonic() - pulled
    both[1].kill()
    both[1].wait()
    run("ip", "link", "set", "loom-b-0", "up")
    alone = folder / "alone"
    start("loom-a", alone, folder / "alone.log", steps=40).wait()
    text, worst = logs["loom-a"].read_text(), float("inf")
    if both[0].returncode == 0:
        worst = max(abs(a - b) for a, b in zip(losses(out), losses(alone), strict=True))
    said = "never" if told is None else f"after {told:.0f} s"
    sys.stdout.write(f"cable: told {said}, done alone after {took:.0f} s; losses differ by {worst:.1e}\n")
    found = [] if two else ["the two hosts never trained together"]
    found += [] if told is not None and told < 60 else [f"the silent host was told {said}, not within 60 s"]
    found += [] if "resuming line at step" in text else ["host a didn't resume"]
    return found + ([] if worst < 1e-5 else [f"host a's losses differ by {worst:.1e}"])


def unshared_folder(folder: Path) -> list[str]:
    """What is wrong where host b sees a disk of its own in the place of --out."""
    out, logs = folder / "mine", {host: folder / f"mine-{host}.log" for host in PAIR}
    out.mkdir()
    before = {"loom-a": "true", "loom-b": f"mount -t tmpfs none {out}"}
    begun = time.monotonic()
    os.environ["MAX_RESTARTS"] = "0"
    both = [start(host, out, log, before=before[host]) for host, log in logs.items()]
    codes = [process.wait() for process in both]
    del os.environ["MAX_RESTARTS"]
    sys.stdout.write(f"folder: both ended after {time.monotonic() - begun:.0f} s with exit codes {codes}\n")
    text = logs["loom-a"].read_text()
    found = [] if codes == [2, 2] else [f"exit codes {codes} in place of 2, 2"]
    if "loom-b" not in text or "isn't the folder that the main process" not in text:
        found.append("host a doesn't say that loom-b has another folder")
    return found


def three_hosts(folder: Path) -> list[str]:
    """What is wrong on three hosts: losses and weights are to be those of three processes on one."""
    out, one, settings = folder / "three", folder / "one", {"steps": 20, "batch_size": 12}
    begun = time.monotonic()
    all_three = [start(host, out, folder / f"{host}.log", nodes="3", **settings) for host in HOSTS]
    codes = [process.wait() for process in all_three]
    took = time.monotonic() - begun
    codes.append(start("loom-a", one, folder / "one.log", nodes="1", processes=3, **settings).wait())
    if any(codes):
        return [f"exit codes {codes} of three hosts and of one"]
    together = all("3 process(es)" in (folder / name).read_text() for name in ("loom-a.log", "one.log"))
    same = losses(out) == losses(one)
    weights = [(where / "weights.safetensors").read_bytes() for where in (out, one)]
    sys.stdout.write(
        f"three: {took:.0f} s; losses {'equal' if same else 'DIFFER'}, weights "
        f"{'equal byte for byte' if weights[0] == weights[1] else 'DIFFER'} to three processes on one host\n"
    )
    found = [] if together else ["three processes never trained together"]
    return found + ([] if same and weights[0] == weights[1] else ["three hosts train otherwise than one"])


def run_drills(description: str | None, *drills: Callable[[Path], list[str]]) -> None:
    """The command of drills among the hosts: each returns what went otherwise than promised."""
    argparse.ArgumentParser(description=description).parse_args()
    if os.geteuid() != 0 or not shutil.which("ip"):
        sys.exit("error: this drill makes network namespaces, so it needs root and `ip` (Debian: iproute2).")
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    with network():
        problems = [problem for drill in drills for problem in drill(folder)]
    if problems:
        sys.exit(f"error: {'; '.join(problems)}. The logs are in {folder}.")
    shutil.rmtree(folder)
    sys.stdout.write("as promised\n")


if __name__ == "__main__":
    run_drills(__doc__, three_hosts, unshared_folder, pulled_cable)
