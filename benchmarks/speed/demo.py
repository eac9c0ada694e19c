"""python -m benchmarks.speed.demo OUT TREE [TREE ...]: what `make demo` costs, stage by stage.

Each TREE is a checkout of this project that its own `make setup` has set up: several compare builds. Stages
are run in turn, each by every tree before the next one, into OUT/0, OUT/1 ... Seconds are CPU time of all
processes of a stage, those left behind too (Linux gives orphans to the nearest ancestor that asks for them),
which depends less on what else the machine does than seconds of the clock, in brackets. Figures are those of
each run's metrics.json. Stages that are over are kept in OUT/times.json: the same command goes on (a stage
that was cut short counts from there), and may name more trees.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shapeloom.config import UserError, run_main
from shapeloom.storage import write_atomic

STAGES = ("data-prep", "train-clip", "train-encoder", "encode", "train-prior", "sample", "eval")
FIGURES = {
    "PSNR, dB": ("reconstruction", "psnr"),
    "F@0.02": ("reconstruction", "fscore_0.02"),
    "R@1": ("generation", "r_at_1"),
    "1-NNA": ("generation", "sets", "one_nna_cd"),
}
PR_SET_CHILD_SUBREAPER = 36


def run_stage(tree: Path, stage: str, config: str, run: Path) -> tuple[float, float]:
    """Returns CPU seconds of all processes, and the clock's; raises UserError if the stage fails."""
    before, start = _children_seconds(), time.monotonic()
    with Path(run.parent, f"{run.name}_{stage}.log").open("w") as log:
        code = subprocess.run(
            ["make", "--no-print-directory", stage, f"CONFIG={config}", f"RUN={run.resolve()}"],
            cwd=tree, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": ""}, check=False,
        ).returncode  # fmt: skip
    clock = time.monotonic() - start
    if code:
        raise UserError(f"make {stage} of {tree} ended with {code}; {log.name} says why.")
    with suppress(ChildProcessError):  # no child left
        while True:
            os.wait()
    return _children_seconds() - before, clock


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(times: dict[str, dict[str, list[float]]], figures: Sequence[dict[str, Any]]) -> str:
    """Returns Markdown: CPU seconds (clock) of each stage and tree, ratios to the last tree, figures."""
    trees = list(times)
    several = len(trees) > 1
    lines = [
        "| stage | " + " | ".join(trees) + " |" + (" first / last |" if several else ""),
        "|---" * (1 + len(trees) + several) + "|",
    ]
    totals = {tree: [sum(column) for column in zip(*times[tree].values(), strict=True)] for tree in trees}
    for name, row in [
        *((stage, {tree: times[tree][stage] for tree in trees}) for stage in STAGES),
        ("all", totals),
    ]:
        cells = [f"{row[tree][0]:.0f} ({row[tree][1]:.0f})" for tree in trees]
        cells += [f"{row[trees[0]][0] / row[trees[-1]][0]:.2f}"] * several
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, path in FIGURES.items():
        lines.append(
            f"| {name} | " + " | ".join(_figure(each, path) for each in figures) + " |" + " |" * several
        )
    return "\n".join(lines) + "\n"


def _figure(metrics: dict[str, Any], path: Sequence[str]) -> str:
    """A figure and its interval, where that run knows it."""
    *parents, name = path
    for parent in parents:
        metrics = metrics.get(parent, {})
    if metrics.get(name) is None:
        return ""
    low_high = metrics.get(f"{name}_interval")
    return f"{metrics[name]:.3g}" + (f" ({low_high[0]:.3g}-{low_high[1]:.3g})" if low_high else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is left of the demos; prints and writes OUT/table.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.demo", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("trees", type=Path, nargs="+", metavar="TREE")
    parser.add_argument("--config", default="tiny")
    options = parser.parse_args(argv)
    if sys.platform != "linux":
        raise UserError("Processes that a stage leaves behind are counted by Linux alone.")
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    kept = out / "times.json"
    times: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    known = [times.setdefault(str(tree), {}) for tree in options.trees]
    runs = [out / str(list(times).index(str(tree))) for tree in options.trees]
    for stage in STAGES:
        for tree, run, taken in zip(options.trees, runs, known, strict=True):
            if stage not in taken:
                taken[stage] = list(run_stage(tree, stage, options.config, run))
                write_atomic(kept, json.dumps(times, indent=1))
                sys.stderr.write(f"{tree} {stage}: {taken[stage][0]:.1f} CPU-s\n")
    figures = [json.loads((run / "metrics.json").read_text()) for run in runs]
    text = table({str(tree): times[str(tree)] for tree in options.trees}, figures)
    write_atomic(out / "table.md", text)
    sys.stdout.write(text)


if __name__ == "__main__":
    run_main(main)
