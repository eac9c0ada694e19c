"""The reference's rays, samples and surface against recorded numbers."""

import numpy as np
import torch
import trimesh

from shapeloom.rendering.rays import camera_rays, edges_from_samples
from shapeloom.rendering.volume import composite, ray_weights
from shapeloom.shap_e.field import COARSE_RGB, FINE_RGB, ShapEField, ShapEFieldConfig
from shapeloom.shap_e.rendering import (
    Draws,
    classic_surface,
    official_box,
    official_importance_samples,
    official_intrinsics,
    official_rays,
    official_surface,
    pan_cameras,
    render_rays,
    stratified_samples,
)
from tests.golden_data import assert_same, golden, part, projected


def test_golden_quadrature_and_samplers() -> None:
    data = {name: value.squeeze(-1) for name, value in golden("volume_rendering").items() if "." in name}
    t, t_near, t_far = data["quad.ts"], data["quad.t0"], data["quad.t1"]
    edges = edges_from_samples(t, t_near, t_far)
    assert_same(edges[..., :-1], data["quad.lower"])
    assert_same(edges[..., 1:], data["quad.upper"])
    channels = golden("volume_rendering")["quad.channels"]
    found = composite(data["quad.density"], channels, t, edges)
    assert_same(1 - found.alpha, data["quad.out_transmittance"])
    assert_same(found.rgb, golden("volume_rendering")["quad.out_channels"])
    assert_same(found.distance, data["quad.out_distances"])
    weights = ray_weights(data["quad.density"], edges[..., 1:] - edges[..., :-1])
    assert_same(weights, data["quad.weights"])
    u = golden("volume_rendering")["stratified.u"]
    assert_same(stratified_samples(t_near, t_far, u), data["stratified.ts"])
    fine = official_importance_samples(
        edges, weights, golden("volume_rendering")["importance.u_bin"][None], data["importance.u_within"]
    )
    assert_same(fine, data["importance.ts"])


def test_golden_box() -> None:
    data = golden("volume_rendering")
    t_near, t_far, hit = official_box(data["box.origin"], data["box.direction"])
    assert torch.equal(hit, data["box.intersected"][..., 0].bool())
    assert_same(t_near, data["box.t0"][..., 0])
    assert_same(t_far, data["box.t1"][..., 0])


def test_golden_cameras() -> None:
    data = golden("volume_rendering")
    poses = pan_cameras()
    for column, name in enumerate(("x", "y", "z", "origin")):
        assert_same(poses[:, :3, column], data[f"pan.{name}"])
    fov = data["pan.fov"].tolist()
    matrix = official_intrinsics(*fov, height=8, width=8)
    origins, directions, _ = camera_rays(poses, matrix.expand(20, 3, 3), 8, 8)
    assert_same(origins.flatten(1, 2), data["pan.ray_origin"])
    assert_same(directions.flatten(1, 2), data["pan.ray_direction"])
    official, cosine = official_rays(poses, (data["pan.fov"] / 2).tan().expand(20, 2), 8, 8)
    assert torch.equal(official.flatten(1, 2), data["pan.ray_direction"])
    torch.testing.assert_close(cosine, camera_rays(poses, matrix.expand(20, 3, 3), 8, 8)[2])
    width, height = data["rect.size_wh"].tolist()
    matrix = official_intrinsics(*data["rect.fov_xy"].tolist(), height=height, width=width)
    _, directions, _ = camera_rays(poses[4], matrix, height, width)
    assert_same(directions.flatten(0, 1), data["rect.ray_direction"])


def test_golden_nerf_render() -> None:
    data = golden("render_nerf")
    field = ShapEField(ShapEFieldConfig(width=32, channels=16))
    field.load_state_dict(part(data, "renderer."))
    pose = torch.stack([data[f"camera.{name}"][0] for name in ("x", "y", "z", "origin")], dim=-1)
    matrix = official_intrinsics(*data["camera.fov"].tolist(), height=16, width=16)
    origins, directions, cosine = camera_rays(torch.cat([pose, torch.eye(4)[3:]]), matrix, 16, 16)
    origins, directions = origins.flatten(0, 1), directions.flatten(0, 1)
    draws = Draws(data["u_stratified"][0], data["u_bin"], data["u_within"][0, ..., 0])
    for name in ("nodir", "dir"):

        def query(points: torch.Tensor, density: int, rgb: slice, name: str = name) -> tuple:
            along = directions[:, None].expand_as(points).reshape(1, -1, 3) if name == "dir" else None
            raw = field.raw(projected(data), points.reshape(1, -1, 3), along)[0].unflatten(
                0, points.shape[:2]
            )
            return raw[..., density].relu(), raw[..., rgb].sigmoid()

        with torch.no_grad():
            render = render_rays(
                lambda points: query(points, 1, COARSE_RGB), lambda points: query(points, 2, FINE_RGB),
                origins, directions, draws,
            )  # fmt: skip
        for suffix, values in (("_coarse", render.coarse), ("", render.fine)):
            assert_same(values.rgb.view(1, 1, 16, 16, 3) * 255, data[f"{name}.channels{suffix}"])
            assert_same(1 - values.alpha.view(1, 1, 16, 16, 1), data[f"{name}.transmittance{suffix}"])
            assert_same(values.distance.view(1, 1, 16, 16, 1), data[f"{name}.distances{suffix}"])
        depth = render.fine.distance.view(16, 16) * cosine
        assert_same(depth.view(1, 1, 16, 16, 1), data[f"{name}.depth"])


def test_golden_surface() -> None:
    data = golden("mesh")
    for grid, vertices, volume in (
        (data["sdf"], data["verts"], 0.435930),
        (data["sdf_padded"][1:-1, 1:-1, 1:-1] + 0.62, data["touching.verts"], 2.208050),
    ):
        ours, faces = official_surface(grid)
        assert_same(torch.from_numpy(ours), vertices, tolerance=1e-5)
        mesh = trimesh.Trimesh(ours, faces, process=False)
        assert mesh.is_watertight and mesh.is_winding_consistent
        assert mesh.euler_number == 2
        assert abs(mesh.volume - volume) < 1e-4
    low, size = data["noise.min"].tolist(), data["noise.size"].tolist()
    ours, faces = classic_surface(data["noise.field"], low=tuple(low), size=tuple(size))
    assert_same(torch.from_numpy(ours), data["noise.verts"], tolerance=1e-5)
    assert set(np.unique(faces)) == set(range(len(ours)))


@torch.no_grad()
def test_golden_surface_colours() -> None:
    data = golden("mesh")
    field = ShapEField(ShapEFieldConfig(width=32, channels=16))
    field.load_state_dict(part(data, "renderer."))
    line = torch.linspace(-1, 1, 24)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(1, -1, 3)
    assert_same(grid[0, :60], data["grid_points"])
    raw = field.raw(projected(data), grid)[0]
    assert_same(raw[:, 0].tanh().reshape(24, 24, 24), data["sdf"])
    assert_same(raw[:, 2].relu().reshape(24, 24, 24), data["density_fine"])
    rgb = field.raw(projected(data), data["verts"][None])[0, :, 3:6].sigmoid()
    assert_same(rgb, data["vertex_rgb_srgb"])
