"""Cameras and light of an asset, and every member that a config may ask for, there and back."""

import math
from pathlib import Path

import numpy as np
import pytest
import trimesh
from pydantic import ValidationError

from data_prep.build import prepare
from data_prep.checks import verify
from data_prep.pipeline import DataConfig
from data_prep.render.view_members import ViewConfig, make_cameras, make_lighting
from shapeloom import viewpoints
from shapeloom.config import UserError
from shapeloom.shards import AssetShards
from shapeloom.surfaces import read_surface


def angle_of(matrix):
    return 2 * math.degrees(math.atan(float(matrix[0, 2] / matrix[0, 0])))


def test_ranges_of_views_are_filled_evenly():
    config = ViewConfig(num_views=64, fov_degrees=(20, 60), distance=(0.8, 1.6), resolution=64)
    poses, matrices = make_cameras(config, "key", 0)
    fovs = np.sort([angle_of(matrix) for matrix in matrices])
    far = np.sort(
        [
            np.linalg.norm(pose[:3, 3]) / viewpoints.fitting_distance(math.radians(angle_of(matrix)))
            for pose, matrix in zip(poses, matrices, strict=True)
        ]
    )
    for values, low, high in ((fovs, 20, 60), (far, 0.8, 1.6)):
        even = low + (high - low) * (np.arange(64) + 0.5) / 64
        np.testing.assert_allclose(values, even, atol=0.05 * (high - low))  # random ones: about 0.1
        assert low <= values.min()
        assert values.max() <= high


def test_cameras_differ_between_assets_and_rings_do_not():
    config = ViewConfig(num_views=4, num_ring_views=3)
    (one, _), (other, _) = make_cameras(config, "one", 0), make_cameras(config, "other", 0)
    assert not np.array_equal(one[:4], other[:4])
    assert np.array_equal(one[4:], other[4:])
    assert np.array_equal(make_cameras(config, "one", 0)[0], one)
    assert not np.array_equal(make_cameras(config, "one", 1)[0], one)
    bare, _ = make_cameras(ViewConfig(num_views=4), "one", 0)
    assert np.array_equal(bare, one[:4])  # asking for a ring moves no other camera


def test_random_light_is_an_assets_own():
    config = ViewConfig(lighting="random")
    one, again, other = (make_lighting(config, key, 0).facts() for key in ("one", "one", "other"))
    assert one == again != other


@pytest.mark.parametrize(
    "setting", [{"fov_degrees": (50, 40)}, {"fov_degrees": 0.5}, {"distance": (0.1, 1)}, {"distance": (2, 1)}]
)
def test_ranges_that_make_no_sense_are_refused(setting):
    with pytest.raises(ValidationError, match=next(iter(setting))):
        ViewConfig(**setting)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything")
    (folder / "a").mkdir()
    trimesh.creation.box((1, 2, 3)).export(folder / "a" / "box.glb")
    config = DataConfig(
        assets=folder / "a", num_views=3, num_ring_views=2, resolution=32, supersample=2, normals=True,
        albedo=True, lighting="random", fov_degrees=(30, 50), num_points=256, num_sdf=256,
        num_edge_points=64, num_view_points=128, workers=0,
    )  # fmt: skip
    prepare(config, folder / "data")
    return folder / "data"


def test_every_member_comes_back(everything: Path):
    assert verify(everything) == []
    shards = AssetShards(everything)
    assert shards.num_views == 3
    assert shards.header["ring_views"] == 2
    sample = shards.read(
        0,
        views=range(5),
        depth=True,
        normal=True,
        albedo=True,
        points=True,
        edges=True,
        view_points=True,
        mesh=True,
    )
    normal, depth = (sample.normal.astype(float) - 128) / 127, sample.depth
    length = np.linalg.norm(normal, axis=-1)
    np.testing.assert_allclose(length[depth > 0], 1, atol=0.02)  # 8 bits
    assert (sample.normal[depth == 0] == 0).all()
    # A box's normals look along an axis.
    assert (np.abs(normal[depth > 0]).max(axis=-1) > 0.99).all()
    seen = sample.rgba[..., 3] == 255
    assert len(np.unique(sample.albedo[seen], axis=0)) == 1
    assert len(np.unique(sample.rgba[seen], axis=0)) > 1
    assert sample.mesh_vertices.shape == (8, 3) and sample.mesh_faces.shape == (12, 3)
    solid = trimesh.Trimesh(sample.mesh_vertices, sample.mesh_faces, process=False)
    assert solid.volume == pytest.approx(8 * 0.95**3 * 2 / 9)  # outward: positive
    assert sample.edge_points.shape == (64, 3)
    assert sample.edge_normals.shape == (64, 2, 3)
    assert sample.view_points.shape == (128, 3)
    on_box = np.abs(np.abs(sample.view_points) / np.array([0.95 / 3, 0.95, 0.95 * 2 / 3]) - 1).min(axis=1)
    assert on_box.max() < 2e-3


def test_the_true_surface_is_the_mesh_or_else_the_points(everything: Path, ball_dataset: Path):
    box = read_surface(AssetShards(everything), 0)
    assert box.is_exact and len(box.faces) == 12 and len(box.points) == 256
    ball = read_surface(AssetShards(ball_dataset), 0)
    assert not ball.is_exact and len(ball.points) == 512
    radius = np.linalg.norm(ball.points, axis=1)
    assert np.allclose(ball.normals, ball.points / radius[:, None], atol=0.01)  # 8 bits


def test_what_was_not_asked_for_is_refused_by_name(everything: Path, ball_dataset: Path):
    with pytest.raises(UserError, match=r"normal_000\.png"):
        AssetShards(ball_dataset).read(0, views=[0], normal=True)
