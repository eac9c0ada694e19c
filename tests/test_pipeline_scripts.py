"""The whole pipeline as one command, here or as Slurm's jobs: what is run, in which order, on what."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ["data-prep", "train-clip", "train-encoder", "encode", "train-prior", "sample", "eval"]
RECORDING = f"""#!{sys.executable}
import json, os, sys
if os.environ.get("SHAPELOOM_LOOKS_ONLY"):
    sys.exit(3)
words = sys.argv[1:]
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(words) + "\\n")
if "sbatch" in sys.argv[0]:
    print(100 + sum(1 for _ in open(os.environ["RECORD"])), end=";cluster\\n")
sys.exit(os.environ.get("FAILS", "none") in words)
"""
"""A stand-in for Python and sbatch that writes down its arguments."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the stand-ins."""
    for name in ("venv/bin/python", "bin/sbatch"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(RECORDING)
        path.chmod(0o755)
    return tmp_path


def start(folder: Path, script: str, **given: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """Runs a script; returns how it ended, and the commands that it started."""
    record = folder / "record"
    record.unlink(missing_ok=True)
    own = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": "/nowhere", "RECORD": str(record)}
    own |= {"VENV": str(folder / "venv"), "NPROC": "1", "RUN": "my run", "ASSETS": "it's 3D"}
    command = ["bash", f"launch/{script}"]
    done = subprocess.run(command, cwd=ROOT, env=own | given, capture_output=True, text=True, check=False)
    return done, [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def without(words: list[str], *more: str) -> list[str]:
    return [word for word in words if word not in ("-m", *more)]


@pytest.mark.skipif(shutil.which("make") is None, reason="make isn't installed")
def test_the_stages_are_those_of_make(folder: Path) -> None:
    _, commands = start(folder, "pipeline.sh", CONFIG="smoke")
    python, record = str(folder / "venv/bin/python"), folder / "record"
    record.unlink()
    given = [f"PY={python}", f"LAUNCH={python}", f"VENV={folder}/venv", "STAMP=", "RUN=my run"]
    for stage in STAGES:
        words = ["make", "-s", stage, *given, "CONFIG=smoke", "ASSETS=it's 3D"]
        subprocess.run(words, cwd=ROOT, env=os.environ | {"RECORD": str(record)}, check=True)
    of_make = [json.loads(line) for line in record.read_text().splitlines()]
    assert list(map(without, commands)) == list(map(without, of_make))
    assert commands[0][-1] == "assets='it''s 3D'"


def test_a_stage_that_fails_ends_the_pipeline_which_begins_again_where_one_says(folder: Path) -> None:
    done, commands = start(folder, "pipeline.sh", FAILS="encoder.encode", RAY_ADDRESS="head:6379")
    assert done.returncode == 1
    assert [words[1] for words in commands] == [
        "data_prep", "prior.train_clip", "encoder.train", "encoder.encode"
    ]  # fmt: skip
    assert commands[3][-2:] == ["--executor", "ray"]
    done, commands = start(folder, "pipeline.sh", FROM="sample")
    assert done.returncode == 0 and [words[1] for words in commands] == ["sampling", "eval"]
    done, commands = start(folder, "pipeline.sh", FROM="train")
    assert done.returncode == 2 and not commands and "FROM=train is no stage" in done.stderr


@pytest.mark.parametrize("script", ["pipeline.sh", "pipeline_slurm.sh"])
def test_a_dry_run_says_what_would_be_done_and_does_nothing(folder: Path, script: str) -> None:
    done, commands = start(folder, script, DRY_RUN="1", CONFIG="base")
    assert done.returncode == 0 and not commands
    for config in ("data_prep", "clip", "encoder", "encode", "prior", "sampling", "eval"):
        assert f"configs/{config}/base.yaml" in done.stderr


def options(words: list[str]) -> dict[str, Any]:
    """Of an sbatch command, by name."""
    own = words[1 : words.index("launch/slurm.sbatch")]
    return dict(zip(own[::2], own[1::2], strict=True))


def test_slurm_s_jobs_wait_for_what_they_read_on_resources_that_fit(folder: Path) -> None:
    _, here = start(folder, "pipeline.sh", CONFIG="base")
    done, jobs = start(folder, "pipeline_slurm.sh", CONFIG="base", NODES="4", GPUS="8")
    assert done.returncode == 0, done.stderr
    assert [words[words.index("launch/slurm.sbatch") + 1 :] for words in jobs] == list(map(without, here))
    by_name = {each["--job-name"]: each for each in map(options, jobs)}
    number = {name: str(101 + place) for place, name in enumerate(by_name)}
    needs = {name: set(each.get("--dependency", "afterok").split(":")[1:]) for name, each in by_name.items()}
    assert needs == {
        "data-prep": set(),
        "train-clip": {number["data-prep"]},
        "train-encoder": {number["data-prep"]},
        "encode": {number["train-clip"], number["train-encoder"]},
        "train-prior": {number["encode"]},
        "sample": {number["train-prior"]},
        "eval": {number["sample"]},
    }
    nodes, tasks, gpus = ("--nodes", "--ntasks-per-node", "--gpus-per-node")
    of = {name: (each[nodes], each[tasks], each[gpus]) for name, each in by_name.items()}
    assert of["train-encoder"] == of["train-prior"] == ("4", "8", "8")
    assert of["data-prep"] == ("1", "1", "0") and by_name["data-prep"]["--cpus-per-task"] == "32"
    assert of["encode"] == ("1", "1", "8")
    assert of["train-clip"] == of["sample"] == of["eval"] == ("1", "1", "1")


def test_slurm_s_sampling_is_shared_by_an_array_and_merged(folder: Path) -> None:
    _, jobs = start(folder, "pipeline_slurm.sh", SHARDS="16", FROM="sample", PROMPTS="many.txt", NUM="2")
    shards, merged, evaluation = jobs
    assert options(shards)["--array"] == "0-15" and "--dependency" not in options(shards)
    assert shards[shards.index("--out") + 1] == "my run/shards" and shards[-2:] == ["--prompts", "many.txt"]
    assert options(merged)["--dependency"] == "afterok:101"
    assert merged[-5:] == ["sampling", "merge", "my run/shards", "--out", "my run/samples"]
    assert options(evaluation)["--dependency"] == "afterok:102"


def test_a_job_of_slurm_s_that_is_refused_ends_the_script(folder: Path) -> None:
    done, jobs = start(folder, "pipeline_slurm.sh", FAILS="encoder.train")
    assert done.returncode == 1 and len(jobs) == 3


def test_what_an_operator_says_of_its_pods_doesn_t_reach_the_processes(folder: Path) -> None:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "PET_NNODES", "PET_NODE_RANK", "MASTER_ADDR"]
    python = folder / "venv/bin/python"
    python.write_text(f"""#!{sys.executable}
import os, sys
print(sorted(set(os.environ) & set({names})))
sys.exit(3 if "SHAPELOOM_LOOKS_ONLY" in os.environ else 0)
""")
    own = dict.fromkeys(names, "1") | {"PATH": os.environ["PATH"], "VENV": f"{folder}/venv", "NPROC": "1"}
    words = ["bash", "launch/torchrun.sh", "encoder.train"]
    done = subprocess.run(words, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['MASTER_ADDR']"] * 2  # as it looks, and as it works
