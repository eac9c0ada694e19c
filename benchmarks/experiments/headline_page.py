"""The page that `benchmarks.experiments.headline` writes: tables, curves (SVG), samples (PNG), caveats."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from shapeloom.metrics import bootstrap_interval
from shapeloom.storage import write_atomic

Scores = dict[str, Any]
LABELS = {"latent": "latent", "points_steps": "points, same steps", "points_seconds": "points, same seconds"}
COLOURS = {"latent": "#c2410c", "points_steps": "#1d4ed8", "points_seconds": "#0f766e"}
MOST_COLUMNS = 10
HEAD = """# Latents against points

Shap-E's claim is that a prior of latents learns faster than a prior of explicit points (Point-E) and matches
or beats it. This page is what one comparison found, whichever way it came out. `make headline` makes it anew
from a finished run (`python -m benchmarks.experiments.headline`); nothing here is written by hand.
"""
CAVEATS = """## What to make of it

- Same data, captions, CLIP, conditions, transformer, batch size, optimizer, averages, sampler and sampling
  steps for all arms; one guidance scale for each, chosen at the largest budget on prompts of train and val.
- A point is a token. The same steps give points far more compute, the same seconds far fewer steps.
- Points predict v at the usual noise levels, latents what their preset says; neither was tuned here. Latents
  do without their preset's start from a linear denoiser (`network.components`), which a set has none of.
- The judge sees meshes, drawn alike from either form. That favours the form whose meshes are cleaner: the
  ceilings say by how much. Point clouds themselves are shown, not judged.
- Intervals are 95%, by bootstrap over prompts (means over seeds); MMD, COV, 1-NNA and Frechet have none but
  the range over seeds. Few samples bias Frechet upward: compare within the table.
- CPU seconds of training are steps times the median of a step, measured on one thread; seconds of the stages
  before are the wall clock's, from their records, on a machine that may have done other things too.
"""


def write_page(
    page: Path, results: Sequence[Scores], facts: Mapping[str, Any],
    pictures: Mapping[str, UInt8[ndarray, "prompts size size 3"]], command: Mapping[str, Any],
) -> None:  # fmt: skip
    """Writes the page and, in images/ beside it, its curves and samples; as far as there are results."""
    images, name = page.parent / "images", page.stem
    write_atomic(images / f"{name}.svg", curves(results, facts["costs"]))
    images.mkdir(parents=True, exist_ok=True)
    _sheet(pictures).save(images / f"{name}.png", optimize=True)
    shown = [facts["prompts"][i] for i in range(min(MOST_COLUMNS, len(facts["prompts"])))]
    rows = ", ".join(LABELS[arm] for arm in LABELS if arm in pictures)
    parts = [
        HEAD, _verdict(results), "## Quality by budget\n", _table(results),
        f"![R@1 by seconds](images/{name}.svg)\n",
        "Solid: seconds of the prior's training; dashed: with the stages before it (latents: encoder and "
        f"encoding, {facts['costs']['latent']:.0f} s; points: their field and shards, "
        f"{facts['costs']['points']:.0f} s).\n",
        "## Differences\n", _differences(results),
        "## From a picture\n", _from_pictures(facts["from_pictures"]),
        "## Ceilings\n", _ceilings(facts["ceilings"]),
        f"## Samples\n\n![Samples](images/{name}.png)\n\n"
        f"Of the largest budget, from above: {rows}, each as the meshes that are judged and as points (the "
        f"cloud itself, or as many of the mesh). Prompts: {'; '.join(shown)}.\n",
        CAVEATS, _how(facts, command),
    ]  # fmt: skip
    write_atomic(page, "\n".join(parts))


def _groups(results: Sequence[Scores]) -> dict[tuple[str, int], list[Scores]]:
    """Results of all seeds, by arm and budget."""
    found: dict[tuple[str, int], list[Scores]] = {}
    for each in sorted(results, key=lambda each: (list(LABELS).index(each["arm"]), each["budget"])):
        found.setdefault((each["arm"], each["budget"]), []).append(each)
    return found


def _hits(scores: Sequence[Scores]) -> ndarray:
    """Of each prompt, the share of seeds whose sample the judge found."""
    return np.mean([each["hits"] for each in scores], axis=0)


def _range(scores: Sequence[Scores], name: str, digits: int) -> str:
    values = [each[name] for each in scores if name in each]
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return (
        mean
        if min(values) == max(values)
        else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def _table(results: Sequence[Scores]) -> str:
    lines = [
        "| arm | budget | steps | CPU s | guidance | seeds | R@1 | CLIP score | 1-NNA | COV | "
        "MMD x 1000 | Frechet | empty | CPU s a sample, its mesh |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (arm, budget), scores in _groups(results).items():
        hits, first = _hits(scores), scores[0]
        low, high = bootstrap_interval(hits)
        thousandfold = [{"mmd": 1000 * each["mmd_cd"]} for each in scores if "mmd_cd" in each]
        lines.append(
            f"| {LABELS[arm]} | {budget} | {first['steps']} | {first['train_seconds']:.0f} | "
            f"{first['guidance_scale']:g} | {len(scores)} | {hits.mean():.3f} ({low:.3f} to {high:.3f}) | "
            f"{_range(scores, 'clip_score', 3)} | {_range(scores, 'one_nna_cd', 3)} | "
            f"{_range(scores, 'cov_cd', 3)} | {_range(thousandfold, 'mmd', 1)} | "
            f"{_range(scores, 'frechet', 3)} | {_range(scores, 'empty', 0)} | "
            f"{_range(scores, 'sampling_seconds', 2)}, {_range(scores, 'mesh_seconds', 2)} |"
        )
    first = results[0]
    return "\n".join(lines) + (
        f"\n\nThe budget is the latent prior's steps. R@1 is among {len(first['hits'])} prompts: chance is "
        f"{1 / len(first['hits']):.3f}. 1-NNA is best at 0.5, COV at about 0.6, MMD and Frechet at 0.\n"
    )


def _paired(results: Sequence[Scores]) -> list[tuple[str, int, float, float, float]]:
    """(arm of points, budget, R@1 of latents over theirs, interval), paired by prompts."""
    groups, found = _groups(results), []
    for (arm, budget), scores in groups.items():
        if arm != "latent" and ("latent", budget) in groups:
            both = min(len(scores), len(groups["latent", budget]))
            difference = _hits(groups["latent", budget][:both]) - _hits(scores[:both])
            found.append((arm, budget, float(difference.mean()), *bootstrap_interval(difference)))
    return found


def _differences(results: Sequence[Scores]) -> str:
    lines = ["| budget | against | R@1 of latents is higher by |", "|---|---|---|"]
    for arm, budget, mean, low, high in _paired(results):
        lines.append(f"| {budget} | {LABELS[arm]} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) |")
    return "\n".join(lines) + "\n"


def _from_pictures(scores: Sequence[Scores]) -> str:
    """A line an arm, each measure beside the latents', paired by assets."""
    arms = {arm: [each for each in scores if each["arm"] == arm] for arm in LABELS}
    lines = [
        "| arm | seeds | R@1 | latents' minus it | Chamfer | latents' minus it |",
        "|---" * 6 + "|",
    ]
    means = {
        arm: [np.mean([each[name] for each in own], axis=0) for name in ("hits", "chamfer")]
        for arm, own in arms.items() if own
    }  # fmt: skip
    for arm, own in means.items():
        cells = []
        for value, latents in zip(own, means.get("latent", own), strict=True):
            low, high = bootstrap_interval(value)
            cells.append(f"{value.mean():.3f} ({low:.3f} to {high:.3f})")
            low, high = bootstrap_interval(latents - value)
            against = f"{(latents - value).mean():+.3f} ({low:+.3f} to {high:+.3f})"
            cells.append("" if arm == "latent" else against)
        lines.append(f"| {LABELS[arm]} | {len(arms[arm])} | {' | '.join(cells)} |")
    budget, num = scores[0]["budget"], len(scores[0]["hits"])
    return "\n".join(lines) + (
        f"\n\nPriors of budget {budget}, shown one view of each of {num} held-out assets and no word, at "
        "the scale chosen on prompts. R@1: the sample's own asset is the nearest of all by the judge, "
        f"who sees other views of it; chance is {1 / num:.3f}. Chamfer-L1: to the asset's own points; "
        "the box is 2 wide.\n"
    )


def _verdict(results: Sequence[Scores]) -> str:
    """One sentence for each notion of equal, at the largest budget."""
    sentences = []
    for arm in ("points_seconds", "points_steps"):
        rows = [row for row in _paired(results) if row[0] == arm]
        if rows:
            _, budget, mean, low, high = rows[-1]
            says = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
            sentences.append(
                f"- **{LABELS[arm]}**, budget {budget}: latents are {says} points by R@1, {mean:+.3f} "
                f"({low:+.3f} to {high:+.3f})."
            )
    return "\n".join(sentences) + "\n"


def _ceilings(known: Mapping[str, Any]) -> str:
    def cell(name: str, digits: int = 3) -> str:
        return f"{known[name]:.{digits}f}" if isinstance(known.get(name), float) else "–"

    field = ", ".join(f"{name} {value:.3f}" for name, value in known.get("cloud_field", {}).items())
    lines = [
        "Held-out assets in the samples' place: what neither prior can be expected to beat.\n",
        "| through | R@1 | 1-NNA | COV |", "|---|---|---|---|",
        f"| the data's own pictures | {cell('ceiling_r_at_1')} | – | – |",
        *(
            f"| meshes of true {kind} | {cell(f'{name}_r_at_1')} | {cell(f'{name}_one_nna_cd')} | "
            f"{cell(f'{name}_cov_cd')} |"
            for name, kind in (("latent", "latents"), ("points", "clouds"))
        ),
        f"\nThe clouds' field on held-out assets: {field or 'not recorded'}. A 1-NNA below 0.5 is right "
        "here: each asset's nearest may be its own copy.\n",
    ]  # fmt: skip
    return "\n".join(lines)


def _how(facts: Mapping[str, Any], command: Mapping[str, Any]) -> str:
    options = json.dumps({name: _plain(value) for name, value in command.items()})
    shrunk = f"Options other than the defaults: `{options}`." if command else "All options are the defaults."
    step = facts["seconds_a_step"]
    return (
        f"## How it was made\n\nA training step takes {step['latent']:.3f} CPU seconds of latents and "
        f"{step['points']:.3f} of points. {shrunk} The whole comparison, at the preset's own sizes, with "
        "three seeds and 100 prompts, is `make headline RUN=RUN PAGE=docs/headline.md`.\n"
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


# ---------------------------------------------------------------- pictures


def _sheet(pictures: Mapping[str, UInt8[ndarray, "prompts size size 3"]]) -> Image.Image:
    """Two rows an arm, its meshes and its points; a column a prompt."""
    rows = [name for arm in LABELS for name in (arm, f"{arm} as points") if name in pictures]
    return Image.fromarray(np.vstack([np.hstack(list(pictures[name][:MOST_COLUMNS])) for name in rows]))


def curves(results: Sequence[Scores], costs: Mapping[str, float]) -> str:
    """R@1 by training seconds (logarithmic), a line an arm; dashed: the stages before it included."""
    groups = _groups(results)
    lines: list[tuple[str, bool, list[tuple[float, float]]]] = []
    for arm in LABELS:
        own = [
            (scores[0]["train_seconds"], float(_hits(scores).mean()))
            for (a, _), scores in groups.items()
            if a == arm
        ]
        before = costs["latent" if arm == "latent" else "points"]
        lines += [(arm, False, own), (arm, True, [(x + before, y) for x, y in own])]
    logs = [np.log10(max(x, 1e-3)) for _, _, points in lines for x, _ in points]
    low, high = float(np.floor(min(logs))), float(np.ceil(max(logs) + 1e-6))

    def at(x: float, y: float) -> str:
        return f"{60 + 380 * (np.log10(max(x, 1e-3)) - low) / (high - low):.1f},{300 - 270 * y:.1f}"

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="640" height="350" font-family="sans-serif" '
             'font-size="12"><rect width="640" height="350" fill="white"/>']  # fmt: skip
    for tenth in range(0, 11, 2):
        y = 300 - 27 * tenth
        parts.append(f'<path d="M60 {y}H440" stroke="#ddd"/><text x="30" y="{y + 4}">{tenth / 10:.1f}</text>')
    for power in range(int(low), int(high) + 1):
        x = 60 + 380 * (power - low) / (high - low)
        parts.append(f'<text x="{x - 10:.0f}" y="318">{10.0**power:g}</text>')
    parts.append('<text x="130" y="340">training seconds; R@1 upward</text>')
    for arm, dashed, points in lines:
        style = ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(at(x, y) for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{COLOURS[arm]}" stroke-width="2"{style}/>'
        )
        parts += [
            f'<circle cx="{c.split(",")[0]}" cy="{c.split(",")[1]}" r="3" fill="{COLOURS[arm]}"/>'
            for c in path.split()
        ]
    for i, arm in enumerate(LABELS):
        parts.append(f'<text x="455" y="{50 + 20 * i}" fill="{COLOURS[arm]}">{LABELS[arm]}</text>')
    return "\n".join([*parts, "</svg>\n"])
