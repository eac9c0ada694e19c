"""Joining the process group where other programs use ports too."""

import subprocess
import sys

import pytest
from torch.distributed.run import parse_args

from shapeloom import torchrun

SCRIPT = """
import os, socket
from shapeloom import distributed

taken = socket.create_server(("", 0))
ports = iter([taken.getsockname()[1], distributed.free_port()])
distributed.free_port = lambda: next(ports)
os.environ["MASTER_PORT"] = str(taken.getsockname()[1])  # as a parent process may leave it
print(distributed.start().size, os.environ["MASTER_PORT"] != str(taken.getsockname()[1]))
"""

LIMITS = """
import torch
from shapeloom import distributed

distributed.start(hang_seconds=100)
groups = [torch.distributed.group.WORLD, torch.distributed.new_group([0])]
print([group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups])
"""


def test_collectives_give_up_after_the_longest_step_in_groups_that_others_make_too() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITS], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[160.0, 160.0]", done.stderr[-2000:]


def test_a_process_alone_exchanges_a_port_that_is_taken() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["1", "True"]


@pytest.mark.parametrize(
    ("endpoint", "own", "is_host", "told"),
    [
        ("10.0.0.1:29400", "10.0.0.1", True, "10.0.0.1"),  # here, though the own name is 127.0.1.1
        ("10.0.0.1:29400", "10.0.0.2", False, "10.0.0.2"),
        ("127.0.1.1:29400", "127.0.0.1", True, None),  # by its own name, which the others know better
    ],
)
def test_torchrun_knows_where_the_machines_meet(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, own: str, is_host: bool, told: str | None
) -> None:
    monkeypatch.setattr(torchrun, "own_address", lambda towards: own)
    words = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-conf", "last_call_timeout=5", "x"]
    arguments = parse_args(words)
    torchrun.tell_place(arguments)
    assert arguments.rdzv_conf == f"last_call_timeout=5,is_host={is_host}" and arguments.local_addr == told
