"""Options that the page's command has beside the config's. Standard library alone."""

import argparse


def _page(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--host", default="127.0.0.1", help="another address lets others in: there is no login"
    )


OPTIONS = {"serving": _page}
