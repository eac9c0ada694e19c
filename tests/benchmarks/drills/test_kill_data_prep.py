"""Data preparation that is killed ends with the same bytes: the drill, at its smallest."""

from pathlib import Path

from benchmarks.drills import kill_data_prep


def test_killed_runs_end_with_the_same_bytes(tmp_path: Path):
    line = kill_data_prep.compare(2, 3, workers=1, seed=0, folder=tmp_path)
    assert line.startswith("2 kills")
