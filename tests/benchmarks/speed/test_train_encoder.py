"""The benchmark of the encoder's throughput runs; no speed is asserted."""

import re
from pathlib import Path

import pytest

from benchmarks.drills.kill_training import prepare_assets
from benchmarks.speed.train_encoder import main


def test_rates_and_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepare_assets(tmp_path)
    main([str(data), "--presets", "smoke", "--steps", "1", "--batch", "2", "--scaling-steps", "10"])
    report = capsys.readouterr().out
    assert "smoke takes 1.0 x" in report
    assert float(re.search(r"in two: ([\d.]+) x", report).group(1)) > 0
