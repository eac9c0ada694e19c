"""The worked examples of docs/extending.md run as they stand."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
EXAMPLES = {
    section.partition("\n")[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for section in PAGE.split("\n## ")[1:]
}
ROOT = Path(__file__).parents[1]


def test_each_thing_that_people_add_has_one_example() -> None:
    assert [len(blocks) for blocks in EXAMPLES.values()] == [1] * 5


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_from_its_text_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    claims = re.findall(r"^ *(?:assert|torch\.testing\.assert_close)\b", EXAMPLES[name][0], re.MULTILINE)
    assert claims, "an example says what comes out of it"
    exec(compile(EXAMPLES[name][0], f"docs/extending.md: {name}", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", ["docs/extending.md", "docs/code_tour.md", "CONTRIBUTING.md", "README.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    rooms = (
        r"(?:data_prep|encoder|prior|sampling|serving|eval|shapeloom|tests|docs|configs|benchmarks|launch)"
    )
    named = {ROOT / path for path in re.findall(rf"`({rooms}/[\w/.]+?)/?`", text) if "NAME" not in path}
    named |= {folder / path for path in re.findall(r"\]\(([\w./]+)\)", text)}
    assert len(named) > 3
    assert [path for path in sorted(named) if not path.exists()] == []
