"""What to make: a file's prompts and pictures or, when nobody says so, captions of the training assets."""

import csv
from collections import Counter
from pathlib import Path

import yaml

from sampling.pipeline import MAX_PROMPT_LENGTH
from shapeloom.config import UserError
from shapeloom.seed import numpy_rng
from shapeloom.shards.tensors import LatentShards


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


def read_table(path: Path) -> list[tuple[str, tuple[Path, ...]]]:
    """Returns (prompt, pictures of the object) of each line of a CSV file with the columns prompt and images.

    Several pictures stand between semicolons, as paths relative to the file's folder. One column is enough.
    Raises UserError for a file that isn't such a table, or of which some lines have a prompt (or pictures)
    and some have none.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.DictReader(stream, strict=True, restkey="more", restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The prompts file {path} can't be read as a UTF-8 CSV table ({error}).") from error
    if not lines:
        raise UserError(
            f"The prompts file {path} is empty; write a line prompt,images and one for each object."
        )
    odd = sorted(set(lines[0]) - {"prompt", "images"})
    if odd or any(line.get("more") for line in lines):
        raise UserError(
            f"The prompts file {path} must have the columns prompt, images or both in its first line, not "
            f"{', '.join(odd) or 'more values than columns'}; quote prompts that hold commas."
        )
    rows = []
    for line in lines:
        names = [name.strip() for name in line.get("images", "").split(";")]
        rows.append((line.get("prompt", "").strip(), tuple(path.parent / name for name in names if name)))
    for number, column in enumerate(("prompt", "images")):
        lacking = [i for i, row in enumerate(rows, start=2) if not row[number]]
        if lacking and len(lacking) < len(rows):
            raise UserError(
                f"The prompts file {path} has {column} in some lines and none in line {lacking[0]}: fill "
                "all of them or none, or use two files."
            )
    return rows
