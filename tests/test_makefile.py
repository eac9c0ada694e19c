"""What people type reaches the commands of the Makefile as it is, whatever shell and make would do to it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shapeloom.config import Config, load_config

ROOT = Path(__file__).parents[1]
WORDS = (
    "a red chair", 'a 5" "vase"', "it's a cat's bed", "`touch CAUGHT`", "$(touch CAUGHT) $HOME ${HOME}",
    "$(shell touch CAUGHT)", "a; touch CAUGHT # b", "two  blanks ", "-x", "a\\b", "a: {b} [c] *d !e %f &g",
    "Stuhl, größer",
)  # fmt: skip


class Prepared(Config):
    """The one key of data preparation that the Makefile sets."""

    assets: Path | None = None


def arguments(target: str, name: str, words: str, folder: Path, *, by_environment: bool = False) -> list[str]:
    """The arguments of the command that a target starts; a folder with blanks stands for the run's."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    script.chmod(0o755)
    given = [] if by_environment else [f"{name}={words}"]
    command = [
        "make",
        "-s",
        "-f",
        str(ROOT / "Makefile"),
        target,
        "STAMP=",
        f"PY={script}",
        "RUN=my run",
        *given,
    ]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere", **({name: words} if by_environment else {})}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert not (folder / "CAUGHT").exists()
    return list(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.skipif(shutil.which("make") is None, reason="make isn't installed")
@pytest.mark.parametrize("by_environment", [False, True])
def test_prompts_and_folders_pass_through_make_unchanged(tmp_path: Path, by_environment: bool) -> None:
    for name in ("pyproject.toml", "constraints.txt", "requirements-pytorch3d.txt", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    for words in WORDS:
        given = arguments("sample", "PROMPT", words, tmp_path, by_environment=by_environment)
        assert f"--prompt={words}" in given
        assert "prior=my run/prior" in given
        given = arguments("data-prep", "ASSETS", words, tmp_path, by_environment=by_environment)
        config = load_config(Prepared, None, given[given.index("--set") + 1 :])
        assert config.assets == Path(words)
    assert not any(each.startswith("--prompt") for each in arguments("sample", "PROMPT", "", tmp_path))
