"""torchrun, whose last words are a sentence: `python -m shapeloom.torchrun`, with torchrun's own options.

torchrun ends with a traceback of its own, whatever its workers said before. Its exit code says no more than
"failed"; this one's is that of the worker that failed first, and EXIT_AGAIN for one that was killed.
"""

import signal
import sys
import time

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run

from shapeloom.watch import EXIT_AGAIN

_GO_ON = "The same command goes on from the newest checkpoint."


def last_words(rank: int, failure: ProcessFailure) -> tuple[str, int]:
    """Returns what to say of the worker that failed first, and the exit code."""
    code = failure.exitcode
    when = time.strftime("%H:%M:%S", time.localtime(failure.timestamp))
    who = f"The process of rank {rank} (process {failure.pid} of this machine)"
    if code < 0:
        name = signal.Signals(-code).name
        why = " Most often that is the kernel, for want of memory." if name == "SIGKILL" else ""
        again = 128 - code if name == "SIGTERM" else EXIT_AGAIN
        return f"{who} was killed by {name} at {when}.{why} {_GO_ON}", again
    if code == 128 + signal.SIGTERM:
        return f"Stopped by SIGTERM at {when}. {_GO_ON}", code
    return f"{who} ended with exit code {code} at {when}; its own last words are above.", code


def main() -> None:
    """Runs torchrun on this process's arguments."""
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        text, code = last_words(*error.get_first_failure())
    except SignalException as error:
        text, code = f"Stopped by {error.sigval.name}. {_GO_ON}", 128 + error.sigval
    except (RendezvousError, TimeoutError) as error:
        text, code = (
            f"The machines of this run could not agree ({error}). Start the same command on each of them "
            "within ten minutes, with one MASTER_ADDR and MASTER_PORT; can that port be reached?",
            EXIT_AGAIN,
        )
    else:
        return
    sys.stderr.write(f"\nerror: {text}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
