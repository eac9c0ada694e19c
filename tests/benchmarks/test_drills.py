"""What can go wrong with a run is told in words, and nothing is lost: the drills, each at its smallest."""

import os
from pathlib import Path

import pytest

from benchmarks import drill, drill_runs
from benchmarks.drill import arguments, command, contents


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drill.import_everything()
    return drill.make_run(tmp_path_factory.mktemp("drill") / "run")


@pytest.mark.parametrize("name", drill_runs.DRILLS)
def test_every_drill_is_told_in_words(run: Path, tmp_path: Path, name: str) -> None:
    assert all(sentence for sentence in drill_runs.DRILLS[name](run, tmp_path))


def test_a_disk_that_fills_up_costs_no_byte(run: Path, tmp_path: Path) -> None:
    """By a limit on the size of files, which the kernel reports in mid-write like a full disk."""
    import resource
    import signal

    for stage, limit in (("data", 20_000), ("latents", 30_000), ("prior", 40_000)):
        words = arguments(stage, run, tmp_path / stage)

        def small(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        command(stage, words, before=small).check(str(tmp_path), "full", code=1)
        command(stage, words).check(code=0)
        assert contents(tmp_path / stage) == contents(run / stage)
        assert not list((tmp_path / stage).rglob("*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_is_named(run: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    told = command("prior", arguments("prior", run, tmp_path / "new"))
    told.check(str(tmp_path), "who owns it", code=1)
