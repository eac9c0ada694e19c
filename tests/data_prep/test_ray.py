"""The same shards from a Ray cluster of two nodes, one of which is lost halfway."""

from pathlib import Path

import pytest

from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from shapeloom.shards import list_shards, shard_is_finished

# Ray's own processes leave sockets and files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def contents(out: Path) -> dict[str, bytes]:
    paths = [out / "dataset.json", out / "quarantine.jsonl", *(out / "shards").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


def test_lost_node_costs_nothing_but_time(ray_cluster, tmp_path, make_box, monkeypatch):
    for number in range(12):
        make_box(tmp_path / "assets" / f"box{'abcdefghijkl'[number]}.glb", extents=(1, 2, 3 + number))
    (tmp_path / "assets/broken.glb").write_bytes(b"not a model")
    config = DataConfig(
        assets=tmp_path / "assets", num_views=4, resolution=64, num_points=1024, num_sdf=1024, shard_size=2,
    )  # fmt: skip
    prepare(config.model_copy(update={"workers": 0}), tmp_path / "here")

    from data_prep import build

    real, lost = build.run_tasks, []

    def lose_a_node(*arguments, **options):
        for result in real(*arguments, **options):
            if not lost:
                lost.append(ray_cluster.remove_node(ray_cluster.list_all_nodes()[1], allow_graceful=False))
                finished = [shard_is_finished(path) for path in list_shards(tmp_path / "there")]
                assert sum(finished) < 6
            yield result

    monkeypatch.setattr(build, "run_tasks", lose_a_node)
    prepare(config, tmp_path / "there", executor="ray")
    assert lost
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
