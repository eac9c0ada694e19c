"""Object storage: two hosts of two processes train on data in an emulation of S3, each with its own cache.

    sudo make drill-cluster; this part alone: python -m benchmarks.drills.storage

The hosts are network namespaces, and moto answers for S3 on the first one. Losses and weights must be those
of four processes on one host that read the data from a folder, and each host must fetch each shard once.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.drills.cluster import HOSTS, PAIR, PORT, run_drills
from benchmarks.drills.kill_training import DATA_KEY, MODULES, SETTINGS, curve
from benchmarks.drills.launchers import on_host, running, wait_until
from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from data_prep.procedural.dataset import ProceduralConfig
from shapeloom.shards import list_shards
from shapeloom.storage import parse_path

S3 = f"http://{HOSTS['loom-a']}:5000"
ACCESS = {
    "AWS_ENDPOINT_URL": S3, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip
UPLOAD = """
import sys
from shapeloom.storage import parse_path
url = parse_path(sys.argv[2])
url.fs.mkdir("drill")
url.fs.put(sys.argv[1], url.path, recursive=True)
"""


def train(host: str, nodes: int, processes: int, data: str, out: Path) -> subprocess.Popen:
    """A small encoder's training by launch/torchrun.sh on one host."""
    scratch = out.with_name(f"tmp-{host}-{nodes}")  # where shards are kept
    scratch.mkdir()
    own = {
        **ACCESS, "NNODES": str(nodes), "NPROC": str(processes), "MASTER_ADDR": HOSTS["loom-a"],
        "MASTER_PORT": PORT, "OMP_NUM_THREADS": "1", "VENV": sys.prefix, "LAST_CALL": "20",
        "TMPDIR": str(scratch), "PYTHONPATH": os.getcwd(),
    }  # fmt: skip
    settings = [f"{DATA_KEY['encoder']}={data}", *SETTINGS["encoder"], "train.steps=12"]
    words = ["bash", "launch/torchrun.sh", MODULES["encoder"], "--out", str(out), "--set", *settings]
    with out.with_name(f"{host}-{nodes}.log").open("w") as log:
        return on_host(host, *words, own=own, stdout=log, stderr=log)


def fetched(log: str) -> Counter[tuple[str, str]]:
    """How often each host asked for each shard, by the emulation's log."""
    return Counter(re.findall(r'^(\S+) .*"GET /\S+/(\d+\.tar)\b', log, flags=re.MULTILINE))


def trained_from_s3(folder: Path) -> list[str]:
    """What is wrong with a training on two hosts from S3."""
    few = ProceduralConfig(num_train=12, num_val=2, num_test=1, num_judge=1)
    config = DataConfig(
        procedural=few, num_views=4, resolution=16, num_points=512, num_sdf=512, shard_size=4, workers=0
    )
    data, log, begun = folder / "data", folder / "s3.log", time.monotonic()
    prepare(config, data)
    with log.open("w") as file:
        serve = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "5000"]
        server = on_host("loom-a", *serve, stdout=file, stderr=file)
    with running(server):
        wait_until(lambda: "Running on" in log.read_text(), 120, "the emulation of S3 was ready")
        upload = on_host("loom-a", sys.executable, "-c", UPLOAD, str(data), "s3://drill/data", own=ACCESS)
        codes = [upload.wait()]
        before = fetched(log.read_text())
        both = [train(host, 2, 2, "s3://drill/data", folder / "from_s3") for host in PAIR]
        codes += [process.wait() for process in both]
        asked = fetched(log.read_text()) - before
    codes.append(train("loom-a", 1, 4, str(data), folder / "from_folder").wait())
    if any(codes):
        return [f"exit codes {codes} of the upload, two hosts and one"]
    one, two = folder / "from_folder", folder / "from_s3"
    same = curve(one) == curve(two)
    same &= (one / "weights.safetensors").read_bytes() == (two / "weights.safetensors").read_bytes()
    shards = len(list_shards(parse_path(data)))
    sys.stdout.write(
        f"S3: {time.monotonic() - begun:.0f} s; losses and weights {'equal' if same else 'DIFFER'}; of "
        f"{shards} shards {dict(Counter(host for host, _ in asked))} were fetched, each at most "
        f"{max(asked.values(), default=0)} time(s) a host\n"
    )
    found = [] if same else ["training from S3 differs from training from a folder"]
    if {host for host, _ in asked} != {HOSTS[host] for host in PAIR} or max(asked.values()) > 1:
        found.append(f"shards were fetched as {dict(asked)}")
    return found


if __name__ == "__main__":
    run_drills(__doc__, trained_from_s3)
