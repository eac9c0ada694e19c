"""Of deepspeed.sh: runs it on every host of HOSTFILE by plain ssh, each with its NODE_RANK.

What each host is to do goes through its shell's input, so that no value stands on a command line. That input
closes when this process ends, however it does: the host's processes then get SIGTERM, at which trainers save.
The first host that fails ends the others. Standard library alone.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

_FORWARDED = re.compile(r"(OMP|GLOO|NCCL)_")
_REMOTE = """main() {{
{exports}
exec 3<&0
cd {folder} || exit 2
bash {script} {words} </dev/null 3<&- & child=$!
{{ cat <&3; kill -TERM $child; }} >/dev/null 2>&1 & watch=$!
code=0
wait $child || code=$?
kill $watch
exit $code
}}; main
"""


def remote(rank: int, hosts: list[str], words: list[str]) -> str:
    """Returns the shell's input on the host of a rank."""
    names = [*os.environ.get("FORWARD", "").split(), *filter(_FORWARDED.match, os.environ)]
    values = {name: os.environ[name] for name in names if name in os.environ}
    values |= {
        "HOSTFILE": str(Path(os.environ["HOSTFILE"]).absolute()),
        "VENV": str(Path(os.environ.get("VENV", ".venv")).absolute()),
        "MASTER_PORT": os.environ.get("MASTER_PORT", "29500"),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", hosts[0]),
        "NODE_RANK": str(rank),
    }
    return _REMOTE.format(
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        folder=shlex.quote(os.getcwd()),
        script=shlex.quote(str(Path(__file__).absolute().with_name("deepspeed.sh"))),
        words=shlex.join(words),
    )


def main() -> int:
    """Returns the exit code of the first host that failed."""
    lines = Path(os.environ["HOSTFILE"]).read_text().splitlines()
    hosts = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    running = []
    for rank, host in enumerate(hosts):
        process = subprocess.Popen(["ssh", "-o", "BatchMode=yes", host, "bash", "-s"], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(remote(rank, hosts, sys.argv[1:]).encode())
        process.stdin.flush()
        running.append(process)
    code = 0
    while None in (codes := [process.poll() for process in running]):
        failed = [each for each in codes if each]
        if failed and not code:
            code = failed[0]
            for process in running:
                process.stdin.close()  # type: ignore[union-attr]
        time.sleep(0.1)
    return code or next((each for each in codes if each), 0)


if __name__ == "__main__":
    sys.exit(main())
