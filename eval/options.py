"""Options that the commands of this room have beside --out and the config's. Standard library alone."""

import argparse
from pathlib import Path

from shapeloom.options import add_executor


def _judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a system's outputs")
    parser.add_argument("--prompts", type=Path, help="CSV with the columns path and prompt, for all folders")
    parser.add_argument("--reference", help="a data_prep run (a folder or a URL), or a folder of 3D files")
    add_executor(parser)


def _views(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a finished prior.train_views")
    parser.add_argument("--data", help="a data_prep run: a folder or a URL")


OPTIONS = {"eval": add_executor, "eval judge": _judge, "eval.views": _views}
