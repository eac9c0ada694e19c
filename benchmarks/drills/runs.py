"""python -m benchmarks.drills.runs [NAME ...]: what can go wrong with a run, and the sentence told.

The smallest run of every stage is made; then harm is done to copies of it (missing shards, flipped bytes,
half-written logs, foreign folders, moved runs, divergence, lost folders, pickles that would run code) and
commands are given. A drill fails for a traceback, a wrong word, or a thing that was lost. Prints what users
read. Drills of full disks and of several processes: benchmarks.drills.disks, benchmarks.drills.writers.
"""

import argparse
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.drills import drill
from benchmarks.drills.drill import arguments, command, contents, copy, flip_byte, forked
from data_prep import __main__ as data_prep
from shapeloom.config import run_main
from shapeloom.records import RECORD, write_record
from shapeloom.runs import read_metrics
from shapeloom.shards import finish_dataset, list_shards, manifest_path, read_back, write_shard

Drill = Callable[[Path, Path], Iterator[str]]
"""Takes a finished run, which it may not change, and an empty folder; yields what users read."""


def verify(folder: Path) -> drill.Told:
    """`python -m data_prep verify FOLDER`."""

    def work() -> None:
        sys.argv = ["data_prep", "verify", str(folder)]
        run_main(data_prep.main)

    return forked(work)


def stop_at(step: int) -> Callable[[], None]:
    """Makes the prior's training end when it reaches a step."""
    from prior.task import PriorTask

    made = PriorTask.batch

    def batch(task: PriorTask, samples: Sequence[int]) -> dict:
        if samples[0] >= 4 * step:
            raise KeyboardInterrupt
        return made(task, samples)

    return lambda: setattr(PriorTask, "batch", batch)


def logged_steps(prior: Path) -> list[int]:
    """The steps of the training's own lines in metrics.jsonl."""
    return [line["step"] for line in read_metrics(prior) if "train/loss" in line]


def missing_shards(run: Path, at: Path) -> Iterator[str]:
    """Kind 3: nothing trains on a part of a data set, and what is missing is made again."""
    harmed = copy(run, at / "run", ["data", "encoder", "clip", "latents"])
    before = contents(harmed / "latents")
    for stage, reader in (("data", "encoder"), ("latents", "prior")):
        shard = list_shards(harmed / stage)[0]
        shard.unlink()
        told = command(reader, arguments(reader, harmed, at / "new"))
        yield told.check(shard.name, "missing", code=2)
        assert not (at / "new" / "meta.json").exists()
        if stage == "data":
            shutil.rmtree(harmed / "data")
            shutil.copytree(run / "data", harmed / "data")
    command("latents", arguments("latents", harmed)).check("has lost shards", code=0)
    assert contents(harmed / "latents") == before
    shard = list_shards(harmed / "latents")[0]
    shard.write_bytes(shard.read_bytes()[:-512])
    told = command("prior", arguments("prior", harmed, at / "new"))
    yield told.check(shard.name, "bytes in place of", code=2)
    flip_byte(Path(shutil.copy2(run / "latents/shards" / shard.name, shard)), 0.3)  # as long as before
    yield verify(harmed / "latents").check("problem(s)", shard.name, code=2)


def changed_weights(run: Path, at: Path) -> Iterator[str]:
    """Kind 4: weights are checked where they are loaded, and the file is named."""
    readers = {"prior": ("samples", "eval", "few"), "encoder": ("latents",), "clip": ("latents",)}
    for stage, commands in readers.items():
        harmed = copy(run, at / stage)
        weights = harmed / stage / "weights.safetensors"
        flip_byte(weights)
        for reader in commands:
            told = command(reader, arguments(reader, harmed, at / f"new {reader}"))
            yield told.check(str(weights), code=2)
        weights.unlink()
        told = command(commands[0], arguments(commands[0], harmed, at / "new"))
        yield told.check("weights.safetensors", code=2)
    yield verify(harmed).check("weights.safetensors is missing", code=2)


def blocked_logs(run: Path, at: Path) -> Iterator[str]:
    """Kind 6: a half line never ends a resume, steps appear once, and reports read what is whole."""
    harmed, log = copy(run, at / "run", ["latents"]), at / "run/prior/metrics.jsonl"
    words = arguments("prior", harmed)
    for step in (2, 5):  # before the first checkpoint, and after it; then a line that a full disk cut off
        yield command("prior", words, before=stop_at(step)).check("Interrupted", code=130)
        with log.open("a") as file:
            file.write(f'{{"step": {step}, "train/lo')
    command("prior", words).check(code=0)
    assert logged_steps(log.parent) == list(range(1, 9))
    copy(run, harmed, ["data", "clip", "encoder", "samples"])
    with log.open("a") as file:
        file.write('{"step": 8, "train/lo')
    command("eval", arguments("eval", harmed)).check(code=0)


def foreign_folder(run: Path, at: Path) -> Iterator[str]:
    """Kind 7: a folder that isn't ours keeps its files."""
    for stage in drill.MODULES:
        (at / stage).mkdir()
        (at / stage / "config.yaml").write_text("mine: yes\n")
        told = command(stage, arguments(stage, run, at / stage))
        yield told.check("holds 1 file(s)", "config.yaml", code=2)
        assert [path.name for path in (at / stage).iterdir()] == ["config.yaml"]
        assert (at / stage / "config.yaml").read_text() == "mine: yes\n"


def moved_run(run: Path, at: Path) -> Iterator[str]:
    """Kind 8: a run goes on under another name, and its finished stages are found finished."""
    moved = copy(run, at / "renamed")
    for stage in drill.MODULES:
        told = command(stage, arguments(stage, moved)).check(code=0)
        assert "already" in told, told
        yield told
    relative = Path(os.path.relpath(moved, at))
    command("prior", arguments("prior", relative), before=lambda: os.chdir(at)).check("already", code=0)
    words = [*arguments("encoder", moved, at / "other"), "train.seed=1"]
    command("encoder", words).check(code=0)
    shutil.rmtree(moved / "encoder")
    shutil.move(at / "other", moved / "encoder")
    yield command("latents", arguments("latents", moved)).check("another encoder", code=2)


def divergence(run: Path, at: Path) -> Iterator[str]:
    """Kind 9: told at the time and at the end, with the sample; a lower rate goes on in the same folder."""
    steep = copy(run, at / "steep", ["latents", "encoder", "clip"])
    words = [*arguments("prior", steep), "train.steps=60", "train.grad_clip=1000000"]
    words += ["train.warmup_steps=40"]
    told = command("prior", [*words, "train.learning_rate=100"])
    yield told.check("has diverged", "train.learning_rate", "no weights are written", code=2)
    yield next(line for line in told.text.splitlines() if "has diverged:" in line)
    meta = json.loads((steep / "prior/meta.json").read_text())
    assert meta["status"] == "running" and meta["divergence"]["since"] < 60, meta
    yield command("samples", arguments("samples", steep)).check("not finished", code=2)
    told = command("prior", [*words, "train.learning_rate=0.001"])
    told.check("goes on with changes", "going back to before the divergence", code=0)
    yield next(line for line in told.text.splitlines() if "going back" in line)
    meta = json.loads((steep / "prior/meta.json").read_text())
    assert meta["status"] == "done" and "divergence" not in meta and meta["changes"], meta
    assert logged_steps(steep / "prior") == list(range(1, 61))
    yield command("prior", [*words, "train.learning_rate=0.002"]).check("another config", code=2)
    yield from _bad_asset(run, at / "bad")


def _bad_asset(run: Path, harmed: Path) -> Iterator[str]:
    """One asset's signed distances are NaN: its key and caption are told, and meta.json keeps them."""
    copy(run, harmed, ["data"])
    shard = list_shards(harmed / "data")[0]
    samples = [dict(sample) for sample in read_back(shard)]
    assert samples[1]["json"]["split"] == "train"
    samples[1]["sdf.npy"] = np.full(512, np.nan, np.float32)
    write_shard(shard, samples)
    header = json.loads((harmed / "data/dataset.json").read_text())
    facts = {name: header[name] for name in ("views", "resolution")}
    finish_dataset(harmed / "data", kind="assets", facts=facts)
    told = command("encoder", arguments("encoder", harmed))
    name = f"{samples[1]['__key__']} ({samples[1]['json']['captions'][0]!r})"
    told.check("step skipped", f"Samples at fault: {name}", "were skipped", code=0)
    yield next(line for line in told.text.splitlines() if "were skipped" in line)
    meta = json.loads((harmed / "encoder/meta.json").read_text())
    assert meta["skipped_steps"]["samples"] == [name], meta


def damaged_files(run: Path, at: Path) -> Iterator[str]:
    """Kind 10: each damaged or missing file is named."""
    cases = {
        "data/dataset.json": "encoder", "latents/dataset.json": "prior", "latents/meta.json": "latents",
        "prior/prior.json": "samples", "prior/meta.json": "samples", "clip/model.json": "samples",
        "encoder/decoder.yaml": "samples", "encoder/config.yaml": "encoder",
        "samples/metadata.json": "samples",
    }  # fmt: skip
    for number, (name, reader) in enumerate(cases.items()):
        harmed = copy(run, at / str(number))
        path = harmed / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"{")
        yield command(reader, arguments(reader, harmed)).check(str(path), code=2)
    manifest = manifest_path(list_shards(harmed / "data")[0])
    manifest.write_text("{")
    told = command("encoder", arguments("encoder", harmed, at / "new"))
    yield told.check(str(manifest), "damaged", code=2)


def checkpoints(run: Path, at: Path) -> Iterator[str]:
    """Kinds 10 and 12: the one before a damaged one is taken, and said; none can run code."""
    for harm in ("flip", "cut", "pickle", "all"):
        harmed = copy(run, at / harm, ["latents"])
        words = arguments("prior", harmed)
        command("prior", words, before=stop_at(7)).check("Interrupted", code=130)
        state = harmed / "prior/state"
        newest = max(path for path in state.iterdir() if path.is_dir())
        file = min(newest.glob("*.pt"))
        match harm:
            case "flip":
                flip_byte(file, 0.5)
            case "cut":
                file.write_bytes(file.read_bytes()[:1000])
            case "pickle":
                _plant(file, at / "was run")
            case "all":
                for path in state.glob("*/*.pt"):
                    path.unlink()
        told = command("prior", words)
        if harm in ("flip", "cut"):
            told.check(newest.name, "going on from the one before", code=0)
            yield next(line for line in told.text.splitlines() if "going on from the one" in line)
            assert logged_steps(harmed / "prior") == list(range(1, 9))
        else:
            yield told.check("could run code" if harm == "pickle" else "None of the checkpoints", code=2)
            assert not (at / "was run").exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def _plant(file: Path, marker: Path) -> None:
    """Makes of a checkpoint's file, with its record, a pickle that leaves a mark when it is loaded."""

    def work() -> None:
        import torch

        torch.save({"module": _Evil(marker)}, file)

    assert forked(work).code == 0
    pickle.loads(pickle.dumps(_Evil(marker)))
    assert marker.exists()  # so it does work
    marker.unlink()
    facts = json.loads((file.parent / RECORD).read_text())
    (file.parent / RECORD).unlink()
    write_record(file.parent, {name: value for name, value in facts.items() if name != "files"})


def world_at_fault(run: Path, at: Path) -> Iterator[str]:
    """Kind 10: a folder deleted in mid-run, exhausted memory, a place that can't be written."""
    harmed = copy(run, at / "run", ["latents"])
    words = arguments("prior", harmed)

    def deleted() -> None:
        from prior.task import PriorTask

        made = PriorTask.batch

        def batch(task: PriorTask, samples: Sequence[int]) -> dict:
            if samples[0] == 8:
                shutil.rmtree(harmed / "prior")
            return made(task, samples)

        PriorTask.batch = batch  # type: ignore[assignment, method-assign]

    yield command("prior", words, before=deleted).check("is not there", "prior", code=1)

    def little_memory() -> None:
        status = Path("/proc/self/status").read_text().splitlines()
        now = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + (100 << 20), now + (100 << 20)))

    huge = [*arguments("prior", harmed, at / "huge"), "network.width=1024"]
    yield command("prior", huge, before=little_memory).check("Memory is exhausted", "batch", code=1)
    blocked = arguments("prior", harmed, Path("/proc/nobody/run"))
    yield command("prior", blocked).check("/proc/nobody", code=1)


def full_files(run: Path, at: Path) -> Iterator[str]:
    """A disk that fills up costs no byte: by a limit on files' sizes, told in mid-write like a full disk."""
    for stage, limit in (("data", 20_000), ("latents", 30_000), ("prior", 40_000)):
        words = arguments(stage, run, at / stage)

        def small(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        yield command(stage, words, before=small).check(str(at), "full", code=1)
        command(stage, words).check(code=0)
        assert contents(at / stage) == contents(run / stage)
        assert not list((at / stage).rglob("*.tmp"))


DRILLS: dict[str, Drill] = {
    each.__name__: each
    for each in (
        missing_shards, changed_weights, blocked_logs, foreign_folder, moved_run, divergence, damaged_files,
        checkpoints, world_at_fault, full_files,
    )
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what users read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills.runs", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRILLS)}; none: all")
    names = parser.parse_args(argv).names or list(DRILLS)
    drill.import_everything()
    with tempfile.TemporaryDirectory() as folder:
        run = drill.make_run(Path(folder, "run"))
        for name in names:
            at = Path(folder, name)
            at.mkdir()
            sys.stdout.write(f"\n{name}: {DRILLS[name].__doc__}\n")
            for sentence in DRILLS[name](run, at):
                sys.stdout.write(f"  - {sentence.replace(folder, '')}\n")
                sys.stdout.flush()
            shutil.rmtree(at)


if __name__ == "__main__":
    main()
