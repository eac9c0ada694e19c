"""What a command does before anything heavy is imported. Standard library alone.

Importing torch takes seconds, in which a second command on the same folder should long have said so, and a
launcher that dies should not leave its workers behind.
"""

import ctypes
import os
import signal
import sys
import threading
import time

from shapeloom.finished import is_finished, stage_command, told
from shapeloom.locks import named_folder, refusal, restarted
from shapeloom.options import help_text

LOOKS_ONLY = "SHAPELOOM_LOOKS_ONLY"
"""Set by launch/torchrun.sh, which starts more than one process only where there is something to do."""
GO_ON = 3
"""The exit status that says so."""
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 2.0


def begin() -> None:
    """Ends at once where another command writes the folder or nothing is left to do; ties a launcher's worker
    to its launcher."""
    num = int(os.environ.get("WORLD_SIZE", "1"))
    if num > 1:
        end_with_parent()
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    command = stage_command(sys.orig_argv)
    text = help_text(command)
    if text:
        sys.stdout.write(text)
        raise SystemExit(0)
    folder = named_folder(command)
    # A job that a launcher starts again waits for the lock of a machine that was lost (shapeloom.shared_run).
    text = None if folder is None or restarted() else refusal(folder)
    if text:
        sys.stderr.write(f"\nerror: {text}\n")
        raise SystemExit(2)
    if num == 1 and is_finished(command):
        sys.stderr.write(told(command))
        raise SystemExit(0)
    if os.environ.get(LOOKS_ONLY):  # for modules that are no stage too: they must not do their work alone
        raise SystemExit(GO_ON)


def end_with_parent() -> None:
    """This process is killed when its parent ends: by Linux's kernel, elsewhere by a thread that looks.

    Not asked to end: it may wait in a collective for others that are gone too. Checkpoints bear it.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os.kill(os.getpid(), signal.SIGKILL)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
