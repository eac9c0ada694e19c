"""The page shows what was kept, left out and looks alike, loads nothing, and data stays text in it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from data_prep.failures import Failure, to_jsonl
from data_prep.filters import Filters
from data_prep.report import write_report
from shapeloom.page import histogram
from shapeloom.shards import finish_dataset, write_shard

EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture
def dataset(tmp_path: Path, ball_samples) -> Path:
    """Three balls, two of them alike and on two splits, with hostile words."""
    samples = [ball_samples(0, split="train"), ball_samples(0, split="val"), ball_samples(1, split="train")]
    for number, sample in enumerate(samples):
        sample["__key__"] = f"key{number}"
        sample["json"] |= {
            "captions": [EVIL], "category": EVIL, "path": f"{EVIL}{number}.glb", "num_faces": 10 + number,
            "scale": 1.0, "warnings": [f"flat: {EVIL}"], "sha256": str(number),
        }  # fmt: skip
    write_shard(tmp_path / "shards/000000.tar", samples)
    finish_dataset(tmp_path, kind="assets", facts={"views": 4, "resolution": 16})
    failures = [
        Failure(EVIL, "load", "unreadable", EVIL, ""),
        Failure("copy", "sources", "duplicate", "has", "2"),
    ]
    (tmp_path / "quarantine.jsonl").write_text(to_jsonl(failures))
    write_report(tmp_path, near_duplicate=Filters().near_duplicate)
    return tmp_path


def test_page_holds_everything_and_loads_nothing(dataset):
    text = (dataset / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    for words in ("Data report", "Figures", "Warnings", "Near duplicates", "Left out", "load: unreadable"):
        assert words in text
    assert text.count("<img") == 3 + 1 + 1  # tiles, one pair, one duplicate


def test_near_duplicates_are_written_down(dataset):
    (line,) = map(json.loads, (dataset / "near_duplicates.jsonl").read_text().splitlines())
    assert line["splits"] == ["train", "val"]
    assert line["distance"] < 0.1


def test_page_renders_without_errors_in_a_browser(dataset, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser here")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (dataset / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<h2>Left out</h2>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_histogram_counts_every_value():
    svg = histogram("x", [1, 1, 2, 4, float("nan")], bins=4)
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', svg)]
    assert [round(h / max(heights) * 2) for h in heights] == [2, 1, 1]
    assert histogram("x", []) == ""
    assert "max 8" in histogram("x", [0, 1, 8], logarithmic=True)
