"""How the processes of a run find one another: what launchers tell them, who waits for whom, and the group.

torchrun, DeepSpeed's launcher and Slurm (srun) are recognised by the variables that they set. Every process
says "here" in the group's store before anything else, so that whoever is missing can be named.
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed
import torch.distributed.distributed_c10d as c10d

from shapeloom import cores, watch
from shapeloom.config import UserError
from shapeloom.log import get_logger
from shapeloom.watch import TryAgain, Watch

log = get_logger("joining")
SAY_EVERY_SECONDS = 10.0
JOIN_SECONDS = 1800.0
"""Within which all processes must have come: nodes of a queue start minutes apart."""


@dataclass(frozen=True)
class Arrival:
    """What a process says of itself. main: the address that MASTER_ADDR is to it; own: its own, seen from
    there; number: drawn for this process."""

    host: str
    cores: list[int]
    main: str
    own: str
    number: str


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns torch.distributed's variables where a launcher has other names for them.

    srun's are trusted only within a step: a batch script's own process has most of them too. MASTER_ADDR and
    MASTER_PORT are the job script's to set. DeepSpeed's launcher says LOCAL_SIZE.
    """
    if "RANK" in environment:
        size = environment.get("LOCAL_SIZE")
        return {"LOCAL_WORLD_SIZE": size} if size and "LOCAL_WORLD_SIZE" not in environment else {}
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" not in environment or int(tasks) == 1:
        return {}
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
    }
    if "SLURM_STEP_TASKS_PER_NODE" in environment:
        counts = _expanded(environment["SLURM_STEP_TASKS_PER_NODE"])
        found["LOCAL_WORLD_SIZE"] = str(counts[int(environment["SLURM_NODEID"])])
    return found


def _expanded(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def join(backend: str, *, hang_seconds: float, device: torch.device) -> None:
    """Joins the process group that the environment describes, and begins to watch its other processes.

    hang_seconds: no step may take longer; collectives give up a minute later, in DeepSpeed's own groups too.
    Raises UserError if the environment doesn't say where the main process is, TryAgain if some never come.
    """
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(
                f"{name} isn't set, so this process can't find the others. Set MASTER_ADDR to the first "
                "host and MASTER_PORT to a free port of it on all machines, or start by launch/torchrun.sh, "
                "launch/deepspeed.sh or launch/slurm.sbatch."
            )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = timedelta(seconds=hang_seconds + 60)
    # new_group, by which DeepSpeed makes groups of its own, knows no other place for it.
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timeout
    store = _connect(rank, size)
    session, arrivals = _meet(store, rank, size)
    store = torch.distributed.PrefixStore(session, store)
    here = [other.cores for other in arrivals if other.host == arrivals[rank].host]
    cores.take_share(arrivals[rank].cores, here)
    if backend == "gloo":
        _choose_interface(arrivals, rank)
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" and size > 1 else {}
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timeout, **options
    )
    if size > 1:
        _watch(store, rank, arrivals, hang_seconds)


def _connect(rank: int, size: int) -> torch.distributed.Store:
    address, port, limit = (
        os.environ["MASTER_ADDR"],
        os.environ["MASTER_PORT"],
        timedelta(seconds=JOIN_SECONDS),
    )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's own, of this attempt
        return next(torch.distributed.rendezvous("env://", rank, size, timeout=limit))[0]
    where = f"rank {rank} of {size} on {socket.gethostname()}"
    with _saying(lambda: f"{where} waits for the main process (rank 0) at {address}:{port}"):
        try:
            return torch.distributed.TCPStore(
                address, int(port), size, is_master=rank == 0, timeout=limit, wait_for_workers=False
            )
        except torch.distributed.DistNetworkError as error:
            if rank == 0:
                raise
            raise TryAgain(
                f"{where} could not reach the main process at {address}:{port} ({error}). Is it running "
                "there, can that name and port be reached from here, and is MASTER_PORT the same for all?"
            ) from error


def _meet(store: torch.distributed.Store, rank: int, size: int) -> tuple[str, list[Arrival]]:
    """Returns a name for this meeting, and what every process says of itself, by rank, once all have come.

    After a restart torchrun's store still holds the words of those before. So each process waits until the
    main one repeats its own, which hold a number drawn for it, and the main one until all have agreed.
    """
    main = _address(os.environ["MASTER_ADDR"])
    mine = Arrival(
        socket.gethostname(), cores.affinity(), main, own_address(main), secrets.token_hex(8)
    )  # fmt: skip
    words, session, said = json.dumps(asdict(mine)), secrets.token_hex(8), time.monotonic()
    store.set(f"here/{rank}", words)
    keys, end = [f"here/{other}" for other in range(size)], said + JOIN_SECONDS
    while time.monotonic() < end:
        if rank == 0 and store.check(keys):
            store.set("all", json.dumps([session, [store.get(key).decode() for key in keys]]))
            if store.check([f"agreed/{session}/{other}" for other in range(1, size)] or keys):
                store.set(f"go/{session}", "")
        if store.check(["all"]):
            name, found = json.loads(store.get("all"))
            if len(found) == size and found[rank] == words:
                store.set(f"agreed/{name}/{rank}", "")
                if store.check([f"go/{name}"]):
                    return name, [Arrival(**json.loads(each)) for each in json.loads(store.get("all"))[1]]
        # The main process speaks for all: it is the one whose log is read.
        if rank == 0 and time.monotonic() - said > SAY_EVERY_SECONDS:
            said = time.monotonic()
            log.warning("%s", _waiting(store, keys))
        time.sleep(0.1)
    raise TryAgain(
        f"Not all processes came within {JOIN_SECONDS / 60:.0f} minutes: {_waiting(store, keys)}. Look at "
        "those machines' logs; is the command running there, with this host's name and port?"
    )


def _waiting(store: torch.distributed.Store, keys: Sequence[str]) -> str:
    here = [store.check([key]) for key in keys]
    missing = [str(rank) for rank, came in enumerate(here) if not came]
    hosts = {json.loads(store.get(key))["host"] for key, came in zip(keys, here, strict=True) if came}
    return (
        f"{sum(here)} of {len(keys)} processes have come (on {', '.join(sorted(hosts))}); waiting for rank "
        f"{', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}"
    )


@contextmanager
def _saying(text: Callable[[], str]) -> Iterator[None]:
    """Says `text` every ten seconds that the block takes."""
    over = threading.Event()

    def say() -> None:
        while not over.wait(SAY_EVERY_SECONDS):
            log.warning("%s", text())

    threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _address(host: str) -> str:
    """The host's IPv4 address; "" if its name isn't known here."""
    with suppress(OSError):
        return socket.gethostbyname(host)
    return ""


def _choose_interface(arrivals: Sequence[Arrival], rank: int) -> None:
    """Names the network that gloo is to use, where it would choose this machine's loopback.

    gloo takes the interface of the host's own name, which Debian calls 127.0.1.1: nobody else reaches that.
    """
    several = len({other.host for other in arrivals}) > 1
    own = _address(socket.gethostname())
    if not several or "GLOO_SOCKET_IFNAME" in os.environ or (own and not own.startswith("127.")):
        return
    known = [other.main for other in arrivals if other.main and not other.main.startswith("127.")]
    name = interface_towards(known[0]) if known else None
    if name is not None:
        log.warning(
            "this host's own name, %s, is %s: using the network interface %s (GLOO_SOCKET_IFNAME)",
            arrivals[rank].host, own or "unknown", name,
        )  # fmt: skip
        os.environ["GLOO_SOCKET_IFNAME"] = name


def own_address(towards: str) -> str:
    """Returns this machine's own IPv4 address in the network by which another one is reached; "" if none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))  # sends nothing
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def interface_towards(address: str) -> str | None:
    """Returns the name of this machine's network interface by which an IPv4 address is reached."""
    own = own_address(address)
    found = psutil.net_if_addrs().items()
    return next((name for name, known in found if any(each.address == own for each in known)), None)


def _watch(
    store: torch.distributed.Store, rank: int, arrivals: Sequence[Arrival], hang_seconds: float
) -> None:
    """Begins this process's watch, over a server of its own, whose readers may be slow."""
    timeout = timedelta(seconds=watch.SILENT_SECONDS)
    if rank == 0:
        mine = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout
        )
        for key, value in watch.first_words(len(arrivals)).items():
            mine.set(key, value)
        store.set("watch", str(mine.port))
    else:
        port, main = int(store.get("watch")), arrivals[0].own
        if not main or main.startswith(
            "127."
        ):  # it is at MASTER_ADDR, which torchrun's first rank may not be
            main = os.environ["MASTER_ADDR"]
        mine = torch.distributed.TCPStore(
            main, port, is_master=False, wait_for_workers=False, timeout=timeout
        )
    watch.current = Watch(
        mine, rank, [other.host for other in arrivals], hang_seconds=hang_seconds, end=watch.end_process
    )
    watch.current.start()
