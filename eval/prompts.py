"""Which prompts to sample: mutually exclusive ones, so that retrieval among them has one right answer.

Where every asset names its colour and category, a prompt is such a pair ("an orange chair"), seen in training
or held out from it. Elsewhere a prompt is the caption of one name group, and no two groups share a caption.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shapeloom.seed import numpy_rng
from shapeloom.shards import Row

COLOUR = "colour"
"""The attribute (a column of captions.csv) that holds an asset's main colour."""


@dataclass(frozen=True)
class Prompt:
    """One prompt; family and colour are "" where the data doesn't tell them."""

    text: str
    family: str = ""
    colour: str = ""
    seen: bool = True
    """Whether training assets show it."""


def has_colours(rows: Sequence[Row]) -> bool:
    """Returns whether every asset names its colour and its category."""
    return all(row.attributes.get(COLOUR) and row.category for row in rows)


def pair_prompt(row: Row) -> str:
    """Returns "a red chair" of an asset that names its colour and category."""
    phrase = f"{row.attributes[COLOUR]} {row.category}"
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def own_prompt(row: Row, *, by_pairs: bool) -> str:
    """Returns the prompt that `row` answers; "" if it has no caption."""
    if by_pairs:
        return pair_prompt(row)
    return row.captions[0] if row.captions else ""


def choose_prompts(rows: Sequence[Row], num: int, *, seed: int, least_assets: int = 1) -> list[Prompt]:
    """Returns up to `num` mutually exclusive prompts in an order drawn by `seed`, held-out ones up to a half.

    rows: all rows of the data; those of the split "judge" are left out. least_assets: how many assets must
    answer to a prompt: more leave out names that one asset alone has.
    """
    rows = [row for row in rows if row.split != "judge"]
    by_pairs = has_colours(rows)
    answers = Counter(own_prompt(row, by_pairs=by_pairs) for row in rows)
    first: dict[str, Row] = {}
    groups: set[str] = set()
    # Training assets first: a prompt that both sides show counts as seen.
    for row in sorted(rows, key=lambda row: (row.split != "train", row.key)):
        text = own_prompt(row, by_pairs=by_pairs)
        known = text in first or (not by_pairs and row.group in groups)
        if text and not known and answers[text] >= least_assets:
            first[text] = row
            groups.add(row.group)
    prompts = [
        Prompt(
            text=text,
            family=row.category if by_pairs else "",
            colour=row.attributes[COLOUR] if by_pairs else "",
            seen=row.split == "train",
        )
        for text, row in first.items()
    ]
    rng = numpy_rng("prompts", seed)
    seen, held_out = ([p for p in prompts if p.seen is flag] for flag in (True, False))
    held_out = [held_out[i] for i in rng.permutation(len(held_out))[: max(num // 2, num - len(seen))]]
    seen = [seen[i] for i in rng.permutation(len(seen))[: num - len(held_out)]]
    chosen = seen + held_out
    return [chosen[i] for i in rng.permutation(len(chosen))]
