"""The GPU's benchmark runs: on the CPU as a whole, on a pretended GPU where it compares; it needs neither."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import agreement
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.tasks import make_trainings
from tests.pretend_gpu import GPU, pretend_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "No GPU is here" in capsys.readouterr().out


def test_every_line_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--device", "cpu", "--preset", "smoke", "--steps", "1"])
    lines = {line[:34].strip(): line[35:] for line in capsys.readouterr().out.splitlines()}
    for name in ("encoder: rate", "prior: rate", "a view, 32x32", "a mesh, 32^3", "view model's step"):
        assert any(digit in lines[name] for digit in "0123456789")
    assert "does not agree with the CPU" not in lines


def test_a_pretended_gpu_agrees_and_a_wrong_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = make_trainings("smoke", tmp_path)
    with pretend_gpu():
        found = dict(agreement.rows(trainings, GPU))
    assert len(found) >= 6
    assert all(value == 0 or math.isnan(value) for value in found.values())
    real = agreement.orthogonalize
    monkeypatch.setattr(agreement, "orthogonalize", lambda x: real(x) * (1.1 if x.device == GPU else 1))
    with pretend_gpu():
        assert agreement.difference(agreement.products, GPU) == pytest.approx(0.1, rel=1e-4)
