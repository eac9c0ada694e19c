"""python -m benchmarks.drills.hostile_files [--num 500]: does a hostile asset harm who prepares it?

Each asset is prepared in a process of its own with limits on CPU time and memory and an audit hook that notes
every file opened outside the assets' folder, every file written, process started and address connected to.
Sources are found under the same hook. Ends with an error unless every asset is accounted for, nothing was
crashed, no limit reached and nothing touched.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.drills.hostile_assets import good_files, write_cases
from data_prep.failures import Failure
from data_prep.formats.archives import split_archive
from data_prep.pipeline import DataConfig, try_asset
from data_prep.sources.find import Source, SplitFractions, find_sources

CPU_SECONDS, MEMORY = 30, 3 << 30
_CONFIG = {"num_views": 1, "resolution": 16, "supersample": 1, "num_points": 64, "num_sdf": 64}
_QUIET = ("/proc/", "/sys/", "/dev/null", "/dev/urandom")
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.truncate",
)


@dataclass
class Watch:
    """What happened outside the folder that may be read; hooks can't be taken out, so `start` it once."""

    allowed: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Watches from now on."""
        libraries = tuple(
            {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path}
        )

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                path, mode, flags = arguments
                if isinstance(path, int):
                    return
                name = os.path.realpath(os.fsdecode(path))
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                if writes or not name.startswith((*self.allowed, *libraries, *_QUIET)):
                    self.seen.append(f"open {name} {mode}")
            elif event in _STARTS or event in _CHANGES:
                self.seen.append(f"{event} {arguments}")

        sys.addaudithook(hook)


@dataclass(frozen=True)
class Outcome:
    """Of one asset."""

    path: str
    result: str
    """"prepared", "quarantined: REASON", or "died: ..."."""
    seconds: float
    megabytes: float
    seen: list[str]


def attempt(source: Source, folder: Path, config: DataConfig) -> Outcome:
    """Prepares one asset in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(_attempt(source, folder, config)).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status, usage = os.wait4(child, 0)
    facts = json.loads(told) if told else {"result": f"died: status {status}", "seen": []}
    return Outcome(
        source.path, facts["result"], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, facts["seen"]
    )


def _attempt(source: Source, folder: Path, config: DataConfig) -> dict[str, Any]:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    archive, _ = split_archive(folder / source.path)
    own = archive or folder
    watch = Watch((os.path.realpath(own),))
    watch.start()
    outcome = try_asset(source, folder, config)
    result = f"quarantined: {outcome.reason}" if isinstance(outcome, Failure) else "prepared"
    return {"result": result, "seen": watch.seen[:5]}


def warm_up(folder: Path, config: DataConfig) -> None:
    """Prepares a good file of each format, so that all libraries are loaded before anything is watched."""
    folder.mkdir()
    for name, data in good_files().items():
        (folder / f"{name}.{name.replace('draco', 'glb')}").write_bytes(data)
    sources, _ = find_sources(folder, SplitFractions())
    for source in sources:
        outcome = try_asset(source, folder, config)
        assert not isinstance(outcome, Failure), outcome


def run(root: Path, *, num: int, seed: int) -> tuple[list[Outcome], list[Failure], list[str]]:
    """Outcomes of all assets found, failures of finding them, and what finding them touched outside."""
    assets = write_cases(root, num, seed)
    config = DataConfig(assets=assets, **_CONFIG)
    warm_up(root / "good", config)
    watch = Watch((os.path.realpath(assets),))
    watch.start()
    sources, failures = find_sources(assets, SplitFractions())
    seen, watch.allowed = list(watch.seen), ("/",)
    return [attempt(source, assets, config) for source in sources], failures, seen


def report(outcomes: list[Outcome], failures: list[Failure]) -> None:
    """A line a kind: how its assets ended, the dearest one's CPU seconds and memory."""
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        ends[outcome.path.split("/")[0][:-4]][outcome.result] += 1
    for failure in failures:
        ends[failure.path.split("/")[0][:-4]][f"not taken: {failure.reason}"] += 1
    for kind, counts in sorted(ends.items()):
        own = [o for o in outcomes if o.path.split("/")[0][:-4] == kind]
        seconds, megabytes = (max(column, default=0.0) for column in
                              ([o.seconds for o in own], [o.megabytes for o in own]))  # fmt: skip
        cost = f"{seconds:5.1f} s {megabytes:5.0f} MB"
        sys.stdout.write(f"{kind:<16} {cost}  {', '.join(f'{n} {c}' for n, c in counts.most_common())}\n")


def main() -> None:
    """Runs it, prints the table and what went wrong; exit status 1 if anything did."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.hostile_files", description=__doc__)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failures, seen = run(Path(folder), num=arguments.num, seed=arguments.seed)
        cases = {path.name for path in (Path(folder) / "assets").iterdir() if path.is_dir()}
    report(outcomes, failures)
    told = {o.path.split("/")[0] for o in outcomes} | {f.path.split("/")[0] for f in failures}
    problems = [f"{name}: not accounted for" for name in sorted(cases - told)]
    problems += [f"finding sources: {what}" for what in seen]
    problems += [
        f"{o.path}: {o.result}" for o in outcomes if o.result.startswith(("died", "quarantined: unexpected"))
    ]
    problems += [f"{o.path}: {what}" for o in outcomes for what in o.seen]
    counts = Counter(o.result.split(":")[0] for o in outcomes)
    sys.stdout.write(
        f"\n{len(cases)} cases, {len(outcomes)} assets: {dict(counts)}, {len(failures)} not taken; slowest "
        f"{max(o.seconds for o in outcomes):.1f} CPU-s of {CPU_SECONDS}; "
        f"{time.monotonic() - start:.0f} s in all\n"
    )
    sys.stdout.write("".join(f"PROBLEM {problem}\n" for problem in problems))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
