"""Options that the commands of this room have beside --out and the config's. Standard library alone."""

import argparse
import re
from pathlib import Path

from shapeloom.options import add_executor


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (index, count) of "2/8", index from 0; raises ArgumentTypeError for anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"a shard is I/N with I from 0 to N - 1, such as 0/8, not {text!r}")
    return int(match[1]), int(match[2])


def _objects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", action="append", default=[], help="what to make; repeatable")
    parser.add_argument(
        "--prompts", type=Path, help="a text file with one prompt a line, or a .csv with prompt,images"
    )
    parser.add_argument(
        "--image", type=Path, nargs="+", action="append", default=[], metavar="FILE",
        help="PNG or JPEG pictures of one object to follow, beside each prompt or without one; repeatable",
    )  # fmt: skip
    parser.add_argument("--model", help="a run or saved pipeline folder, or a hub's owner/name")
    parser.add_argument("--shard", type=parse_shard, metavar="I/N", help="make every N-th batch, from I on")
    add_executor(parser)
    parser.add_argument("--num", type=int, help="objects a prompt")
    parser.add_argument("--seed", type=int, help="the first object's seed")


def _edits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("edit", choices=("vary", "between", "morph"))
    parser.add_argument("--model", help="a run or saved pipeline folder, or a hub's owner/name")
    parser.add_argument(
        "--shape", type=Path, action="append", default=[], help="a file to start from; repeatable"
    )
    parser.add_argument("--prompt", action="append", default=[], help="what it becomes; morph takes two")
    parser.add_argument("--strength", type=float, help="of vary, up to 1: made anew")
    parser.add_argument("--layers", choices=("all", "geometry", "color"), help="what vary changes")
    parser.add_argument("--num", type=int, help="variations, or steps of a walk")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--to-seed", type=int, help="of the other end of morph")


def _views(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", type=Path, action="append", default=[],
        help="a PNG or JPEG of the object, whose background is removed; repeatable: evenly around the turn",
    )  # fmt: skip
    parser.add_argument("--prompt", help="what to see, alone or beside pictures")
    parser.add_argument("--model", help="a finished prior.train_views, or a run folder")
    parser.add_argument("--seed", type=int, help="the same one gives the same bytes")


def _refine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a run or saved pipeline folder, or a hub's owner/name")
    parser.add_argument("--prompt", help="what the shape is to be")
    parser.add_argument("--shape", help="where to start: latent (a sample), none (a ball) or a file")
    parser.add_argument(
        "--guide", help="the 2-D model: views, a diffusers text-to-image folder, or Zero-1-to-3"
    )
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int)


OPTIONS = {
    "sampling": _objects, "sampling.edits": _edits, "sampling.refine": _refine, "sampling.views": _views,
}  # fmt: skip
