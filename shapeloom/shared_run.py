"""A run folder that several processes open together: all see the same one, and follow the main process.

Where `--out` isn't shared, each machine would look for checkpoints of its own and train on from another step:
silently wrong weights. So the main process alone looks at the folder and writes it, and the others take its
word for what is there, once they have seen a file in it that it has just made.
"""

import json
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from shapeloom import watch
from shapeloom.config import Config, UserError
from shapeloom.distributed import World, barrier, from_all, from_main
from shapeloom.locks import STALE_SECONDS, refusal, restarted
from shapeloom.log import get_logger
from shapeloom.runs import Run, text_digest

log = get_logger("runs")
_LOOK_SECONDS = 5.0
"""How long a file that another machine has made may take to be seen."""


def open_run(
    out: Path, config: Config, *, stage: str, inputs: Mapping[str, str] | None = None, world: World
) -> Run:
    """Returns `Run.open`'s run: in the main process one that writes, in the others one that follows it.

    Raises UserError in all processes where they were given different configs or inputs, or don't all see
    the same folder; and in the main process whatever `Run.open` does.
    """
    given = dict(inputs or {})
    _check_same_task(config, given, world)
    run = _opened(out, config, stage, given) if world.is_main else None
    try:
        _check_same_folder(out, world)
    except UserError:
        if run is not None:
            run.close()
        raise
    meta = from_main(None if run is None else run.meta, world)
    run = run or Run(out, meta, writes=False)
    if watch.current is not None:
        watch.current.before_end = run.close
    return run


def _opened(out: Path, config: Config, stage: str, inputs: Mapping[str, str]) -> Run:
    """Waits for the lock of a machine that was lost, where a launcher has started the job again by itself."""
    told = False
    for _ in range(round(STALE_SECONDS)):
        if not restarted() or refusal(out) is None:
            break
        if not told:
            log.warning("%s is still locked by the run before; waiting until it surely has ended", out)
        told = True
        time.sleep(1.0)
    return Run.open(out, config, stage=stage, inputs=inputs)


def _check_same_task(config: Config, inputs: Mapping[str, str], world: World) -> None:
    """Where an input lies may differ from machine to machine, but not what it is."""
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in inputs}
    mine = {"config": text_digest(json.dumps(settings, sort_keys=True)), **inputs}
    found = from_all((socket.gethostname(), mine), world)
    for name in mine:
        others = sorted({host for host, theirs in found if theirs.get(name) != found[0][1].get(name)})
        if others:
            raise UserError(
                f"The {name} on {', '.join(others)} isn't the same as on {found[0][0]}: give all machines "
                "the same command and the same files, by storage that they share or by copies."
            )


def _check_same_folder(out: Path, world: World) -> None:
    if world.size == 1:
        return
    mark = out / f".shared.{secrets.token_hex(8)}"
    if world.is_main:
        mark.touch()
    # A name that nobody has looked for yet, so that no network file system answers from its memory.
    mark = out / from_main(mark.name, world)
    sees = _is_seen(mark)
    found: list[tuple[str, bool, str]] = from_all((socket.gethostname(), sees, str(out.absolute())), world)
    barrier(world)
    if world.is_main:
        mark.unlink(missing_ok=True)
    blind = {host: path for host, fine, path in found if not fine}
    if blind:
        places = ", ".join(f"{host} ({path})" for host, path in sorted(blind.items()))
        raise UserError(
            f"--out {out} on {places} isn't the folder that the main process, on {found[0][0]}, writes "
            f"({found[0][2]}): checkpoints would be split among the machines. Name a folder on storage that "
            "all of them share, at the same path (NFS, Lustre or the like); local disks won't do."
        )


def _is_seen(path: Path) -> bool:
    end = time.monotonic() + _LOOK_SECONDS
    while not (seen := path.is_file()) and time.monotonic() < end:
        time.sleep(0.1)
    return seen
