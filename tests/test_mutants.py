"""What `make mutants` says of a change: killed, survived, out of time, without a test, explained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import mutants
from scripts.mutants import EXPLAINED, ROOT, files, key_of, report

CODE = "def half(x):\n    limit = 100\n    if x > limit:\n        return limit / 2\n    return x / 2\n"
TESTS = """
import time
import pytest
from room.arithmetic import half

START = time.process_time()

@pytest.fixture
def slow():
    while time.process_time() < START + 0.5:
        pass

def test_slow(slow):
    open("order", "a").write("slow ")
    assert half(3) == 1.5

def test_quick():
    open("order", "a").write("quick ")
    assert half(4) == 2
"""
DRIVE = """
import json, sys
from pathlib import Path
from scripts import forked_tests, mutants
from scripts.mutants import Mutant, try_out

root = Path(sys.argv[1])
mutants.ROOT = mutants.TREE = root
mutants.SECONDS = root / "known.json"
forked_tests.SPARE = 1
code = (root / "room/arithmetic.py").read_text()
tried = {
    "killed": ("arithmetic", code.replace("x / 2", "x * 2")),
    "survives": ("arithmetic", code.replace("limit / 2", "limit * 2")),
    "endless": ("arithmetic", code.replace("return x / 2", "while True: pass")),
    "breaks": ("arithmetic", "import nothing_of_that_name"),
    "unmirrored": ("untested", code.replace("x / 2", "x * 2")),
}
results = {}
for name, (file, text) in tried.items():
    results[name] = try_out(Mutant(f"room/{file}.py", "", 0, 5), text, limit=1)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A small tree, and the results of the changes that DRIVE makes in it."""
    root = tmp_path_factory.mktemp("tree")
    texts = {"room/arithmetic.py": CODE, "room/untested.py": CODE, "tests/room/test_arithmetic.py": TESTS}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    # Not forked from here, where the project is imported.
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, str(root)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return root, json.loads(done.stdout)


def test_a_change_that_its_tests_notice_is_killed_and_one_that_they_dont_survives(tried) -> None:
    outcomes = {name: (each["killed"], each["outcome"]) for name, each in tried[1].items()}
    assert outcomes["killed"] == outcomes["breaks"] == (True, "failed")
    assert outcomes["survives"] == (False, "passed")


def test_a_change_that_never_ends_is_killed_by_its_seconds(tried) -> None:
    assert (tried[1]["endless"]["killed"], tried[1]["endless"]["outcome"]) == (True, "timed out")


def test_a_change_of_a_file_without_tests_survives(tried) -> None:
    assert (tried[1]["unmirrored"]["killed"], tried[1]["unmirrored"]["outcome"]) == (False, "no tests")


def test_every_change_is_taken_back(tried) -> None:
    assert {(tried[0] / f"room/{name}.py").read_text() for name in ("arithmetic", "untested")} == {CODE}


def test_the_quickest_test_comes_first_once_its_seconds_are_known(tried) -> None:
    measured, *mutants = (tried[0] / "order").read_text().replace("slow quick", "slow,quick").split()
    assert measured == "slow,quick" and mutants[0] == "quick" and mutants[1] == "quick"


def test_the_report_parts_killed_from_explained_and_unexplained(tried, tmp_path, monkeypatch, capsys) -> None:
    file, before, after = key_of(tried[1]["survives"])
    why = [{"file": file, "before": before, "after": after, "why": "nobody halves more than 100"}]
    (tmp_path / "why.yaml").write_text(json.dumps(why))
    monkeypatch.setattr(mutants, "EXPLAINED", tmp_path / "why.yaml")
    report(list(tried[1].values()))
    said = capsys.readouterr().out
    rows = {row.split()[-1]: row.split()[:-1] for row in said.splitlines() if row.startswith("   ")}
    assert rows["room/arithmetic.py"] == ["3", "1", "0", "4"]
    assert rows["room/untested.py"] == ["0", "0", "1", "1"] and rows["all"] == ["3", "1", "1", "5"]
    assert "20.0% unexplained" in said and "unexplained (no tests): room/untested.py:5" in said
    assert "+    return x * 2" in said and "limit * 2" not in said


def test_what_is_explained_is_still_a_line_of_its_file() -> None:
    for file, before, _ in mutants.explanations():
        lines = [line.strip() for line in (ROOT / file).read_text().splitlines()]
        assert all(line in lines for line in before.splitlines()), f"{EXPLAINED}: {file}: {before}"


def test_files_with_arithmetic_are_mirrored_by_tests() -> None:
    nothing_to_change = {"encoder/options.py", "shapeloom/fields/unlit.py"}
    assert {str(file) for file in files() if not mutants.tests_of(file)} <= nothing_to_change
