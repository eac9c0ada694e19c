"""Results of one protocol side by side, with differences and their significance.

    python -m eval compare RUN_A RUN_B ... --out OUT

Each RUN is a folder that `python -m eval judge` wrote; their systems make one table, in Markdown, JSON and
HTML. A difference is from the first system, paired where the prompts are (all draws of one protocol are): it
is called better or worse where the 95% interval of the difference leaves out 0, each measure on its own. Runs
of unlike protocols are refused.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from eval.distributions import percentile_interval
from shapeloom import page
from shapeloom.config import UserError
from shapeloom.storage import read_json, write_atomic

RESULTS = "results.json"
LABELS = {
    "failed": "Failed: missing, unreadable or empty", "printable": "Could be printed: all three of",
    "watertight": "– watertight", "one_piece": "– of one piece", "no_inner_shell": "– no inner shell",
    "r_at_1": "R@1 of the prompt", "r_at_5": "R@5 of the prompt", "clip_score": "CLIP score",
    "mmd_cd": "MMD-CD", "cov_cd": "COV-CD", "one_nna_cd": "1-NNA-CD (0.5 is best)",
    "diversity_cd": "Diversity within a prompt, CD",
    "frechet": "Frechet distance", "kernel": "Kernel distance",
    "precision": "Precision", "recall": "Recall", "density": "Density", "coverage": "Coverage",
    "diversity": "Diversity within a prompt",
    "fscore_0.01": "F-score at 0.01", "fscore_0.02": "F-score at 0.02", "fscore_0.05": "F-score at 0.05",
    "chamfer": "Chamfer distance",
    "normal_consistency": "Normal consistency", "normals_off": "Normals off by over 30°",
    "normal_psnr": "PSNR of normal maps, dB",
}  # fmt: skip
LOWER = {"failed", "mmd_cd", "frechet", "kernel", "chamfer", "normals_off"}
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """What one run of `judge` found."""

    folder: Path
    content: Record


@dataclass(frozen=True)
class Cell:
    """One measure of one system, and how it differs from the first system."""

    value: float
    interval: tuple[float, float]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    verdict: str = ""
    """"better" or "worse" than the first system, beyond chance; "": neither, or it is the first."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval compare", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a folder of `python -m eval judge`"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the page")
    arguments = parser.parse_args(argv)
    write_comparison([read_results(folder) for folder in arguments.runs], arguments.out)


def read_results(folder: Path) -> Results:
    """Returns what `judge` left in a folder; UserError where it has left nothing."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} has no {RESULTS}. Name folders that `python -m eval judge` has written.")
    return Results(folder, read_json(path, advice="Run `python -m eval judge` again."))


def check_alike(runs: Sequence[Results]) -> None:
    """Raises UserError that names what differs between the runs' protocols."""
    first = _flat(runs[0].content["protocol"])
    for run in runs[1:]:
        other = _flat(run.content["protocol"])
        unlike = [
            f"{key} is {first.get(key)!r} and {other.get(key)!r}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if unlike:
            raise UserError(
                f"{runs[0].folder} and {run.folder} were not judged by one protocol, so their figures say "
                f"nothing about each other: {'; '.join(unlike[:5])}. Judge the folders in one run, or with "
                "one config, list of prompts and reference."
            )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {
        k: v for name, each in value.items() for k, v in _flat(each, f"{key}.{name}" if key else name).items()
    }


# ---------------------------------------------------------------- the table


def systems_of(runs: Sequence[Results]) -> dict[str, tuple[Path, Record]]:
    """Returns all runs' systems with their folders, by names that the run's completes where two are alike."""
    found: dict[str, tuple[Path, Record]] = {}
    for run in runs:
        for name, system in run.content["systems"].items():
            known = found.get(name)
            if known is not None and known[1]["measures"] == system["measures"]:
                continue  # the same references' own figures
            found[name if known is None else f"{run.folder.resolve().name}/{name}"] = run.folder, system
    return found


def compare(systems: Mapping[str, Record]) -> dict[str, dict[str, Cell]]:
    """Returns the cells of each measure and system; the first system is the baseline."""
    names = dict.fromkeys(key for system in systems.values() for key in system["measures"])
    order = list(LABELS)
    baseline = next(iter(systems.values()))["measures"]
    table: dict[str, dict[str, Cell]] = {}
    for key in sorted(names, key=lambda key: (order.index(key.partition("/")[0]), key)):
        table[key] = {
            name: _cell(key, system["measures"][key], None if number == 0 else baseline.get(key))
            for number, (name, system) in enumerate(systems.items())
            if key in system["measures"]
        }
    return table


def _cell(key: str, own: Record, baseline: Record | None) -> Cell:
    value, interval = own["value"], tuple(own["interval"])
    if baseline is None:
        return Cell(value, interval)
    draws, before = (np.array(each["draws"], float) for each in (own, baseline))
    low, high = percentile_interval(_loss(key, before) - _loss(key, draws))
    verdict = "better" if low > 0 else "worse" if high < 0 else ""
    ends = percentile_interval(draws - before)
    return Cell(value, interval, value - baseline["value"], ends, verdict)


def _loss(key: str, value: Float[ndarray, " *draws"]) -> Float[ndarray, " *draws"]:
    """What is less where the measure is better."""
    name = key.partition("/")[0]
    if name == "one_nna_cd":
        return np.abs(value - 0.5)
    return value if name in LOWER else -value


def label(key: str) -> str:
    """Returns a measure's name for people."""
    name, *parts = key.split("/", 2)
    said = f"{LABELS[name]}, {', '.join(parts)}" if parts else LABELS[name]
    return f"{said} (less is better)" if name in LOWER else said


# ---------------------------------------------------------------- files


def write_comparison(runs: Sequence[Results], out: Path) -> None:
    """Writes table.md, table.json and report.html. Raises UserError for runs of unlike protocols."""
    check_alike(runs)
    found = systems_of(runs)
    table = compare({name: system for name, (_, system) in found.items()})
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.md", markdown(table, list(found)))
    cells = {key: {name: vars(cell) for name, cell in row.items()} for key, row in table.items()}
    write_atomic(out / "table.json", json.dumps(cells, indent=1) + "\n")
    write_atomic(out / "report.html", html(runs, found, table))


def markdown(table: Mapping[str, Mapping[str, Cell]], systems: Sequence[str]) -> str:
    """Returns the table; * marks what is better than the first system, ° what is worse."""
    lines = [f"| | {' | '.join(systems)} |", "|---" * (len(systems) + 1) + "|"]
    for key, row in table.items():
        lines.append(f"| {label(key)} | {' | '.join(_words(row.get(name)) for name in systems)} |")
    note = "95% intervals in brackets. `*`: better than the first system, `°`: worse, beyond chance."
    return "\n".join([*lines, "", note, ""])


def _words(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    mark = {"better": " *", "worse": " °", "": ""}[cell.verdict]
    return f"{cell.value:.4g} [{cell.interval[0]:.4g}, {cell.interval[1]:.4g}]{mark}"


def html(
    runs: Sequence[Results], found: Mapping[str, tuple[Path, Record]], table: Mapping[str, Mapping[str, Cell]]
) -> str:
    """Returns the page: the table, differences, pictures side by side, failures and the protocol."""
    content = runs[0].content
    rows = [
        [page.text(label(key)), *(_html_cell(row.get(name)) for name in found)] for key, row in table.items()
    ]
    missing = "".join(
        f"<p class='soft'>Not computed: {page.text(each)}.</p>" for each in content["not_computed"]
    )
    num = content["protocol"]["objects"]
    intro = (
        f"Sets, distances and neighbours are of {num} outputs and as many references. "
        "95% intervals by a bootstrap over prompts and seeds. Beneath, the difference from the first system; "
        "it is coloured where its own interval leaves out 0, each measure on its own."
    )
    sections = [
        "<h1>Systems side by side</h1>",
        f"<p class='soft'>{intro}</p>",
        page.table(["", *map(page.text, found)], rows),
        missing,
        _pictures(found),
        _failures(found),
        _protocol(runs),
    ]
    return page.document("Systems side by side", sections)


def _html_cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    low, high = cell.interval
    own = f"{cell.value:.3g}<br><span class='soft small'>{low:.3g} to {high:.3g}</span>"
    if cell.difference is None or cell.difference_interval is None:
        return own
    colour = {"better": "good", "worse": "bad", "": "soft"}[cell.verdict]
    low, high = cell.difference_interval
    told = f"{cell.difference:+.3g} ({low:+.3g} to {high:+.3g}) {cell.verdict}"
    return f"{own}<br><span class='{colour} small'>{told}</span>"


def _pictures(found: Mapping[str, tuple[Path, Record]]) -> str:
    """A row an output, a column a system: lit, and normals."""
    shown = {
        name: (folder, system["pictures"]) for name, (folder, system) in found.items() if system["pictures"]
    }
    num = max((len(pictures) for _, pictures in shown.values()), default=0)
    if not num:
        return ""
    rows = []
    for number in range(num):
        cells = []
        for folder, pictures in shown.values():
            each = pictures[number] if number < len(pictures) else None
            cells.append(_figure(folder, each) if each else "–")
        rows.append(cells)
    return "<h2>Pictures</h2>" + page.table([page.text(name) for name in shown], rows)


def _figure(folder: Path, each: Record) -> str:
    words = each["prompt"] or each["name"]
    said = page.text(words) + (
        f"<br><span class='bad'>{page.text(each['fault'])}</span>" if each["fault"] else ""
    )
    return page.figure(page.file_uri(folder / each["picture"]), said, alt=words)


def _failures(found: Mapping[str, tuple[Path, Record]]) -> str:
    rows = [
        [page.text(name), page.text(output), page.text(fault)]
        for name, (_, system) in found.items()
        for output, fault in list(system["failures"].items())[:50]
    ]
    return "<h2>Failures</h2>" + page.table(["System", "output", "what was found"], rows) if rows else ""


def _protocol(runs: Sequence[Results]) -> str:
    rows = [[page.text(key), page.text(value)] for key, value in _flat(runs[0].content["protocol"]).items()]
    for run in runs:
        facts = _flat(run.content["provenance"])
        rows += [
            [page.text(f"{run.folder.resolve().name}: {key}"), page.text(value)]
            for key, value in facts.items()
        ]
    return "<h2>Protocol and provenance</h2>" + page.table(["Key", "value"], rows, words=True)
