"""Two processes of one run: they work in one folder and share one fate."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shapeloom import locks
from shapeloom.config import UserError
from shapeloom.distributed import free_port
from shapeloom.watch import EXIT_AGAIN
from tests.shapeloom.line_training import read_losses, run_line


def start_two(*outs: Path, **settings: float) -> list[subprocess.Popen]:
    """As a launcher on two machines would, each with its own --out."""
    ours = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # this process is a group too
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    commands = [
        [sys.executable, "-m", "tests.shapeloom.line_training", str(out), json.dumps(settings)]
        for out in outs
    ]
    return [
        subprocess.Popen(command, env={**kept, **group, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank, command in enumerate(commands)
    ]


def test_processes_that_do_not_see_one_folder_end_before_they_train(tmp_path: Path) -> None:
    two = start_two(tmp_path / "a", tmp_path / "b")
    told = [process.communicate()[1] for process in two]
    assert [process.returncode for process in two] == [2, 2]
    for text in told:
        assert "isn't the folder that the main process" in text and str(tmp_path / "b") in text
    assert not (tmp_path / "b").exists() and not list((tmp_path / "a").glob("state"))


@pytest.mark.parametrize(("blow", "lost"), [(signal.SIGSTOP, 0), (signal.SIGKILL, 1)])
def test_a_lost_process_ends_the_other_and_the_run_goes_on_alone(
    tmp_path: Path, blow: signal.Signals, lost: int
) -> None:
    out = tmp_path / "run"
    # So long that a busy machine's slow start isn't taken for silence.
    two = start_two(out, out, seconds=0.2, silent_seconds=12.0)
    while not (out / "state" / "latest").is_file() and all(process.poll() is None for process in two):
        time.sleep(0.05)
    time.sleep(1)  # in which the other has heard that it was saved
    two[lost].send_signal(blow)
    text = two[1 - lost].communicate(timeout=60)[1]
    two[lost].kill()
    two[lost].communicate()
    assert two[1 - lost].returncode == EXIT_AGAIN, text
    assert "checkpoint is of step 7" in text and "Traceback" not in text
    assert blow == signal.SIGKILL or f"Rank {lost} on" in text
    np.testing.assert_allclose(run_line(out), run_line(tmp_path / "whole"), rtol=1e-5)
    assert len(read_losses(out)) == 20


def test_a_job_started_again_waits_for_the_lock_of_a_lost_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other command is refused at once."""
    lost = {"token": "t", "host": "lost-host", "machine": "another boot", "pid": 1, "started": "1"}
    (tmp_path / ".lock").write_text(json.dumps(lost))
    with pytest.raises(UserError, match="lost-host"):
        run_line(tmp_path, steps=2)
    monkeypatch.setattr(locks, "STALE_SECONDS", 2.0)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert len(run_line(tmp_path, steps=2)) == 2
