"""A region by paint: which space it is, and that nothing changes outside of it, by a bit."""

import numpy as np
import pytest
import torch
import trimesh

from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.mesh_stage import MeshRefiner
from sampling.refine.painted import CELL, REACH, region_of, samples
from sampling.refine.refiner import Refiner
from sampling.shape import read_latent
from shapeloom.config import UserError, load_config
from shapeloom.fields.region import share_of
from shapeloom.rendering.isosurface import extract_surface
from tests.sampling.refine.conftest import assert_only_inside_changed

SMALL = [
    "views=2", "samples.coarse=16", "samples.fine=8", "estimator.scale=1", "iterations=8",
    "mesh.resolution=16", "mesh.max_faces=300", "mesh.texture_size=64",
]  # fmt: skip
MAGENTA, GREY = (255, 0, 255, 255), (120, 120, 120, 255)


def painted_ball(path, *, radius=0.35, scale=1.0, up=(0, 0, 1)):
    """A grey ball whose upper half is magenta; +Z up as PLY has it, +Y as GLB."""
    ball = trimesh.creation.icosphere(4, radius)
    high = ball.vertices @ np.array(up) > 0.02
    ball.visual.vertex_colors = np.where(high[:, None], MAGENTA, GREY).astype(np.uint8)
    ball.apply_scale(scale)
    ball.export(path)
    return torch.from_numpy(ball.vertices / scale).float(), torch.from_numpy(high)


def config(path, *changes):
    return load_config(RefineConfig, None, ["guide=views", *SMALL, f"region={path}", *changes])


@pytest.mark.parametrize(("suffix", "up"), [("ply", (0, 0, 1)), ("glb", (0, 1, 0))])
def test_every_unpainted_vertex_lies_outside_and_paint_reaches_into_space(tmp_path, suffix, up):
    path = tmp_path / f"ball.{suffix}"
    vertices, high = painted_ball(path, up=up)
    if suffix == "glb":
        vertices = vertices[:, [0, 2, 1]] * torch.tensor([1, -1, 1])
    grid = region_of(config(path))
    share, outside = share_of(grid, vertices)
    assert outside[~high].all() and not share[~high].any()
    well_in = vertices[:, 2] > 0.25
    assert float(share[well_in].min()) > 0.9
    for at, expected in ((0.35 + REACH - 2 * CELL, True), (0.35 + REACH + 2 * CELL, False)):
        assert bool(share_of(grid, torch.tensor([[0.0, 0, at]]))[0] > 0) == expected


def test_points_of_faces_are_even_and_know_their_paint():
    triangle = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    points, share = samples(triangle, np.array([[True, True, False]]), spacing=0.3)
    np.testing.assert_allclose(share, 1 - points[:, 1], atol=1e-12)
    assert {(0, 0, 0), (1, 0, 0), (0, 1, 0)} <= {tuple(point) for point in points.round(9)}
    gaps = np.linalg.norm(points[:, None] - points, axis=-1)
    assert np.sort(gaps, axis=1)[:, 1].max() <= 0.3


def test_a_painted_copy_of_a_file_that_is_encoded_is_brought_to_its_place(tmp_path):
    painted_ball(tmp_path / "small.ply", radius=0.95)
    painted_ball(tmp_path / "large.ply", radius=0.95, scale=7.0)
    same = region_of(config(tmp_path / "small.ply"))
    assert torch.equal(region_of(config(tmp_path / "large.ply", "shape=chair.glb")), same)
    with pytest.raises(UserError, match="reaches out of the box"):
        region_of(config(tmp_path / "large.ply"))


def test_outside_of_the_paint_no_value_and_no_vertex_changes_by_a_bit(balls, guide, tmp_path):
    vertices, high = painted_ball(tmp_path / "ball.ply")
    settings = config(tmp_path / "ball.ply", "optimise=matrices", "rate=0.03")
    start, prompt = balls.shapes[0], balls.shapes[3].prompt
    refiner = Refiner(balls.pipe, [start], Distiller(guide, prompt, settings), settings)
    for number in range(8):
        refiner.step(number)
    (found,) = refiner.subject.shapes(prompt)
    points = torch.cat([vertices, torch.rand(4000, 3) * 2 - 1])
    outside = share_of(found.region, points)[1]
    assert outside[: len(vertices)][~high].all()
    assert_only_inside_changed(start, found, points, outside)
    low = [
        {tuple(v) for v in extract_surface(shape._sdf, resolution=32)[0] if v[2] <= 0}
        for shape in (start, found)
    ]
    assert low[0] == low[1]

    found.save(tmp_path / "found.safetensors")
    again = read_latent(tmp_path / "found.safetensors", balls.decoder)
    assert torch.equal(again.decoder.sdf(again.weights, points), found.decoder.sdf(found.weights, points))
    assert again.latent_bytes() == (tmp_path / "found.safetensors").read_bytes()


@pytest.mark.parametrize("region", ["paint", "[[-1, -1, 0], [1, 1, 1]]"])
def test_the_mesh_stage_leaves_all_outside_of_a_region_as_it_was(balls, guide, tmp_path, region):
    if region == "paint":
        region = tmp_path / "ball.ply"
        painted_ball(region)
    settings = config(region, "mesh_stage.vertex_rate=0.03", "mesh_stage.texel_rate=0.05")
    mesh = MeshRefiner(
        balls.shapes[0].mesh(settings.mesh), Distiller(guide, balls.shapes[3].prompt, settings), settings
    )
    before = mesh.result()
    for number in range(4):
        mesh.step(number)
    after = mesh.result()
    outside = share_of(region_of(settings), torch.from_numpy(before.mesh.vertices).float())[1].numpy()
    assert outside[before.mesh.vertices[:, 2] < 0].all()
    for name in ("vertices", "normals"):
        old, new = getattr(before.mesh, name), getattr(after.mesh, name)
        assert (old[outside] == new[outside]).all() and (old[~outside] != new[~outside]).any()
    kept = mesh._held.texels[1].numpy()
    assert 0.2 < kept.mean() < 0.8
    assert (before.texture[kept] == after.texture[kept]).all()
    assert (before.texture[~kept] != after.texture[~kept]).any()


def test_what_is_no_painted_file_is_said(tmp_path):
    trimesh.creation.icosphere(2, 0.5).export(tmp_path / "plain.ply")
    with pytest.raises(UserError, match=r"has no painted face\. Paint the vertices"):
        region_of(config(tmp_path / "plain.ply"))
    (tmp_path / "broken.glb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can't be read"):
        region_of(config(tmp_path / "broken.glb"))
    thin = trimesh.creation.box((0.02, 0.02, 0.02))
    thin.visual.vertex_colors = np.where(np.arange(8)[:, None] < 7, MAGENTA, GREY).astype(np.uint8)
    thin.export(tmp_path / "thin.ply")
    with pytest.raises(UserError, match="narrower than"):
        region_of(config(tmp_path / "thin.ply"))
