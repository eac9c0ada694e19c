"""The benchmark of textured GLBs runs, so that it can't rot."""

import pytest

import benchmarks.speed.glb
from sampling.pipeline import ShapePipeline


def test_glbs_have_the_faces_that_were_asked_for(
    pipeline: ShapePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ShapePipeline, "from_pretrained", lambda model: pipeline)
    benchmarks.speed.glb.main(["--model", "any", "--scale", "0.1", "--repeats", "1", "--steps", "2"])
    small, large = capsys.readouterr().out.splitlines()
    faces = [int(line.split(" faces")[0].replace(",", "")) for line in (small, large)]
    assert 0 < faces[0] <= 1_000 and faces[0] < faces[1] <= 5_000
