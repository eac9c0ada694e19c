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
from collections.abc import Sequence
from pathlib import Path

from shapeloom.locks import named_folder, refusal

STAGES = {"data_prep", "encoder", "prior", "sampling", "serving", "eval"}
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 2.0


def begin() -> None:
    """Refuses to be the second writer of a folder, and ties a launcher's worker to its launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        end_with_parent()
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    folder = output_folder(sys.orig_argv)
    text = folder and refusal(folder)
    if text:
        sys.stderr.write(f"\nerror: {text}\n")
        raise SystemExit(2)


def output_folder(argv: Sequence[str]) -> Path | None:
    """The --out of `python -m STAGE ... --out DIR`; None for any other command, and for a URL."""
    words = list(argv)
    if "-m" not in words[:-1]:
        return None
    stage, *after = words[words.index("-m") + 1 :]
    return named_folder(after) if stage.partition(".")[0] in STAGES else None


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
