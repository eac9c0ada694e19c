"""Options that the command of this room has beside --out and the config's. Standard library alone."""

import argparse

from shapeloom.options import add_executor


def _prepare(parser: argparse.ArgumentParser) -> None:
    add_executor(parser)
    parser.add_argument(
        "--retry-quarantined", action="store_true",
        help="try again what was left out; without --config, with the run's own and whatever --set changes",
    )  # fmt: skip


OPTIONS = {"data_prep": _prepare}
