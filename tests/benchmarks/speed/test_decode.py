"""The benchmark of decoding runs on a small field; no absolute time is asserted."""

import re
from pathlib import Path

import pytest

from benchmarks.speed.decode import main


def test_fast_decoding_agrees_with_dense(
    ball_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "field.safetensors"
    arguments = ["--data", str(ball_dataset), "--cache", str(cache), "--width", "32", "--steps", "60"]
    small = ["--size", "24", "--resolution", "64", "--repeats", "1"]
    main([*arguments, *small])
    report = capsys.readouterr().out
    decibels = [float(found) for found in re.findall(r"([\d.]+) dB to dense", report)]
    assert len(decibels) == 3
    assert min(decibels) > 30
    missed, cells = re.search(r"(\d+) of ([\d,]+) cells missed", report).groups()
    assert int(cells.replace(",", "")) > 100
    assert int(missed) <= 0.001 * int(cells.replace(",", ""))
    main([*arguments, *small])
    assert "fit, step" not in capsys.readouterr().out
