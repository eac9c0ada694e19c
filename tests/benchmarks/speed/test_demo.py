"""What a demo costs: processes that a stage leaves behind count, and what is over isn't run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.demo import STAGES

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
SPIN = "import time; start = time.process_time()\nwhile time.process_time() - start < 0.6: pass"
METRICS = {
    "reconstruction": {"psnr": 28.4, "psnr_interval": [27.6, 29.3]},
    "generation": {"r_at_1": 0.8, "sets": {"one_nna_cd": 0.68}},
}


def write_tree(folder: Path) -> None:
    """A checkout whose stages do nothing, but for train-encoder, which leaves a busy process behind."""
    folder.mkdir()
    Path(folder, "spin.py").write_text(SPIN)
    Path(folder, "metrics.json").write_text(json.dumps(METRICS))
    rules = dict.fromkeys(STAGES, "true")
    rules["train-encoder"] = f"{sys.executable} spin.py &"
    rules["eval"] = "mkdir -p $(RUN) && cp metrics.json $(RUN)"
    Path(folder, "Makefile").write_text("".join(f"{name}:\n\t{rule}\n" for name, rule in rules.items()))


def test_stages_by_their_processes(tmp_path: Path) -> None:
    write_tree(tmp_path / "now")
    write_tree(tmp_path / "then")
    command = [sys.executable, "-m", "benchmarks.speed.demo", "out", "now", "then"]

    def run() -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
        ).stdout

    told = run()
    times = json.loads(Path(tmp_path, "out/times.json").read_text())
    assert list(times) == ["now", "then"] and list(times["now"]) == list(STAGES)
    assert 0.6 < times["then"]["train-encoder"][0] < 2 and times["then"]["encode"][0] < 0.3
    lines = told.splitlines()
    assert lines[0] == "| stage | now | then | first / last |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in (*STAGES, "all")] + [
        "| PSNR, dB", "| F@0.02", "| R@1", "| 1-NNA",
    ]  # fmt: skip
    assert "| PSNR, dB | 28.4 (27.6-29.3) | 28.4 (27.6-29.3) |" in lines[-4]
    Path(tmp_path, "now/Makefile").write_text("")
    assert run() == told
    metrics = Path(tmp_path, "out/0/metrics.json")  # that of "now", whichever is named first
    metrics.write_text(metrics.read_text().replace("28.4", "28.5"))
    command[-2:] = ["then", "now"]
    assert "| PSNR, dB | 28.4 (27.6-29.3) | 28.5 (27.6-29.3) |" in run()


def test_a_stage_that_fails_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "now")
    Path(tmp_path, "now/Makefile").write_text("data-prep:\n\tfalse\n")
    command = [sys.executable, "-m", "benchmarks.speed.demo", "out", "now"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode and "make data-prep of now" in done.stderr and "0_data-prep.log" in done.stderr
