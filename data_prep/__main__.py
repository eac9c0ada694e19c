"""`python -m data_prep --config F --out DIR`, and the subcommands `verify DIR` and `inspect DIR [KEY]`."""

import argparse
import sys
from pathlib import Path

from data_prep.build import prepare
from data_prep.checks import inspect_asset, inspect_dataset, verify
from data_prep.pipeline import DataConfig
from shapeloom.config import parse_stage, run_main
from shapeloom.log import start_logging

_DESCRIPTION = """Raw 3D assets with captions -> views, coloured points and signed distances in WebDataset
shards. Also: `python -m data_prep verify DIR` checks a prepared folder, `inspect DIR [KEY]` shows it."""


def main() -> None:
    """Runs the stage, or one of its two subcommands."""
    start_logging()
    match sys.argv[1:2]:
        case ["verify"]:
            parser = argparse.ArgumentParser(prog="python -m data_prep verify")
            parser.add_argument("folder", type=Path)
            say(verify(parser.parse_args(sys.argv[2:]).folder))
        case ["inspect"]:
            parser = argparse.ArgumentParser(prog="python -m data_prep inspect")
            parser.add_argument("folder", type=Path)
            parser.add_argument("key", nargs="?", help="(the start of) an asset's key")
            parser.add_argument("--picture", type=Path, help="where its views go; default: KEY.png")
            arguments = parser.parse_args(sys.argv[2:])
            if arguments.key is None:
                say(inspect_dataset(arguments.folder))
            else:
                picture = arguments.picture or Path(f"{arguments.key}.png")
                say(inspect_asset(arguments.folder, arguments.key, picture))
        case _:
            config, out, _ = parse_stage(DataConfig, stage="data_prep", description=_DESCRIPTION)
            prepare(config, out)


def say(text: str) -> None:
    """One block of text on stdout."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    run_main(main)
