"""The web page's work without a browser."""

import sys

import pytest

from sampling.__main__ import SamplingConfig
from sampling.app import build_page, generate, main
from shapeloom.config import UserError

SMALL = SamplingConfig(
    mesh={"resolution": 16, "texture_size": 32},
    turntable={"frames": 2, "size": 16, "samples": {"coarse": 8, "fine": 0}},
)


def test_a_request_writes_a_turntable_and_models(pipeline, tmp_path):
    turntable, model, files = generate(pipeline, SMALL, tmp_path, "a mug", 3, 2, 3.0)
    assert turntable.endswith(".gif")
    assert model is not None
    assert model.endswith(".glb")
    assert sorted(str(path) for path in tmp_path.iterdir()) == sorted(files)
    assert files[0] == model


@pytest.mark.parametrize(
    ("prompt", "seed", "steps", "guidance"),
    [(" ", 0, 2, 3), ("a" * 301, 0, 2, 3), ("a", -1, 2, 3), ("a", 0, 500, 3), ("a", 0, 2, float("nan"))],
)
def test_requests_beyond_the_limits_are_refused(pipeline, tmp_path, prompt, seed, steps, guidance):
    with pytest.raises(UserError):
        generate(pipeline, SMALL, tmp_path, prompt, seed, steps, guidance)


def test_a_missing_gradio_says_what_to_install(pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="make serve"):
        build_page(pipeline, SMALL, tmp_path)


def test_bad_ports_and_missing_runs_are_refused():
    with pytest.raises(UserError, match="--port is a number"):
        main(["--port", "0"])
    with pytest.raises(UserError, match="Sampling needs --model"):
        main([])
