"""Raw 3D assets with captions -> views, coloured points and signed distances in WebDataset shards.

Also: `python -m data_prep verify DIR` checks a prepared folder, `inspect DIR [KEY]` shows it. DIR may be a
URL (s3://bucket/folder, ...). `verify` takes latents, trainings and whole runs too.
"""

import argparse
import sys
from pathlib import Path

from data_prep.build import prepare
from data_prep.checks import inspect_asset, inspect_dataset, verify
from data_prep.pipeline import DataConfig
from shapeloom.config import UserError, parse_stage, run_main
from shapeloom.log import start_logging
from shapeloom.storage import AnyPath, parse_path


def main() -> None:
    """Runs the stage, or one of its two subcommands."""
    start_logging()
    match sys.argv[1:2]:
        case ["verify"]:
            _verify(sys.argv[2:])
        case ["inspect"]:
            _inspect(sys.argv[2:])
        case _:
            _prepare()


def _prepare() -> None:
    config, _, arguments = parse_stage(
        DataConfig, stage="data_prep", description=__doc__ or "",
        preset=_preset, out_may_be_url=True,
    )  # fmt: skip
    out = parse_path(arguments.out)
    prepare(config, out, executor=arguments.executor, retry_quarantined=arguments.retry_quarantined)


def _preset(arguments: argparse.Namespace) -> AnyPath | None:
    """The run's own config, where its quarantined assets are to be tried again."""
    if not arguments.retry_quarantined:
        return None
    own = parse_path(arguments.out or ".") / "config.yaml"
    if not own.is_file():
        raise UserError(f"{own.parent} holds no data_prep run whose quarantined assets could be tried again.")
    return own


def _verify(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep verify")
    parser.add_argument("folder", type=parse_path)
    folder = parser.parse_args(argv).folder
    from shapeloom.verify import verify_run  # with torch, which no other command here needs

    problems = verify_run(folder, verify) if isinstance(folder, Path) else verify(folder)
    if problems:
        say("\n".join(problems))
        raise UserError(
            f"{folder} has {len(problems)} problem(s), listed above. Delete the files named there and run "
            "the command that wrote them again: only they are made anew."
        )
    say(f"{folder} is sound")


def _inspect(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep inspect")
    parser.add_argument("folder", type=parse_path)
    parser.add_argument("key", nargs="?", help="(the start of) an asset's key; none: the whole data set")
    parser.add_argument("--picture", type=Path, help="file to write the asset's views and depth to")
    arguments = parser.parse_args(argv)
    if arguments.key is None:
        say(inspect_dataset(arguments.folder))
    else:
        say(inspect_asset(arguments.folder, arguments.key, arguments.picture))


def say(text: str) -> None:
    """One block of text on stdout."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    run_main(main)
