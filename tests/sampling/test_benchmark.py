"""The samplers' benchmark runs, so that it can't rot."""

import pytest

from benchmarks.samplers import main
from sampling.pipeline import ShapePipeline


def test_errors_fall_with_evaluations(
    pipeline: ShapePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ShapePipeline, "from_pretrained", lambda model: pipeline)
    main(["--model", "any", "--evaluations", "4", "8", "--truth", "16", "--prompts", "a chair"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 5 * 4
    assert all(float(row[2]) >= float(row[3]) >= 0 for row in rows)
