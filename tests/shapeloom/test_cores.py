"""How many cores a process may use: affinity and quotas count, the machine's number doesn't."""

import math
import os
from pathlib import Path

import pytest

from shapeloom import cores


@pytest.fixture(autouse=True)
def _no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_share", None)


def groups(tmp_path: Path, own: str, **limits: str) -> tuple[Path, Path]:
    """A tree of control groups: `a__b="100000 50000"` limits the group /a/b."""
    for name, text in limits.items():
        folder = tmp_path / "tree" / name.replace("__", "/").replace("root", ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text)
    (tmp_path / "own").write_text(own)
    return tmp_path / "tree", tmp_path / "own"


def test_the_tightest_quota_of_all_enclosing_groups_counts(tmp_path: Path) -> None:
    tree = groups(tmp_path, "0::/job/step\n", job="150000 100000", job__step="400000 100000")
    assert cores.quota(*tree) == 1.5


def test_a_container_s_quota_is_at_its_root(tmp_path: Path) -> None:
    tree = groups(tmp_path, "0::/kubepods/of-the-host\n", root="200000 100000")
    assert cores.quota(*tree) == 2


def test_no_quota_is_no_limit(tmp_path: Path) -> None:
    assert cores.quota(*groups(tmp_path, "0::/job\n", job="max 100000")) == math.inf
    assert cores.quota(tmp_path / "none", tmp_path / "none either") == math.inf


def test_version_1_s_quotas_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("300000")
    (folder / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "own").write_text("4:cpu,cpuacct:/job\n7:memory:/job\n")
    assert cores.quota(tmp_path, tmp_path / "own") == 3


def test_affinity_beats_the_machine_s_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores.usable() == 1


@pytest.mark.parametrize(
    ("mine", "neighbours", "expected"),
    [
        (range(8), [range(8)] * 4, 2),  # torchrun: all on all
        (range(2), [range(0, 2), range(2, 4)], 2),  # srun: each on its own
        (range(2), [range(2)] * 4, 1),  # more processes than cores
    ],
)
def test_cores_are_shared_as_the_launcher_bound_them(
    mine: range, neighbours: list[range], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "quota", lambda: math.inf)
    cores.take_share(mine, neighbours)
    assert cores.usable() == expected


def test_a_quota_is_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "quota", lambda: 4.0)
    cores.take_share(range(64), [range(64)] * 2)
    assert cores.usable() == 2
