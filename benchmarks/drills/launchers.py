"""Launchers as they are installed, on two hosts that are network namespaces of this machine.

    sudo make drill-cluster; this part alone: python -m benchmarks.drills.launchers [ssh] [requeue] [pipeline]

ssh: DeepSpeed's launcher over sshd. requeue: a job of Slurm's meets its time limit, saves, is queued again
and goes on, until it is done. pipeline: launch/pipeline_slurm.sh at CONFIG=smoke, sampling in two shards. It
needs root and Debian's packages iproute2, openssh-server, slurm-wlm and munge, of which no daemon need be
running. All runs in a folder of its own, and nothing is left behind.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.drills.cluster import MODULE, PAIR, losses, network

PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "slurmd": "slurm-wlm", "munged": "munge"}
STEPS = 200
SETTINGS = f'{{"steps": {STEPS}, "seconds": 0.5}}'
SLURM = """
ClusterName=drill
SlurmctldHost=loom-a(10.77.0.1)
SlurmUser=root
# A job is queued again once its credential has expired: 120 seconds by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/ctld
SlurmctldPidFile={folder}/ctld.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
NodeName=loom-a NodeAddr=10.77.0.1 CPUs=64
NodeName=loom-b NodeAddr=10.77.0.2 CPUs=64
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""
SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
"""
SSH = """
IdentityFile {folder}/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def on_host(
    host: str, *words: str, own: Mapping[str, str] | None = None, **options: object
) -> subprocess.Popen:
    """Starts a command on a host. own: more of its environment."""
    line = f'hostname {host}; exec "$@"'
    inside = ["ip", "netns", "exec", host, "unshare", "--uts", "bash", "-c", line, "-", *words]
    return subprocess.Popen(inside, env={**os.environ, **(own or {})}, **options)  # type: ignore[call-overload]


@contextmanager
def running(*processes: subprocess.Popen) -> Iterator[None]:
    """Ends daemons."""
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def answer(host: str, own: Mapping[str, str], *words: str) -> str:
    """What a command on a host says; RuntimeError if it fails."""
    process = on_host(host, *words, own=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {told}")
    return str(told)


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Until it holds; RuntimeError if it never does."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} not within {seconds:.0f} s")
        time.sleep(1)


def alone(folder: Path) -> list[float]:
    """The losses of one process."""
    words = [sys.executable, "-m", MODULE, str(folder / "alone"), f'{{"steps": {STEPS}}}']
    subprocess.run(words, check=True, capture_output=True)
    return losses(folder / "alone")


def differing(out: Path, folder: Path) -> list[str]:
    """What is wrong with a run's losses."""
    worst = max(abs(a - b) for a, b in zip(losses(out), alone(folder), strict=True))
    return [] if worst < 1e-5 else [f"the losses of {out} differ by {worst:.1e}"]


# ---------------------------------------------------------------- ssh


def over_ssh(folder: Path) -> list[str]:
    """DeepSpeed's launcher, both hosts by their names."""
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd.conf").write_text(SSHD.format(folder=folder))
    (folder / "ssh.conf").write_text(SSH.format(folder=folder))
    (folder / "bin").mkdir()
    # The user's own ~/.ssh stays as it is.
    (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh.conf "$@"\n')
    (folder / "bin/ssh").chmod(0o755)
    (folder / "hosts").write_text("".join(f"{host} slots=1\n" for host in PAIR))
    Path("/run/sshd").mkdir(exist_ok=True)
    own = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}", "HOSTFILE": f"{folder}/hosts", "VENV": sys.prefix,
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "FORWARD": "PYTHONPATH", "LAUNCHER": "ssh",
    }  # fmt: skip
    daemons = [on_host(host, str(shutil.which("sshd")), "-D", "-f", f"{folder}/sshd.conf") for host in PAIR]
    began = time.monotonic()
    with running(*daemons):
        words = ("bash", "launch/deepspeed.sh", MODULE, f"{folder}/by_ssh", f'{{"steps": {STEPS}}}')
        told = answer("loom-a", own, *words)
    both = "2 process(es)" in told
    sys.stdout.write(f"ssh: {'two processes' if both else 'one process'}, {time.monotonic() - began:.0f} s\n")
    return ([] if both else ["the two hosts never trained together"]) + differing(folder / "by_ssh", folder)


# ---------------------------------------------------------------- Slurm


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """slurmctld on the first host, slurmd on both; yields the environment in which commands find them."""
    (folder / "slurm.conf").write_text(SLURM.format(folder=folder))
    # A namespace's own /sys has no control groups, which nothing here needs.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    folder.chmod(0o755)  # others must reach the socket, or munged won't start
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--foreground", "--force"]
    munged += [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    own = {"SLURM_CONF": f"{folder}/slurm.conf", "VENV": sys.prefix, "PYTHONPATH": os.getcwd()}
    own |= {"OMP_NUM_THREADS": "1", "SBATCH_OUTPUT": f"{folder}/%x-%j.log"}
    with (folder / "daemons.log").open("w") as log, running(subprocess.Popen(munged, stdout=log, stderr=log)):
        wait_until((folder / "munge.socket").exists, 30, "munged was ready")
        (folder / "ctld").mkdir()
        daemons = [on_host("loom-a", "slurmctld", "-D", own=own, stdout=log, stderr=log)]
        daemons += [on_host(host, "slurmd", "-D", own=own, stdout=log, stderr=log) for host in PAIR]
        with running(*daemons):
            wait_until(lambda: _idle(own) == len(PAIR), 60, "Slurm's hosts were ready")
            try:
                yield own
            finally:
                answer("loom-a", own, "scancel", "--user", "root")
                wait_until(lambda: not answer("loom-a", own, "squeue", "--noheader"), 60, "all jobs ended")


def _idle(own: Mapping[str, str]) -> int:
    try:
        return int(
            answer("loom-a", own, "sinfo", "--noheader", "--states", "idle", "--format", "%D").split()[0]
        )
    except (RuntimeError, IndexError, ValueError):
        return 0


def finish(jobs: list[str], own: Mapping[str, str], seconds: float) -> dict[str, dict[str, str]]:
    """Waits until no job is left to run; returns what Slurm says of each."""

    def told() -> dict[str, dict[str, str]]:
        texts = {job: answer("loom-a", own, "scontrol", "--oneliner", "show", "job", job) for job in jobs}
        return {job: dict(re.findall(r"(\S+?)=(\S*)", text)) for job, text in texts.items()}

    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    wait_until(lambda: all(each["JobState"] in over for each in told().values()), seconds, "all jobs ended")
    return told()


def requeued(folder: Path, own: Mapping[str, str]) -> list[str]:
    """What is wrong with a training of over 100 seconds on two hosts, under a time limit of two minutes.

    Slurm may send its signal a minute early.
    """
    asked = "--nodes 2 --ntasks-per-node 1 --gpus-per-node 0 --cpus-per-task 1 --time 2 --signal TERM@5"
    out, began = folder / "requeued", time.monotonic()
    words = ("sbatch", "--parsable", *asked.split(), "launch/slurm.sbatch", MODULE, str(out), SETTINGS)
    job = answer("loom-a", own, *words).strip()
    facts = finish([job], own, 1200)[job]
    log = (folder / f"shapeloom-{job}.log").read_text()
    resumed = re.findall(r"resuming line at step (\d+)", log)
    sys.stdout.write(
        f"requeue: {facts['JobState']} after {time.monotonic() - began:.0f} s; queued again "
        f"{facts['Restarts']} times, went on at steps {', '.join(dict.fromkeys(resumed))}\n"
    )
    found = [] if facts["JobState"] == "COMPLETED" else [f"the job ended as {facts['JobState']}"]
    found += [] if "2 process(es)" in log else ["the two hosts never trained together"]
    found += [] if int(facts["Restarts"]) and resumed else ["the job was never queued again and went on"]
    return found + (differing(out, folder) if not found else [])


def pipeline(folder: Path, own: Mapping[str, str]) -> list[str]:
    """What is wrong with the whole pipeline as jobs."""
    (folder / "prompts.txt").write_text("a red chair\na green chair\na blue chair\n")
    given = {"CONFIG": "smoke", "RUN": f"{folder}/run", "GPUS": "0", "CORES": "2", "SHARDS": "2", "NUM": "3"}
    given["PROMPTS"] = f"{folder}/prompts.txt"
    began = time.monotonic()
    answer("loom-a", {**own, **given}, "bash", "launch/pipeline_slurm.sh")
    jobs = answer("loom-a", own, "squeue", "--noheader", "--format", "%A").split()
    facts = finish(sorted(set(jobs), key=int), own, 3600)
    said = [f"{each['JobName']} {each['JobState']} {each['RunTime']}" for each in facts.values()]
    sys.stdout.write(f"pipeline: after {time.monotonic() - began:.0f} s {'; '.join(said)}\n")
    found = [
        f"{each['JobName']} {each['JobState']}" for each in facts.values() if each["JobState"] != "COMPLETED"
    ]
    made = (folder / "run/report.html", folder / "run/metrics.json", folder / "run/samples/metadata.json")
    return found + [f"there is no {path}" for path in made if not path.is_file()]


def main() -> None:
    """Runs the drills."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drills.launchers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("parts", nargs="*", choices=["ssh", "requeue", "pipeline", []], help="none: all")
    parts = parser.parse_args().parts or ["ssh", "requeue", "pipeline"]
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command)]
    if os.geteuid() != 0 or missing:
        sys.exit(
            f"error: this drill needs root and {', '.join(missing or PACKAGES.values())} (Debian's packages)."
        )
    folder = Path(tempfile.mkdtemp(prefix="drill-launchers-"))
    problems = []
    with network():
        if "ssh" in parts:
            problems += over_ssh(folder)
        if {"requeue", "pipeline"} & set(parts):
            with slurm(folder) as own:
                for part in (requeued, pipeline):
                    if part.__name__[:7] in " ".join(parts):
                        problems += part(folder, own)
    if problems:
        sys.exit(f"error: {'; '.join(problems)}. All logs are in {folder}.")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
