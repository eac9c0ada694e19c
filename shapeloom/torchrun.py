"""torchrun, whose last words are a sentence: `python -m shapeloom.torchrun`, with torchrun's own options.

torchrun ends with a traceback of its own, whatever its workers said before. Its exit code says no more than
"failed"; this one's is that of the worker that failed first, and EXIT_AGAIN for one that was killed.
"""

import argparse
import signal
import socket
import sys
import time

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run

from shapeloom.joining import own_address
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


def tell_place(arguments: argparse.Namespace) -> None:
    """Completes torchrun's options for several machines: whether the meeting point is here, and this address.

    torchrun goes by the own name, which Debian calls 127.0.1.1: then no machine believes to be the meeting
    point, or the others are sent to their own loopback.
    """
    meeting = arguments.rdzv_endpoint.rpartition(":")[0]
    if arguments.rdzv_backend != "c10d" or not meeting or "is_host" in arguments.rdzv_conf:
        return
    address = socket.gethostbyname(meeting)
    own = own_address(address)
    here = own == address or address.startswith("127.")
    arguments.rdzv_conf = ",".join(filter(None, [arguments.rdzv_conf, f"is_host={here}"]))
    if not arguments.local_addr and own and not own.startswith("127."):
        arguments.local_addr = own


def main() -> None:
    """Runs torchrun on this process's arguments."""
    try:
        arguments = parse_args(sys.argv[1:])
        tell_place(arguments)
        run(arguments)
    except ChildFailedError as error:
        text, code = last_words(*error.get_first_failure())
    except SignalException as error:
        text, code = f"Stopped by {error.sigval.name}. {_GO_ON}", 128 + error.sigval
    except socket.gaierror:
        text, code = "MASTER_ADDR isn't known here: give a name or address that every machine can reach.", 2
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
