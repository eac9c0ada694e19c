"""The command line of every stage, and its --help before anything heavy is imported. Standard library alone.

Options that a stage has of its own lie in `options.py` of its room: OPTIONS, by the stage's name, which is
what follows `python -m`.
"""

import argparse
import ast
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

Executor = Literal["processes", "ray"]
AddOptions = Callable[[argparse.ArgumentParser], None]
HELP = {"-h", "--help"}
WITHOUT_OUT = {"serving"}
_ROOT = Path(__file__).parents[1]


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--config F [--set a.b=v ...] [--print-config]`, which every command with a config has."""
    parser.add_argument("--config", type=Path, help="YAML preset, e.g. configs/<stage>/tiny.yaml")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="change one config key"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config as YAML, and stop"
    )


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Adds `--executor`."""
    parser.add_argument(
        "--executor", choices=get_args(Executor), default="processes",
        help="where the work is done: on this machine, or on the Ray cluster that RAY_ADDRESS names",
    )  # fmt: skip


def stage_parser(stage: str, description: str) -> argparse.ArgumentParser:
    """Returns the parser of `python -m stage`."""
    parser = argparse.ArgumentParser(prog=f"python -m {stage}", description=description)
    if stage not in WITHOUT_OUT:
        parser.add_argument("--out", help="folder to write; re-running resumes in it")
    add_config_options(parser)
    add = _own_options(stage)
    if add is not None:
        add(parser)
    return parser


def _own_options(stage: str) -> AddOptions | None:
    """What a stage's room says of it, if anything."""
    room = stage.partition(" ")[0].partition(".")[0]
    if not (_ROOT / room / "options.py").is_file():
        return None
    found: AddOptions | None = importlib.import_module(f"{room}.options").OPTIONS.get(stage)
    return found


def help_text(command: Sequence[str]) -> str | None:
    """Returns what a stage's command (STAGE, OPTION, ...) answers to --help.

    None if it doesn't ask for it, or asks a subcommand, or is none that `stage_parser` parses.
    """
    if not HELP & set(command[:2]) and not (HELP & set(command) and command[1].startswith("-")):
        return None
    path = _ROOT.joinpath(*command[0].split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        source = path.read_text()
    except OSError:
        return None
    if "\n    run_main(" not in source:
        return None
    return stage_parser(command[0], ast.get_docstring(ast.parse(source), clean=False) or "").format_help()
