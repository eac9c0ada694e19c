"""The whole stage: sources -> shards -> dataset.json and quarantine.jsonl, resumable at every shard."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from data_prep.failures import Failure, from_jsonl, to_jsonl
from data_prep.pipeline import DataConfig, ShardTask, prepare_shard, quarantine_path
from data_prep.procedural.dataset import generate
from data_prep.render import raster, zbuffer
from data_prep.render.views import Backend, resolve
from data_prep.report import write_report
from data_prep.sources.find import NAMELESS, SPLITS, Source, SplitFractions, assets_root, find_sources
from data_prep.sources.objaverse_cache import find_objaverse
from shapeloom.config import UserError, load_config
from shapeloom.executors import Executor, run_tasks
from shapeloom.log import get_logger, progress
from shapeloom.runs import Run, text_digest
from shapeloom.shards import dataset_is_whole, finish_dataset, shard_is_finished
from shapeloom.storage import AnyPath, write_atomic

log = get_logger("data_prep")
_PLACES = ("objaverse.cache", "objaverse.uids", "objaverse.captions")


def prepare(
    config: DataConfig, out: AnyPath, *, executor: Executor = "processes", retry_quarantined: bool = False
) -> None:
    """Prepares all assets that `config` names into the dataset folder `out`, or says that this is done.

    A run that was ended goes on from its finished shards. retry_quarantined: tries what finished shards left
    out once more, for which the limits may differ from the run's so far.
    Raises UserError for a folder or captions file that can't be used, and if not a single asset could be
    prepared.
    """
    config = config.model_copy(update={"renderer": _choose_renderer(config.renderer, out)})
    if config.renderer == "gl":
        raster.require()
    procedural = config.assets is None and config.objaverse is None
    if procedural and not isinstance(out, Path):
        raise UserError(f"The procedural set is generated beside the data, so {out} must be a local folder.")
    found = None if procedural else _find(config)
    inputs = {} if found is None else {"assets": _digest(found[1])}
    with _open_run(config, out, inputs, retry_quarantined) as run:
        if run.done:
            log.info("%s is already done", out)
            return
        if config.renderer == "zbuffer":
            zbuffer.require()
        if found is None:
            folder = run.folder / "assets"
            generate(config.procedural, folder)
            found = (folder, *find_sources(folder, config.splits))
        folder, sources, failures = found
        left_out = f", {len(failures)} left out" if failures else ""
        log.info("%d assets in %s%s", len(sources), folder, left_out)
        for warning in listing_warnings(sources, config.splits):
            log.warning("%s", warning)
        tasks = plan_shards(sources, folder, out, config)
        _run_shards(tasks, config, run, executor, retry_quarantined)
        run.finish(**_finish(tasks, failures, config, out))


def _choose_renderer(wanted: Backend, out: AnyPath) -> Backend:
    """What "auto" is for this run: what it was begun with, since the two draw edges a little differently."""
    if wanted != "auto":
        return wanted
    path = out / "config.yaml"
    if path.is_file():
        with suppress(yaml.YAMLError, UnicodeDecodeError):  # Run.open says what is wrong with it
            run = yaml.safe_load(path.read_text())
            if isinstance(run, dict) and run.get("renderer") in ("zbuffer", "embree"):
                return run["renderer"]
    if reason := zbuffer.reason_against():
        log.warning("views are drawn by ray casting, several times slower than by compiled code: %s", reason)
    return resolve("auto")


def _find(config: DataConfig) -> tuple[Path, list[Source], list[Failure]]:
    """The user's own assets: the folder that paths are relative to, sources, and what was left out."""
    if config.objaverse is None:
        assert config.assets is not None
        return assets_root(config.assets), *find_sources(config.assets, config.splits)
    if config.assets is not None:
        raise UserError("`assets` and `objaverse` are both set: prepare them in two runs.")
    return config.objaverse.root, *find_objaverse(config.objaverse, config.splits)


def listing_warnings(sources: Sequence[Source], fractions: SplitFractions) -> list[str]:
    """What a user should know of splits and captions before the work begins."""
    counts, groups = Counter(source.split for source in sources), {source.group for source in sources}
    empty = [name for name, share in fractions.model_dump().items() if share and not counts[name]]
    held = f"{_plural(len(sources), 'asset')} in {_plural(len(groups), 'group')}"
    advice = "splits go by group: name `group` or `split` in captions.csv, or set splits.*"
    warnings = []
    if len(counts) == 1 and empty:
        warnings.append(f"Everything, {held}, is in the split {min(counts)}; {advice}")
    elif empty:
        which = f"split {empty[0]} is" if len(empty) == 1 else f"splits {', '.join(empty)} are"
        warnings.append(f"The {which} empty, with {held}; {advice}")
    if nameless := sum(source.captions == [NAMELESS] for source in sources):
        warnings.append(
            f"{nameless} of {len(sources)} assets have no caption and no telling name, and are called "
            f"{NAMELESS!r}; write captions.csv to caption them"
        )
    return warnings


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _open_run(config: DataConfig, out: AnyPath, inputs: Mapping[str, str], retry: bool) -> Run:
    # How many processes work is no part of what is made.
    identity = config.model_copy(update={"workers": None})
    if not retry:
        run = Run.open(out, identity, stage="data_prep", inputs=inputs, places=_PLACES)
        if run.done and not dataset_is_whole(out):
            log.warning("%s was done, but has lost shards since, which are made again", out)
            run.reopen(identity)
        return run
    before = load_config(DataConfig, out / "config.yaml").limits
    if before.max_texture != config.limits.max_texture:
        raise UserError(
            f"limits.max_texture was {before.max_texture} and changes every asset: use another --out for "
            f"{config.limits.max_texture}."
        )
    same = identity.model_copy(update={"limits": before})
    run = Run.open(out, same, stage="data_prep", inputs=inputs, places=_PLACES)
    run.reopen(identity)
    return run


def _digest(sources: Sequence[Source]) -> str:
    return text_digest("\n".join(str(asdict(source)) for source in sources))


def plan_shards(sources: Sequence[Source], folder: Path, out: AnyPath, config: DataConfig) -> list[ShardTask]:
    """Which assets go into which tar: one split a tar, by content id within a split.

    The order mixes categories, and doesn't change when files are renamed.
    """
    chunks = []
    for split in SPLITS:
        members = sorted(
            (source for source in sources if source.split == split), key=lambda source: source.key
        )
        chunks += [
            members[start : start + config.shard_size] for start in range(0, len(members), config.shard_size)
        ]
    return [
        ShardTask(out / "shards" / f"{number:06d}.tar", folder, chunk, config)
        for number, chunk in enumerate(chunks)
    ]


def _run_shards(
    tasks: Sequence[ShardTask], config: DataConfig, run: Run, executor: Executor, retry: bool
) -> None:
    open_tasks: list[ShardTask] = []
    finished: list[ShardTask] = []
    for task in tasks:
        (finished if shard_is_finished(task.path) else open_tasks).append(task)
    total = sum(len(task.sources) for task in tasks)
    done = sum(len(task.sources) for task in finished)
    if done:
        log.info("going on: %d of %d assets are in finished shards", done, total)
    if retry:
        again = [replace(task, retry=True) for task in finished if quarantine_path(task.path).read_text()]
        log.info("%d finished shards have left something out, which is tried again", len(again))
        open_tasks += again
        done -= sum(len(task.sources) for task in again)
    with progress(total, "preparing assets", done=done) as bar:
        seen: set[tuple[AnyPath, int]] = set()

        def on_report(task: ShardTask, position: int) -> None:
            if (task.path, position) not in seen:  # a shard that lost its worker starts over
                seen.add((task.path, position))
                bar.advance()

        for task, cost in run_tasks(
            prepare_shard, open_tasks, workers=config.workers, on_report=on_report, executor=executor,
            preload=["data_prep.pipeline"],
        ):  # fmt: skip
            for position in range(len(task.sources)):
                on_report(task, position)
            run.meta["cpu_seconds"] = run.meta.get("cpu_seconds", 0) + cost.cpu_seconds
            run.note_peak_memory(cost.peak_bytes)
            run.save_progress()


def _finish(
    tasks: Sequence[ShardTask], failures: list[Failure], config: DataConfig, out: AnyPath
) -> dict[str, object]:
    for task in tasks:
        failures = failures + from_jsonl(quarantine_path(task.path).read_text())
    for leftover in (out / "shards").glob(".*.tmp"):  # of workers that were killed
        leftover.unlink(missing_ok=True)
    failures.sort(key=lambda failure: (failure.path, failure.reason, failure.message))
    write_atomic(out / "quarantine.jsonl", to_jsonl(failures))
    reasons = dict(sorted(Counter(f"{failure.stage}: {failure.reason}" for failure in failures).items()))
    facts = {
        "views": config.num_views,
        "ring_views": config.num_ring_views,
        "resolution": config.resolution,
        "points": config.num_points,
        "sdf_samples": config.num_sdf,
        "quarantined": reasons,
    }
    header = finish_dataset(out, kind="assets", facts=facts)
    if not header["num_assets"]:
        raise UserError(
            f"None of the {len(failures)} assets could be prepared; {out}/quarantine.jsonl says why."
        )
    write_report(out, near_duplicate=config.filters.near_duplicate)
    log.info("%d assets prepared: %s", header["num_assets"], header["splits"])
    if failures:
        log.warning("%d left out, see %s: %s", len(failures), out / "quarantine.jsonl", reasons)
    return {"digest": header["digest"], "num_assets": header["num_assets"], "splits": header["splits"],
            "quarantined": reasons}  # fmt: skip
