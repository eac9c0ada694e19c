"""The samplers' benchmark runs, so that it can't rot."""

import pytest

import benchmarks.glb
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


def test_glbs_have_the_faces_that_were_asked_for(
    pipeline: ShapePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ShapePipeline, "from_pretrained", lambda model: pipeline)
    benchmarks.glb.main(["--model", "any", "--scale", "0.1", "--repeats", "1", "--steps", "2"])
    small, large = capsys.readouterr().out.splitlines()
    faces = [int(line.split(" faces")[0].replace(",", "")) for line in (small, large)]
    assert 0 < faces[0] <= 1_000 and faces[0] < faces[1] <= 5_000
