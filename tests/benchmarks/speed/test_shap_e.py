"""The benchmark of Shap-E's networks runs at small sizes, and the two computations agree."""

import re

import pytest

from benchmarks.speed.shap_e import main


def test_fast_and_plain_agree(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick"])
    report = capsys.readouterr().out
    exact = [float(found) for found in re.findall(r"difference ([\d.e+-]+)", report)]
    assert len(exact) == 2
    assert max(exact) < 1e-4
    halves = [float(found) for found in re.findall(r"less; ([\d.e+-]+)$", report, re.MULTILINE)]
    assert len(halves) == 2
    assert max(halves) < 0.15
    errors = [float(found) for found in re.findall(r"dpmpp_2m ([\d.e+-]+)", report)]
    assert errors[-1] < errors[0]
