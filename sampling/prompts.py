"""What to make: a file's prompts or, when nobody says so, captions that the model was trained on."""

from collections import Counter
from pathlib import Path

import yaml

from sampling.pipeline import MAX_PROMPT_LENGTH
from shapeloom.config import UserError
from shapeloom.seed import numpy_rng
from shapeloom.shards import LatentShards


def own_prompts(prior: Path, num: int) -> list[str]:
    """Returns captions of `num` training assets of a prior's run, no two alike, of many categories.

    The same ones for the same latents. They are read where the prior's config says that its latents are, or
    beside it if they have moved together; empty if they are in neither place, as with a saved pipeline.
    """
    config = prior / "config.yaml"
    told = yaml.safe_load(config.read_text()).get("latents") if config.is_file() else None
    places = [Path(told)] if told else []
    folder = next((p for p in (*places, prior.parent / "latents") if (p / "dataset.json").is_file()), None)
    if folder is None:
        return []
    rows = [row for row in LatentShards(folder, "train").rows if row.captions]
    shuffled = [rows[i] for i in numpy_rng("own prompts").permutation(len(rows))]
    seen: Counter[str] = Counter()
    found: dict[str, int] = {}  # caption -> how many before it were of its category
    for row in shuffled:
        caption = " ".join(row.captions[0].split())
        if caption not in found and 0 < len(caption) <= MAX_PROMPT_LENGTH:
            found[caption] = seen[row.category]
            seen[row.category] += 1
    return sorted(found, key=lambda caption: found[caption])[:num]


def read_prompts(path: Path) -> list[str]:
    """Returns the lines of a text file that aren't empty; raises UserError if there is none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompts file {path} can't be read as UTF-8 text ({error}).") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"The prompts file {path} is empty; write one prompt a line.")
    return prompts
