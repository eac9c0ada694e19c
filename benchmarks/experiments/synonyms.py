"""python -m benchmarks.experiments.synonyms DATA CLIP...: does CLIP name held-out pictures, in new words too?

Of every held-out asset of the embedded set some views are shown; the candidates are all colours x families,
and again with colours or families called by words that no training caption had. R@1 is the share of views
whose nearest candidate names both right; beside it the shares for the colour and the family alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prior.train_clip import read_pairs
from shapeloom.clip import Clip, load_clip
from shapeloom.shards import AssetShards

COLOURS = {
    "red": "crimson", "blue": "navy", "green": "emerald", "yellow": "golden", "purple": "violet",
    "pink": "rose", "brown": "chocolate", "gray": "grey", "black": "jet", "white": "snowy", "orange": "amber",
}  # fmt: skip
FAMILIES = {
    "sofa": "couch", "car": "automobile", "airplane": "jet plane", "boat": "ship", "house": "cottage",
    "truck": "lorry", "mug": "cup", "bottle": "flask", "lamp": "lantern", "robot": "android",
    "bookshelf": "bookcase", "table": "desk", "hammer": "mallet", "umbrella": "parasol", "tower": "turret",
    "bowl": "dish", "vase": "urn", "chair": "seat", "bed": "bunk", "mushroom": "toadstool", "tree": "oak",
    "guitar": "ukulele", "cactus": "succulent", "snowman": "snow figure",
}  # fmt: skip


def accuracy(
    clip: Clip, vectors: torch.Tensor, truth: np.ndarray, colours: Sequence[str], families: Sequence[str]
) -> tuple[float, float, float]:
    """Shares of pictures named right: both, the colour, the family. truth: [pictures, 2] numbers of each."""
    names = [f"a {colour} {family}" for colour in colours for family in families]
    nearest = (vectors @ clip.text(names).pooled.T).argmax(1).numpy()
    right = np.stack([nearest // len(families), nearest % len(families)], axis=1) == truth
    return float(right.all(1).mean()), float(right[:, 0].mean()), float(right[:, 1].mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each encoder and wording."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.synonyms", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("clips", nargs="+", help="folders of prior.train_clip, or open_clip models")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args(argv)
    shards = AssetShards(arguments.data, arguments.split)
    known = AssetShards(arguments.data).rows
    colours = sorted({row.attributes["colour"] for row in known})
    families = sorted({row.category for row in known})
    facts = [(colours.index(row.attributes["colour"]), families.index(row.category)) for row in shards.rows]
    images, _ = read_pairs(shards, size=shards.resolution, num_views=arguments.views)
    truth = np.repeat(np.array(facts), images.shape[1], axis=0)
    for name in arguments.clips:
        clip = load_clip(name)
        vectors = clip.image(images.reshape(-1, *images.shape[2:]))
        wordings = {
            "as in training": (colours, families),
            "other colour words": ([COLOURS.get(c, c) for c in colours], families),
            "other family words": (colours, [FAMILIES.get(f, f) for f in families]),
        }
        for wording, (shown_colours, shown_families) in wordings.items():
            both, colour, family = accuracy(clip, vectors, truth, shown_colours, shown_families)
            sys.stdout.write(
                f"{name}, {wording}: R@1 {both:.0%}, colour {colour:.0%}, family {family:.0%} "
                f"({len(truth)} views, {len(colours) * len(families)} names)\n"
            )


if __name__ == "__main__":
    main()
