"""How many cores this process may use: what its affinity and its control groups leave it, not the machine's.

Standard library alone. Batch systems bind processes to cores, containers have quotas; `os.cpu_count` knows of
neither, and pools that follow it run many times slower.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_share: float | None = None


def affinity() -> list[int]:
    """Returns the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Returns the cores' worth of time that control groups grant, of this or any enclosing one; or infinity.

    Source: "cpu.max" of Linux's cgroup-v2.rst; cfs_quota_us and cfs_period_us of version 1.
    """
    least = math.inf
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / controllers if controllers else root
            group = base / name.lstrip("/")
            # Within a container the group's name may be the host's, which isn't there: then the root is ours.
            for folder in [each for each in (group, *group.parents) if each.is_relative_to(base)]:
                least = min(least, _granted(folder))
    return least


def _granted(folder: Path) -> float:
    with suppress(OSError, ValueError):
        granted, period = (folder / "cpu.max").read_text().split()
        return math.inf if granted == "max" else int(granted) / int(period)
    with suppress(OSError, ValueError):
        granted, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if int(granted) <= 0 else int(granted) / int(period)
    return math.inf


def usable() -> int:
    """Returns this process's cores, at least one: its share, where it has taken one among its neighbours."""
    return max(1, int(_share if _share is not None else min(len(affinity()), quota())))


def take_share(mine: Sequence[int], neighbours: Sequence[Sequence[int]]) -> None:
    """Divides this machine's cores among a run's processes on it.

    mine: this process's affinity; neighbours: that of every process of the run here, this one among them.
    A core that k of them may run on is a k-th of a core to each: the share is right whether the launcher
    has bound each to its own, or left all of them on all.
    """
    global _share
    parts = sum(1 / max(1, sum(core in other for other in neighbours)) for core in mine)
    _share = min(parts + 1e-9, quota() / max(1, len(neighbours)))
