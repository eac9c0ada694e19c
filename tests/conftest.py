"""What many tests share: single threads, shape checks, and a small data set of spheres in closed form."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is there, and for the processes that tests start: tests run side by side, and two pools of
# spinning threads on the same cores are ten times slower than one thread each.
os.environ["OMP_NUM_THREADS"] = "1"

from tests import shape_checks

shape_checks.install(["shapeloom", "data_prep", "encoder", "prior", "sampling", "serving", "eval"])

import numpy as np
import pytest
import torch

from shapeloom.rendering.cameras import intrinsics, sphere
from shapeloom.rendering.rays import camera_rays
from shapeloom.seed import numpy_rng
from shapeloom.shards import finish_dataset, write_shard
from shapeloom.viewpoints import fitting_distance

torch.set_num_threads(1)


def ball_sample(number: int, *, split: str, num_views: int = 4, size: int = 16) -> dict[str, Any]:
    """An asset-shard sample of a coloured sphere of its own radius, every array in closed form."""
    rng = numpy_rng("ball", number)
    radius = float(rng.uniform(0.5, 0.95))
    color = rng.integers(20, 230, 3).astype(np.uint8)
    fov = 0.7
    poses = sphere(num_views, seed=number, distance=fitting_distance(fov))
    matrix = intrinsics(fov, size, size).expand(num_views, 3, 3)
    origins, directions, cosine = camera_rays(poses, matrix, size, size)
    along = -(origins * directions).sum(-1)
    inside = radius**2 - (origins.pow(2).sum(-1) - along**2)
    hit = inside > 0
    t = along - inside.clamp(min=0).sqrt()
    depth = torch.where(hit, t * cosine, torch.zeros(())).numpy()
    rgba = np.zeros((num_views, size, size, 4), np.uint8)
    rgba[hit.numpy()] = [*color, 255]
    normals = rng.normal(size=(512, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    near = rng.uniform(-1, 1, (512, 3)).astype(np.float32)
    sample: dict[str, Any] = {
        "__key__": f"ball{number:04d}",
        "json": {
            "captions": [f"a ball number {number}", "a ball"],
            "split": split,
            "group": f"ball {number}",
            "category": "ball",
            "attributes": {"colour": "red"},
        },
        "cameras.npy": poses.numpy(),
        "intrinsics.npy": matrix.numpy().copy(),
        "points.npy": (radius * normals).astype(np.float32),
        "points_rgb.npy": np.tile(color, (512, 1)),
        "points_normal.npy": np.round(127 * normals).astype(np.int8),
        "sdf_points.npy": near,
        "sdf.npy": (np.linalg.norm(near, axis=1) - radius).astype(np.float32),
    }
    for view in range(num_views):
        sample[f"rgba_{view:03d}.png"] = rgba[view]
        sample[f"depth_{view:03d}.png"] = np.round(depth[view] * 8192).astype(np.uint16)
    return sample


@pytest.fixture
def ball_samples() -> Any:
    """The function `ball_sample`, for tests that put a data set together themselves."""
    return ball_sample


@pytest.fixture(scope="session")
def ball_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set of 12 spheres in 2 shards: 8 train, 2 val, 2 test."""
    folder = tmp_path_factory.mktemp("balls")
    splits = ["train"] * 4 + ["val", "test"]
    for shard in range(2):
        samples = [ball_sample(6 * shard + i, split=split) for i, split in enumerate(splits)]
        write_shard(folder / "shards" / f"{shard:06d}.tar", samples)
    finish_dataset(folder, kind="assets", facts={"views": 4, "resolution": 16})
    return folder


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes of one core each, found by RAY_ADDRESS. Skips the test without Ray."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # of 15, a busy machine gives them next to nothing
    # Workers import the project as this process does.
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20}
    )
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
