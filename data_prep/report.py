"""`report.html` of a prepared dataset: one page to look at before training on it, loading nothing else.

Beside it `near_duplicates.jsonl` lists pairs of kept assets that look alike; the page shows the first ones.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from data_prep.failures import Failure, from_jsonl
from data_prep.filters import Pair, feature, near_duplicates
from shapeloom import page
from shapeloom.pictures import on_white
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath, write_atomic

_MAX_READ = 20_000
"""Assets whose facts and points are read, evenly spread; a larger dataset's page is of a sample."""
_NUM_TILES, _NUM_ROWS, _NUM_PAIRS, _TILE = 72, 200, 24, 96


@dataclass(frozen=True)
class Facts:
    """What the page needs of the assets that were read."""

    shards: AssetShards
    indices: list[int]
    facts: list[dict[str, Any]]
    extents: list[float]
    pairs: list[Pair]
    """Positions in `indices`."""


def write_report(folder: AnyPath, *, near_duplicate: float) -> None:
    """Writes `report.html` and `near_duplicates.jsonl` into a finished dataset folder.

    near_duplicate: feature distance below which two assets count as near duplicates.
    """
    shards = AssetShards(folder)
    failures = from_jsonl((folder / "quarantine.jsonl").read_text())
    facts = gather(shards, near_duplicate)
    lines = [json.dumps(_pair(facts, pair), sort_keys=True, ensure_ascii=False) for pair in facts.pairs]
    write_atomic(folder / "near_duplicates.jsonl", "".join(line + "\n" for line in lines))
    sections = [_head(facts, failures), _sheet(facts), _histograms(facts), _warnings(facts),
                _near_duplicates(facts), _quarantine(facts, failures)]  # fmt: skip
    write_atomic(folder / "report.html", page.document("Data report", [s for s in sections if s]))


def gather(shards: AssetShards, near_duplicate: float) -> Facts:
    """Reads facts and points of the assets, at most `_MAX_READ` of them."""
    indices = _spread(len(shards), _MAX_READ)
    facts, extents, features = [], [], []
    for index in indices:
        sample = shards.read(index, points=True)
        assert sample.points is not None and sample.points_rgb is not None
        facts.append(shards.facts(index))
        sides = np.ptp(sample.points, axis=0)
        extents.append(float(sides.min() / sides.max()))
        features.append(feature(sample.points[:4096], sample.points_rgb[:4096]))
    return Facts(shards, indices, facts, extents, near_duplicates(np.stack(features), near_duplicate))


def _spread(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()


def _pair(facts: Facts, pair: Pair) -> dict[str, Any]:
    first, second = facts.facts[pair.first], facts.facts[pair.second]
    return {"paths": [first["path"], second["path"]], "splits": [first["split"], second["split"]],
            "distance": round(pair.distance, 4)}  # fmt: skip


def _picture(shards: AssetShards, index: int) -> UInt8[ndarray, "height width 3"]:
    """The first view that shows anything, on white, small."""
    sample = shards.read(index, views=range(min(4, shards.num_views)))
    assert sample.rgba is not None  # views were asked for
    shown = sample.rgba[..., 3].max(axis=(1, 2))
    step = max(1, shards.resolution // _TILE)
    return on_white(sample.rgba[int(np.argmax(shown > 0))])[::step, ::step]


def _figure(shards: AssetShards, index: int, caption: str) -> str:
    return page.figure(page.picture_uri(_picture(shards, index)), page.text(caption), alt=caption)


# ---------------------------------------------------------------- sections


def _head(facts: Facts, failures: Sequence[Failure]) -> str:
    shards, total = facts.shards, len(facts.shards) + len(failures)
    crossing = sum(_crosses(facts, pair) for pair in facts.pairs)
    captions = sum(len(row.captions) for row in shards.rows)
    splits = ", ".join(f"{count} {split}" for split, count in sorted(shards.header["splits"].items()))
    cards = [
        page.card("Assets", f"{len(shards):,}", splits),
        page.card("Left out", f"{len(failures):,}", f"{len(failures) / total:.1%} of {total:,}"),
        page.card("Captions", f"{captions:,}", f"{captions / len(shards):.1f} an asset"),
        page.card("Near duplicates", f"{len(facts.pairs):,}", f"pairs, {crossing:,} across splits"),
        page.card("Views", f"{shards.num_views}", f"an asset, of {shards.resolution} x {shards.resolution}"),
    ]
    note = (
        ""
        if len(facts.indices) == len(shards)
        else f" Pictures and figures are of {len(facts.indices):,} of them."
    )
    intro = f"<p class='soft'>Digest {page.text(shards.digest[:16])}.{note}</p>"
    return f"<h1>Data report</h1>{intro}<div class='cards'>{''.join(cards)}</div>"


def _sheet(facts: Facts) -> str:
    shards = facts.shards
    by_category = Counter(row.category or "(none)" for row in shards.rows)
    counts = ", ".join(f"{name} {count}" for name, count in by_category.most_common(20))
    more = f" and {len(by_category) - 20} more" if len(by_category) > 20 else ""
    figures = [_figure(shards, i, (shards.rows[i].captions or [shards.rows[i].key])[0])
               for i in _spread(len(shards), _NUM_TILES)]  # fmt: skip
    return f"<h2>Assets</h2><p class='soft'>{page.text(counts)}{more}.</p>{page.tiles(figures)}"


def _histograms(facts: Facts) -> str:
    rows = [facts.shards.rows[index] for index in facts.indices]
    drawn = [
        page.histogram("faces", [f["num_faces"] for f in facts.facts], logarithmic=True),
        page.histogram(
            "longest side in the file's units", [1.9 / f["scale"] for f in facts.facts], logarithmic=True
        ),
        page.histogram("thinnest side over longest", facts.extents),
        page.histogram("words a caption", [len(c.split()) for row in rows for c in row.captions]),
        page.histogram("captions an asset", [len(row.captions) for row in rows]),
    ]
    return f"<h2>Figures</h2>{page.tiles(drawn, 'large')}"


def _warnings(facts: Facts) -> str:
    """Counts by the warnings' first words; the rest of one is of one asset alone."""
    examples: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for entry in facts.facts:
        for warning in entry["warnings"]:
            examples[" ".join(warning.split(" ")[:2]).rstrip(":")].append((entry["path"], warning))
    if not examples:
        return ""
    rows = [[page.text(kind), str(len(found)), page.text(found[0][0]), page.text(found[0][1][:200])]
            for kind, found in sorted(examples.items(), key=lambda item: -len(item[1]))[:20]]  # fmt: skip
    return f"<h2>Warnings</h2>{page.table(['Kind', 'assets', 'such as', 'which says'], rows, words=True)}"


def _crosses(facts: Facts, pair: Pair) -> bool:
    return facts.facts[pair.first]["split"] != facts.facts[pair.second]["split"]


def _near_duplicates(facts: Facts) -> str:
    if not facts.pairs:
        return ""
    figures = []
    for pair in sorted(facts.pairs, key=lambda pair: not _crosses(facts, pair))[:_NUM_PAIRS]:
        indices = [facts.indices[pair.first], facts.indices[pair.second]]
        both = np.concatenate([_picture(facts.shards, index) for index in indices], axis=1)
        names = " and ".join(
            f"{f['path']} ({f['split']})" for f in (facts.facts[pair.first], facts.facts[pair.second])
        )
        mark = '<span class="bad">across splits</span> ' if _crosses(facts, pair) else ""
        caption = f"{mark}{page.text(names)}, distance {pair.distance:.2f}"
        figures.append(page.figure(page.picture_uri(both), caption, alt=names))
    intro = (
        "<p class='soft'>Kept, and listed in near_duplicates.jsonl: surfaces at the same places in the same "
        "colours. Pairs across splits come first; the same <code>group</code> brings two together.</p>"
    )
    return f"<h2>Near duplicates</h2>{intro}{page.tiles(figures, 'large')}"


def _quarantine(facts: Facts, failures: Sequence[Failure]) -> str:
    if not failures:
        return "<h2>Left out</h2><p>Nothing: every asset was prepared.</p>"
    counts = Counter(f"{failure.stage}: {failure.reason}" for failure in failures)
    summary = page.table(["Reason", "assets"], [[page.text(k), str(n)] for k, n in counts.most_common()])
    twin = {fact["sha256"]: index for index, fact in zip(facts.indices, facts.facts, strict=True)}
    figures = [_figure(facts.shards, twin[f.sha256], f"{f.path}: {f.message}")
               for f in failures if f.reason == "duplicate" and f.sha256 in twin]  # fmt: skip
    shown = [[page.text(f.path), page.text(f"{f.stage}: {f.reason}"), page.text(f.message[:300])]
             for f in failures[:_NUM_ROWS]]  # fmt: skip
    more = len(failures) - _NUM_ROWS
    rest = f"<p class='soft'>… and {more} more in quarantine.jsonl.</p>" if more > 0 else ""
    pictures = (
        f"<h3>Duplicates, as their kept copies look</h3>{page.tiles(figures[:_NUM_PAIRS])}" if figures else ""
    )
    return (
        "<h2>Left out</h2>"
        + summary
        + page.table(["File", "reason", "what was found"], shown, words=True)
        + rest
        + pictures
    )
