"""--help is answered before anything heavy is imported, and says what the command itself would."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shapeloom.finished import STAGES
from shapeloom.options import help_text, stage_parser

ROOT = Path(__file__).parents[1]


def commands() -> Iterator[str]:
    """All modules of the stages that can be run."""
    for room in sorted(STAGES):
        for path in sorted((ROOT / room).rglob("*.py")):
            if "\n    run_main(" in path.read_text():
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                yield name.removesuffix(".__main__")


@pytest.mark.parametrize("command", list(commands()))
def test_the_early_help_is_the_command_s_own(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = f"{command}.__main__" if (ROOT / command.replace(".", "/")).is_dir() else command
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    assert capsys.readouterr().out == help_text([command, "--help"])


def test_help_needs_neither_torch_nor_pydantic_nor_numpy() -> None:
    for stage in ("data_prep", "encoder.encode", "sampling", "serving"):
        words = [sys.executable, "-X", "importtime", "-m", stage, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"usage: python -m {stage}")
        assert not re.search(r"\|\s+(torch|pydantic|numpy)\n", done.stderr)


def test_data_preparation_needs_no_torch() -> None:
    code = "import sys, data_prep.__main__, data_prep.pipeline; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_a_stage_s_own_help_is_answered_early() -> None:
    assert help_text(["sampling", "--prompt", "--help me"]) is None
    assert help_text(["data_prep", "verify", "--help"]) is None
    assert help_text(["prior.latents", "--help"]) is None  # no command
    assert help_text(["prior.no_such_module", "--help"]) is None
    assert help_text(["prior.train"]) is None
    assert help_text([]) is None
    assert "--shard" in stage_parser("sampling", "").format_help()
