"""The web page as a service: python examples/page_client.py http://127.0.0.1:7860 OUT [--prompt ...]

Asks a page that `make serve` serves for an object and saves its files in OUT; needs Gradio's client, which
comes with the extra `serve`. The page makes one object at a time: this waits for its turn.
"""

import argparse
import shutil
from pathlib import Path

from gradio_client import Client


def main(argv: list[str] | None = None) -> None:
    """Asks, waits, saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default="a red chair")
    parser.add_argument("--negative", default="", help="what to keep away from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--guidance", type=float, default=3.0)
    options = parser.parse_args(argv)
    client = Client(options.url, verbose=False)
    _, *files = client.predict(
        options.prompt,
        None,
        options.negative,
        options.seed,
        options.steps,
        options.guidance,
        api_name="/make",
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file["value"] is not None:  # a shape without a surface has no mesh
            shutil.copy(file["value"], options.out)


if __name__ == "__main__":
    main()
