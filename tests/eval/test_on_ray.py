"""Every stage after data preparation on a Ray cluster of two nodes, one lost in each: the same bytes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import encoder.encode as encode
import sampling.making as making
from encoder.train import main as train_encoder
from eval import judging, reconstruction, samples
from eval.__main__ import main as evaluate
from prior.train import main as train_prior
from prior.train_clip import main as train_clip
from sampling.__main__ import main as sample
from shapeloom.shards import AssetShards, finish_dataset, read_back, write_shard

# Ray's own processes leave sockets and files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SAMPLING = [
    "steps=2", "batch_size=1", "formats=[glb]", "mesh.resolution=16", "mesh.texture_size=32",
    "turntable.samples={coarse: 4, fine: 0}",
]  # fmt: skip
EVALUATION = [
    "reconstruction.batch_size=1", "reconstruction.samples={coarse: 4, fine: 0}",
    "reconstruction.surface_resolution=16", "reconstruction.sheet=0", "reconstruction.pictures=1",
    "generation.num_prompts=3", "generation.batch_size=1", "generation.steps=2",
    "generation.sets.max_samples=0", "generation.beside=0",
]  # fmt: skip
LOOKS = ["look={views: 2, size: 16, points: 64}", "measures={draws: 20, neighbours: 1, set_size: 3}"]
CLOCK = {"decode_seconds"}


def contents(folder: Path) -> dict[str, Any]:
    """Of all files but the runs' own, which tell times and places."""
    own = {"meta.json", "config.yaml", ".finished.json"}
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in own]
    found: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    if "metadata.json" in found:
        records = json.loads(found["metadata.json"])["samples"]
        found["metadata.json"] = [{k: v for k, v in each.items() if k not in CLOCK} for each in records]
    return found


@pytest.fixture
def run(coloured_balls: Path, tmp_path: Path) -> Path:
    """Data, an encoder and a CLIP, hardly trained."""
    folder = tmp_path / "run"
    (shard,), header = AssetShards(coloured_balls).shards, AssetShards(coloured_balls).header
    assets = list(read_back(shard))
    for first in range(0, len(assets), 2):  # several shards: each is a task of encode's
        write_shard(folder / "data" / "shards" / f"{first:06d}.tar", assets[first : first + 2])
    finish_dataset(
        folder / "data", kind="assets", facts={name: header[name] for name in ("views", "resolution")}
    )
    quick = ["train.precision=fp32", "train.steps=2", f"data={folder / 'data'}"]
    for train, name in ((train_encoder, "encoder"), (train_clip, "clip")):
        train(["--config", f"configs/{name}/smoke.yaml", "--out", str(folder / name), "--set", *quick])
    return folder


def lose_a_node_in_each(stages: Sequence[Any], cluster: Any, patch: pytest.MonkeyPatch) -> list[str]:
    """Has the second node killed when a stage's first task is done, and another one come after the stage.

    Returns the names of the stages that have lost one, as they do.
    """
    lost: list[str] = []

    def losing(stage: Any, run_tasks: Any) -> Any:
        def run(function: Any, tasks: Sequence[Any], **options: Any) -> Any:
            results = run_tasks(function, tasks, **options)
            if options["executor"] != "ray":
                yield from results
                return
            assert len(tasks) > 2, f"{stage.__name__} doesn't keep two nodes busy until then"
            yield next(results)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            lost.append(stage.__name__)
            yield from results
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

        return run

    for stage in stages:
        patch.setattr(stage, "run_tasks", losing(stage, stage.run_tasks))
    return lost


def test_a_cluster_that_loses_a_node_in_each_stage_writes_what_one_process_writes(
    ray_cluster: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (encode, making, reconstruction, samples, judging)
    lost = lose_a_node_in_each(stages, ray_cluster, monkeypatch)
    root = os.getcwd()
    presets = {name: f"{root}/configs/{name}/smoke.yaml" for name in ("prior", "sampling", "eval")}
    monkeypatch.chdir(run)  # paths as people type them
    ray = ["--executor", "ray"]
    parts = ["data=data", "encoder=encoder", "clip=clip"]
    encode.main(["--out", "latents", "--set", *parts, "fidelity_size=8", "workers=0"])
    encode.main(["--out", "latents_there", *ray, "--set", *parts, "fidelity_size=8"])
    assert contents(run / "latents_there") == contents(run / "latents")

    train_prior(["--config", presets["prior"], "--out", "prior", "--set", "latents=latents", "train.steps=2"])
    wanted = ["--config", presets["sampling"], "--model", ".", "--prompt", "a red ball", "--num", "3"]
    sample([*wanted, "--out", "samples", "--set", *SAMPLING])
    sample([*wanted, "--out", "samples_there", *ray, "--set", *SAMPLING])
    assert contents(run / "samples_there") == contents(run / "samples")

    for name, more in (("here", []), ("there", ray)):
        (run / name).mkdir()
        places = [f"{part}=../{part}" for part in ("data", "clip", "encoder", "latents", "prior", "samples")]
        monkeypatch.chdir(run / name)
        evaluate(
            ["--config", presets["eval"], "--out", "eval", *more, "--set", "run=.", *places, *EVALUATION]
        )
        judging.main(["../samples", "--reference", "../samples", "--out", "judged", *more, "--set", *LOOKS])
    for part in ("eval/reconstruction", "eval/generation", "judged/cache"):
        assert contents(run / "there" / part) == contents(run / "here" / part)
    assert lost == [stage.__name__ for stage in stages]
