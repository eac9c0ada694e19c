"""Judges folders of any system's outputs, 3D files or pictures, in one table.

    python -m eval judge DIR [DIR ...] --prompts prompts.csv --reference RUN/data --out OUT [--config F]

Writes OUT/results.json, table.md and report.html. Every output is looked at once: `OUT/cache` (or `cache`)
keeps what was seen by the files' content, so that a second run, a killed one or another folder reads it.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from eval.backbones import SHAPED, BackboneConfig, load_backbone
from eval.compare import RESULTS, read_results, write_comparison
from eval.folders import Item, read_outputs, read_references
from eval.looks import POINTS, Look, LookConfig, Task, look, make_task, read_look, read_thumbs
from eval.measures import Judged, MeasureConfig, Measured, Reference, Retrieval
from shapeloom.clip import Clip, load_clip
from shapeloom.config import Config, UserError, parse_stage
from shapeloom.executors import Executor, check_written, everywhere, run_tasks
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.runs import Run, text_digest
from shapeloom.storage import Location, parse_path, write_atomic

log = get_logger("judge")
TRAINING = "training assets"
"""The system that has as many training assets in the outputs' place: what can't be beaten honestly."""
HELD_OUT = "held-out assets"
"""The references themselves: the judge's ceiling, and how many of them could be printed."""


class JudgingConfig(Config):
    """A protocol: what outputs are held against, and how. Results of unlike protocols are not compared."""

    reference: Location | None = Field(
        None, description="a data_prep run (a folder or a URL), or a folder of 3D files"
    )
    prompts: Path | None = Field(None, description="CSV with path and prompt; none: each folder's own list")
    reference_digest: str | None = Field(None, description="that the reference must have; none: any")
    prompts_digest: str | None = Field(None, description="that the prompts must have; none: any")
    reference_splits: list[str] = Field(["val", "test"], min_length=1)
    max_reference: int = Field(1000, ge=2, description="held-out assets, and as many training ones")
    judge: str | None = Field(
        None, description="CLIP that finds prompts, which conditioned none of them: folder or MODEL/FILE"
    )
    backbones: list[BackboneConfig] = Field([BackboneConfig(kind="seeded")], min_length=1)
    look: LookConfig = LookConfig()
    measures: MeasureConfig = MeasureConfig()
    pictures: int = Field(24, ge=0, description="outputs of each system on the page")
    cache: Path | None = Field(None, description="folder shared by runs; none: OUT/cache")
    workers: int | None = Field(
        None, ge=0, description="processes; none: one a core; 0: this process, unguarded"
    )

    def protocol(self) -> dict[str, Any]:
        """What figures depend on, without places."""
        places = {"reference", "prompts", "pictures", "cache", "workers", "judge", "backbones"}
        return self.model_dump(mode="json", exclude=places)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, arguments = parse_stage(
        JudgingConfig, stage="eval judge", description=__doc__ or "", argv=argv
    )
    named = {"prompts": arguments.prompts, "reference": arguments.reference}
    config = config.model_copy(update={key: value for key, value in named.items() if value is not None})
    start_logging()
    if config.reference is None:
        raise UserError("Name what outputs are held against: --reference DATA (or a folder of 3D files).")
    judge(arguments.folders, out, config, arguments.executor)


def judge(
    folders: Sequence[Path], out: Path, config: JudgingConfig, executor: Executor = "processes"
) -> None:
    """Judges folders and writes results, table and page to `out`."""
    assert config.reference is not None
    given = _given_backbones(config)
    networks = _network_names(given)
    clip = load_clip(config.judge, "cpu") if config.judge is not None else None
    data, seed = parse_path(config.reference), config.measures.seed
    references = read_references(data, config.reference_splits, most=config.max_reference, seed=seed)
    names = _names(folders).items()
    systems = {name: read_outputs(each, config.prompts, references) for name, each in names}
    prompts = _common_prompts(systems)
    retrievals = _retrievals(config, given, clip, prompts)
    cache = config.cache or out / "cache"

    def tasks_of(items: Sequence[Item]) -> list[Task]:
        guarded = config.workers != 0
        return [make_task(item, config.look, tuple(given), cache, is_guarded=guarded) for item in items]

    held_out = tasks_of(references.held_out)
    reference_digest = references.digest or text_digest("\n".join(task.path.stem for task in held_out))
    digests = {"reference": reference_digest, "prompts": text_digest("\n".join(prompts))}
    _check_digests(config, digests)
    with Run.open(out, config, stage="judge", inputs=digests, places=("cache", "workers")) as run:
        if run.done:
            run.reopen(config)
        tasks = {name: tasks_of(items) for name, items in systems.items()}
        if references.training:
            tasks[TRAINING] = tasks_of(references.training)
        _look_at_all([*held_out, *(task for each in tasks.values() for task in each)], config, executor)
        # Of all sets the smallest: Frechet distances and neighbours depend on it.
        num = min(len(each) for each in (held_out, *tasks.values()))
        true = _judged(held_out)
        reference = Reference(true, config.measures, networks, num=num)
        measured = {}
        for name, own in tasks.items():
            log.info("measuring %s (%d outputs)", name, len(own))
            judged = _judged(own)
            found = reference.measure(judged, retrievals)
            measured[name] = _record(name, own, judged.looks, found, out, config.pictures)
        ceiling = reference.of_each(true, retrievals)
        measured[HELD_OUT] = _record(HELD_OUT, held_out, true.looks, ceiling, out, config.pictures)
        protocol = config.protocol() | {
            "objects": num, "reference_digest": digests["reference"], "prompts_digest": digests["prompts"],
            "judge_digest": clip.digest if clip else None, "networks": networks,
            "texts": {each.name: each.clip.digest for each in retrievals if each.name},
        }  # fmt: skip
        results = {
            "schema": 1, "protocol": protocol, "not_computed": _not_computed(config), "systems": measured,
            "provenance": _provenance(run, folders),
        }  # fmt: skip
        write_atomic(out / RESULTS, json.dumps(results))
        write_comparison([read_results(out)], out)
        run.finish()
    log.info("the table is in %s, the page is %s", out / "table.md", out / "report.html")


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their last names, or by their paths where those are alike."""
    last = [folder.resolve().name for folder in folders]
    return {name if last.count(name) == 1 else str(f): f for name, f in zip(last, folders, strict=True)}


def _given_backbones(config: JudgingConfig) -> list[BackboneConfig]:
    """Those that can be computed, the judge's own tower among them."""
    tower = [BackboneConfig(kind="clip", file=config.judge)] if config.judge is not None else []
    return [each for each in [*config.backbones, *tower] if each.is_given]


def _network_names(given: Sequence[BackboneConfig]) -> dict[str, str]:
    """Digest -> name. Raises UserError for two that would be one row."""
    names = {load_backbone(each).digest: load_backbone(each).name for each in given}
    for name in names.values():
        if list(names.values()).count(name) > 1:
            raise UserError(f"Two files of `backbones` are both {name}: judge by one of them at a time.")
    return names


def _not_computed(config: JudgingConfig) -> list[str]:
    """What has no file, in the order of the networks; then prompts by shape."""
    weights = [each.kind for each in config.backbones if not each.is_given]
    texts = [
        each.kind for each in config.backbones if each.is_given and each.kind in SHAPED and not each.text
    ]
    return [
        *(f"{kind}: no file of its weights was named" for kind in weights),
        *(f"prompts by {kind}: the CLIP that it was trained beside was not named (text)" for kind in texts),
    ]


def _retrievals(
    config: JudgingConfig, given: Sequence[BackboneConfig], clip: Clip | None, prompts: Sequence[str]
) -> list[Retrieval]:
    """The judge's, and those of networks of points whose CLIP is given. Raises UserError for a CLIP of
    another space."""
    if len(set(prompts)) < 2:
        return []
    found = [Retrieval(clip, prompts)] if clip is not None else []
    for each in given:
        if each.text is not None:
            network, beside = load_backbone(each), load_clip(each.text, "cpu")
            if network.embed_dim != beside.embed_dim:
                raise UserError(
                    f"{each.text} has vectors of {beside.embed_dim} numbers and {network.name} of "
                    f"{network.embed_dim}: name the CLIP that it was trained beside (text)."
                )
            key, name = f"{network.digest} {POINTS}", f"{POINTS}/{network.name}"
            found.append(Retrieval(beside, prompts, key, name=name))
    return found


def _common_prompts(systems: Mapping[str, Sequence[Item]]) -> list[str]:
    """Returns the outputs' prompts in the list's order. Raises UserError where folders' own lists differ."""
    lists = {name: [item.prompt for item in items] for name, items in systems.items()}
    (first, prompts), *others = lists.items()
    for name, own in others:
        if own != prompts and any((*own, *prompts)):
            raise UserError(
                f"{first} and {name} answer to different prompts, so they can't stand in one table. Name one "
                "list for both (--prompts), or judge them apart."
            )
    return prompts


def _check_digests(config: JudgingConfig, digests: Mapping[str, str]) -> None:
    for name, expected in (("reference", config.reference_digest), ("prompts", config.prompts_digest)):
        if expected not in (None, digests[name]):
            raise UserError(
                f"The protocol is of {name} with the digest {expected}, but these have {digests[name]}: use "
                f"the protocol's own {name}, or leave {name}_digest out for figures of another protocol."
            )


def _look_at_all(tasks: Sequence[Task], config: JudgingConfig, executor: Executor) -> None:
    wanted = {task.path: task for task in tasks}
    missing = [task for path, task in wanted.items() if not path.is_file()]
    log.info("%d objects: %d are in the cache", len(wanted), len(wanted) - len(missing))
    with progress(len(missing), "looking at objects") as bar:
        for task, _ in run_tasks(
            _look, [_anywhere(task) for task in missing], workers=config.workers, on_report=lambda *_: None,
            executor=executor, preload=["eval.looks"],
        ):  # fmt: skip
            check_written(task.path)
            bar.advance()


def _anywhere(task: Task) -> Task:
    """A task for workers that were started in other folders."""
    backbones = tuple(everywhere(each, "file") for each in task.backbones)
    return replace(task, item=_absolute(task.item), backbones=backbones, path=task.path.absolute())


def _absolute(item: Item) -> Item:
    return replace(
        item, root=item.root.absolute(), mesh=item.mesh and item.mesh.absolute(),
        truth=item.truth and _absolute(item.truth), pictures=tuple(path.absolute() for path in item.pictures),
    )  # fmt: skip


def _look(task: Task, report: object) -> None:
    look(task)


def _judged(tasks: Sequence[Task]) -> Judged:
    return Judged([task.item for task in tasks], [read_look(task.path) for task in tasks])


def _as_json(measured: Mapping[str, Measured]) -> dict[str, Any]:
    return {
        key: {"value": m.value, "interval": list(m.interval), "num": m.num, "draws": m.draws.tolist()}
        for key, m in measured.items()
    }


def _record(
    name: str,
    tasks: Sequence[Task],
    looks: Sequence[Look],
    measured: Mapping[str, Measured],
    out: Path,
    most: int,
) -> dict[str, Any]:
    """A system's part of the results; up to `most` of its pictures are written beside them."""
    both = list(zip((task.item for task in tasks), looks, strict=True))
    pictures = []
    for number in range(0, len(both), max(1, len(both) // max(1, most)))[:most]:
        item, seen = both[number]
        path = Path("pictures", text_digest(name)[:8], f"{number:05d}.png")
        (out / path.parent).mkdir(parents=True, exist_ok=True)
        Image.fromarray(read_thumbs(tasks[number].path)).save(out / path)
        pictures.append({"name": item.name, "prompt": item.prompt, "picture": str(path), "fault": seen.fault})
    failures = {item.name: seen.fault for item, seen in both if seen.fault}
    return {"num": len(both), "measures": _as_json(measured), "failures": failures, "pictures": pictures}


def _provenance(run: Run, folders: Sequence[Path]) -> dict[str, Any]:
    kept = {key: run.meta[key] for key in ("shapeloom", "commit", "versions")}
    return {**kept, "hardware": _hardware(), "folders": [str(folder) for folder in folders]}


def _hardware() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n") if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"
