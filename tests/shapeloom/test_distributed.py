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


def test_a_process_alone_exchanges_a_port_that_is_taken() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["1", "True"]
