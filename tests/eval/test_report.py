"""The page loads nothing, and data can't get out of its text into its code."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.report import Folders, ReportConfig, build_report
from shapeloom import page
from shapeloom.surface_metrics import FIELD_SCORES

EVIL = "<script>alert(1)</script><img src=x onerror='a'>\"&"


def metrics(*, skipped: bool = False) -> dict[str, Any]:
    scores: dict[str, Any] = dict.fromkeys(("psnr", "ssim", "iou", *FIELD_SCORES), 0.5)
    scores |= {"nearest": None, "num_assets": 3, "num_true_meshes": 3, "num_empty": 0}
    generation: dict[str, Any] = {"skipped": EVIL}
    if not skipped:
        part = {
            "num_samples": 2,
            "r_at_1": 0.5,
            "r_at_1_interval": [0.1, 0.9],
            "r_at_5": 1.0,
            "clip_score": 0.3,
        }
        generation = part | {
            "seen": part, "held_out": None, "chance": 0.5, "mismatched_clip_score": 0.1,
            "ceiling_r_at_1": None, "colour_accuracy": None, "colour_skipped": EVIL,
        }  # fmt: skip
    return {
        "reconstruction": {**scores, "splits": {"test": scores}, "blank": scores},
        "generation": generation,
        "seconds": {"setup": None, "eval": 3.25},
        "peak_memory_gb": {"eval": 0.75},
    }


@pytest.fixture
def folders(ball_dataset: Path, tmp_path: Path) -> Folders:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("dataset.json", "shards"):
        (data / name).symlink_to(ball_dataset / name)
    failure = {"path": EVIL, "stage": "load", "reason": "unreadable", "message": EVIL, "sha256": ""}
    (data / "quarantine.jsonl").write_text(json.dumps(failure) + "\n")
    for name in ("encoder", "samples", "evaluation/generation/sets", "evaluation/reconstruction"):
        (tmp_path / name).mkdir(parents=True)
    lines = [{"step": i, "train/loss": 1 / (i + 1), EVIL: 1.0} for i in range(500)]
    (tmp_path / "encoder/metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for path in (
        "samples/000_ball_seed0.png",
        "evaluation/generation/0000.png",
        "evaluation/generation/sets/0000.png",
        "evaluation/reconstruction/a.png",
    ):
        picture.save(tmp_path / path)
    (tmp_path / "samples/000_ball_seed0.glb").write_bytes(b"glTF not really")
    named = {"data": data, "evaluation": tmp_path / "evaluation"}
    return Folders(**named, **{name: tmp_path / name for name in ("clip", "encoder", "prior", "samples")})


def built(folders: Folders, **kwargs: Any) -> str:
    reconstructed = [
        {"picture": "a.png", "psnr": 20.0, "iou": 0.8, "fscore_0.02": 0.7, "caption": EVIL, "split": "test"}
    ]
    generated = [
        {
            "prompt": EVIL, "seen": False, "place": 3, "judged": EVIL, "picture": "0000.png",
        }
    ]  # fmt: skip
    near = {"prompt": EVIL, "nearest": EVIL, "copied": True, "picture": "0000.png"}
    compared = [near | {"beside": "0000.png", "fault": "empty"}, near]
    (folders.samples / "metadata.json").write_text(
        json.dumps(
            {
                "counts": {"objects": 1, "empty": 0, "crumbled": 1, "degenerate": 0, "retried": 1},
                "samples": [{"name": "000_ball_seed0", "prompt": EVIL, "fault": "crumbled"}],
            }
        )
    )
    return build_report(EVIL, folders, metrics(**kwargs), reconstructed, generated, compared, ReportConfig())


@pytest.mark.parametrize("skipped", [False, True])
def test_text_from_data_never_becomes_markup(folders: Folders, skipped: bool) -> None:
    html = built(folders, skipped=skipped)
    assert "alert(1)" in html
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("<script") == html.count("</script>") == 3  # one model, the library, the viewer


def test_broken_samples_are_counted_and_called_broken(folders: Folders) -> None:
    html = built(folders)
    assert "1 objects: 1 crumbled, 1 made with another seed than asked for." in html
    assert "(crumbled)" in html and "(empty)" in html and html.count("(closer than its own") == 2
    assert "beside the nearest training assets" in html


def test_the_page_loads_nothing_from_anywhere(folders: Folders) -> None:
    html = built(folders)
    sources = re.findall(r'(?:src|href|data|action|poster)="([^"]*)"', html)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "url(" not in page.STYLE and "@import" not in page.STYLE and "<link" not in html
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy and policy[1].startswith("default-src 'none'") and "http" not in policy[1]


def test_a_page_without_samples_says_so_and_carries_no_viewer(folders: Folders) -> None:
    for path in folders.samples.iterdir():
        path.unlink()
    html = build_report("run", folders, metrics(), [], [], [], ReportConfig())
    assert "has left no samples" in html and "THREE" not in html and len(html) < 200_000


def test_models_beyond_the_limit_are_shown_as_pictures_alone(folders: Folders) -> None:
    html = build_report("run", folders, metrics(), [], [], [], ReportConfig(model_megabytes=0))
    assert "000_ball_seed0" in html and "model/gltf-binary" not in html


def test_a_curve_reaches_its_extremes_at_the_edges_of_its_plot() -> None:
    svg = page.curve("loss", [0, 10, 20], [1.0, 3.0, 2.0])
    points = re.search(r'points="([^"]*)"', svg)
    assert points and points[1] == "8.0,110.0 160.0,26.0 312.0,68.0"


def test_curves_leave_out_what_is_not_finite_and_need_two_points() -> None:
    assert page.curve("loss", [0, 1, 2], [1.0, math.nan, math.inf]) == ""
    assert "nan" not in page.curve("loss", [0, 1, 2], [1.0, math.nan, 2.0])
    assert "(log)" in page.curve("loss", [0, 1], [1.0, 100.0])
    assert len(page.curve("loss", list(range(10_000)), [float(i) for i in range(10_000)])) < 5_000


def test_a_missing_number_is_a_dash() -> None:
    assert [page.number(v) for v in (None, math.nan, 0.12345, 7)] == ["–", "–", "0.123", "7"]
