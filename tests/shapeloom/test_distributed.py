"""Joining the process group where other programs use ports too."""

import subprocess
import sys

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
