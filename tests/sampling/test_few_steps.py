"""The curve of quality by evaluations: it runs, and its parts are right."""

import json
from pathlib import Path

import pytest

from benchmarks.experiments.few_steps import best_rows, curve_svg, main
from sampling.pipeline import ShapePipeline
from shapeloom.config import UserError

SMALL = ["--evaluations", "4", "8", "--truth", "16", "--few", "8", "--prompts", "a chair"]


@pytest.fixture(autouse=True)
def small_pipeline(pipeline: ShapePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShapePipeline, "from_pretrained", lambda model: pipeline)


def test_errors_fall_with_evaluations(tmp_path: Path):
    main(["--model", "any", "--out", str(tmp_path), *SMALL, "--num", "0"])
    rows = json.loads((tmp_path / "figures.json").read_text())["errors"]
    assert len(rows) == 7 * 4
    assert all(
        errors[0] >= errors[1] >= 0 for name, _, errors in rows if name not in ("ddpm", "dpmpp_2m_sde")
    )
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + 7 * 4
    assert (tmp_path / "curve.svg").read_text().count("<polyline") == 7


def test_the_best_are_deterministic_and_of_different_samplers():
    rows = [("ddpm", "karras", [0.0]), ("heun", "karras", [0.2]), ("heun", "exponential", [0.1]),
            ("euler", "karras", [0.4]), ("ddim", "karras", [0.3]), ("unipc", "karras", [0.3])]  # fmt: skip
    assert [row[:2] for row in best_rows(rows, 0)] == [
        ("heun", "exponential"), ("unipc", "karras"), ("euler", "karras")
    ]  # fmt: skip


def test_equal_errors_are_drawn_too():
    assert "nan" not in curve_svg([("euler", "karras", [0.1])], [4])


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="run `python -m eval` first"):
        main(["--model", str(tmp_path), "--out", str(tmp_path), *SMALL])
    with pytest.raises(UserError, match="must be one of --evaluations"):
        main(["--model", str(tmp_path), "--out", str(tmp_path), *SMALL, "--few", "5"])
