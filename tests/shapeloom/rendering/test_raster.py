"""Rasterised meshes against ray-traced planes, supersampled pictures, closed forms and finite differences."""

import math

import pytest
import torch

from shapeloom.rendering.cameras import Cameras, intrinsics, look_at, ring
from shapeloom.rendering.implicit_surface import Meshes, differentiable_surfaces
from shapeloom.rendering.raster import _Crossing, _unoccluded, antialias, rasterize

SIZE = 24


def cameras(batch=1, views=2, size=SIZE, distance=3.0):
    poses = ring(views, distance=distance).expand(batch, views, 4, 4)
    matrix = intrinsics(0.7, size, size).expand(batch, views, 3, 3)
    return Cameras(poses, matrix, size, size)


def frontal(size=SIZE, distance=3.0, dtype=torch.float64):
    pose = look_at(torch.tensor([0.0, 0.0, distance]), torch.zeros(3))
    return Cameras(pose.to(dtype)[None, None], intrinsics(0.7, size, size).to(dtype)[None, None], size, size)


def ball(radius=0.6, resolution=24):
    return differentiable_surfaces([lambda p: p.norm(dim=-1) - radius], resolution=resolution)


def paint(meshes, seen, attributes):
    fragments = rasterize(meshes, seen)
    covered = (fragments.face >= 0).to(attributes.dtype)[..., None]
    picture = torch.cat([fragments.interpolate(attributes, meshes.faces), covered], dim=-1)
    return antialias(picture, fragments, meshes, seen)


def test_interpolated_positions_are_where_rays_meet_the_surface():
    meshes, seen = ball(), cameras()
    fragments = rasterize(meshes, seen)
    points = fragments.interpolate(meshes.vertices, meshes.faces)
    hit = fragments.face >= 0
    # Triangles of a grid of side h = 1/12 have sides up to 3^0.5 h, their corners errors of h^2 / (8 r).
    assert (points[hit].norm(dim=-1) - 0.6).abs().max() < 4 * (1 / 12) ** 2 / (8 * 0.6) + 1e-4
    local = (points[0, 0] - seen.cam_to_world[0, 0, :3, 3]) @ seen.cam_to_world[0, 0, :3, :3]
    torch.testing.assert_close(local[..., 2][hit[0, 0]], fragments.depth[0, 0][hit[0, 0]])
    pixels = local[..., :2] / local[..., 2:] * seen.intrinsics[0, 0, 0, 0] + SIZE / 2
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    torch.testing.assert_close(pixels[hit[0, 0]], torch.stack([x, y], -1)[hit[0, 0]], atol=1e-3, rtol=0)


def test_antialiased_silhouettes_are_like_supersampled_ones():
    meshes = ball(resolution=32)
    white = torch.ones_like(meshes.vertices)
    fine = cameras(size=8 * SIZE)
    truth = (rasterize(meshes, fine).face >= 0).float().reshape(1, 2, SIZE, 8, SIZE, 8).mean(dim=(3, 5))
    hard = (rasterize(meshes, cameras()).face >= 0).float()
    soft = paint(meshes, cameras(), white)[..., 3]
    assert (hard - truth).square().mean() > 10 * (soft - truth).square().mean()
    assert ((soft >= 0) & (soft <= 1.0001)).all()


def test_a_spheres_coverage_and_its_slope_are_those_of_a_disc():
    seen = frontal(64, dtype=torch.float32)
    focal = float(seen.intrinsics[0, 0, 0, 0])

    def area(radius):
        meshes = differentiable_surfaces([lambda p: p.norm(dim=-1) - radius], resolution=48)
        return paint(meshes, seen, torch.ones_like(meshes.vertices))[..., 3].sum()

    def disc(r):
        return math.pi * focal**2 * r**2 / (3.0**2 - r**2)

    for value in (0.6, 0.63, 0.66):
        radius = torch.tensor(value, requires_grad=True)
        covered = area(radius)
        (slope,) = torch.autograd.grad(covered, radius)
        assert float(covered.detach()) == pytest.approx(disc(value), rel=0.005)
        step = 2e-3
        difference = (area(value + step) - area(value - step)) / (2 * step)
        assert float(slope) == pytest.approx(float(difference), rel=0.01)
        # A polyhedron's silhouette wobbles about the sphere's as the radius passes through the grid.
        assert float(slope) == pytest.approx((disc(value + step) - disc(value - step)) / (2 * step), rel=0.06)


def scene():
    """A triangle before a tilted square: silhouettes on the background and before another face."""
    vertices = torch.tensor(
        [[-0.7, -0.62, -0.3], [0.71, -0.6, -0.2], [0.66, 0.7, -0.35], [-0.64, 0.61, -0.25],
         [-0.33, -0.41, 0.4], [0.52, -0.13, 0.5], [-0.11, 0.47, 0.3]], dtype=torch.float64,
    )  # fmt: skip
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    colors = torch.rand(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return vertices, faces, colors


@pytest.mark.parametrize("which", ["vertices", "colors"])
def test_gradients_agree_with_finite_differences(which):
    vertices, faces, colors = scene()
    seen = frontal()
    weights = torch.rand(1, 1, SIZE, SIZE, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value(place, paintwork):
        return (paint(Meshes(place, faces, [3]), seen, paintwork) * weights).sum()

    learnt = {"vertices": vertices, "colors": colors}
    learnt[which] = learnt[which].clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(learnt["vertices"], learnt["colors"]), learnt[which])
    # Visible faces come from float32; a step this small changes none of them here.
    step, moved = 1e-5, {"vertices": vertices, "colors": colors}
    for index in range(learnt[which].numel()):
        found = []
        for sign in (1, -1):
            shifted = {name: part.clone() for name, part in moved.items()}
            shifted[which].view(-1)[index] += sign * step
            found.append(float(value(shifted["vertices"], shifted["colors"])))
        expected = (found[0] - found[1]) / (2 * step)
        assert float(slope.view(-1)[index]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_batch_is_its_assets_one_by_one_and_empty_ones_show_nothing():
    fields = [lambda p: p.norm(dim=-1) - 0.5, lambda p: p[:, 0] * 0 + 1, lambda p: p.abs().amax(-1) - 0.41]
    together = differentiable_surfaces(fields, resolution=16)
    seen = cameras(batch=3)
    whole = paint(together, seen, together.vertices)
    assert (whole[1] == 0).all()
    for i, field in enumerate(fields):
        alone = differentiable_surfaces([field], resolution=16)
        torch.testing.assert_close(paint(alone, cameras(), alone.vertices)[0], whole[i])


def test_what_is_hidden_changes_no_pixel():
    """A square behind a tilted one: along its edges too, neighbouring pixels see different depths."""
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    front = 0.7 * square + square[:, :1] * torch.tensor([0.0, 0, 0.3], dtype=torch.float64)
    hidden = 0.3 * square - torch.tensor([0.0, 0, 0.6], dtype=torch.float64)
    vertices, both = torch.cat([front, hidden]), torch.cat([faces, faces + 4])
    colors = torch.rand(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = paint(Meshes(front, faces, [2]), frontal(), colors[:4])
    torch.testing.assert_close(paint(Meshes(vertices, both, [4]), frontal(), colors), expected)


def test_mirrored_cameras_see_mirrored_pictures():
    vertices, faces, colors = scene()
    flip = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    seen = frontal()
    mirrored = seen.cam_to_world.clone()
    mirrored[..., :3, :] = flip @ mirrored[..., :3, :]
    turned = Cameras(mirrored, seen.intrinsics, SIZE, SIZE)
    expected = paint(Meshes(vertices, faces, [3]), seen, colors)
    torch.testing.assert_close(paint(Meshes(vertices @ flip, faces, [3]), turned, colors), expected)


def test_a_camera_inside_a_mesh_gives_finite_pictures_and_gradients():
    radius = torch.tensor(0.6, requires_grad=True)
    meshes = differentiable_surfaces([lambda p: p.norm(dim=-1) - radius], resolution=16)
    picture = paint(meshes, frontal(distance=0.1, dtype=torch.float32), meshes.vertices)
    (slope,) = torch.autograd.grad(picture.sum(), radius)
    assert picture.isfinite().all() and slope.isfinite()


def test_autocast_changes_no_pixel():
    meshes, seen = ball(), cameras()
    expected = paint(meshes, seen, meshes.vertices)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paint(meshes, seen, meshes.vertices), expected)


@pytest.mark.parametrize(
    ("inside", "outside", "edge", "shows"),
    [(1.0, 1.5, 1.2, True), (1.0, 1.5, 2.0, False), (2.0, 1.5, 1.0, False)],
)
def test_an_edge_shows_only_in_front_of_what_the_bare_pixel_sees(
    inside: float, outside: float, edge: float, shows: bool
) -> None:
    found = _Crossing(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]), torch.tensor([edge]))
    assert len(_unoccluded(found, torch.tensor([inside, outside])).inside) == int(shows)


def test_crossings_into_one_bare_pixel_from_two_sides_both_show_and_of_one_side_the_one_that_covers_most():
    inside, outside = torch.tensor([0, 2, 2]), torch.tensor([1, 1, 1])
    found = _Crossing(inside, outside, torch.tensor([0.2, 0.3, 0.6]), torch.ones(3))
    shown = _unoccluded(found, torch.tensor([1.0, 9.0, 1.0]))
    assert sorted(zip(shown.inside.tolist(), shown.share.tolist(), strict=True)) == [
        (0, pytest.approx(0.2)),
        (2, pytest.approx(0.6)),
    ]


def test_an_upright_rectangle_covers_pixels_as_far_as_it_reaches_into_them_up_to_the_border():
    left, right, top, bottom = 0.8, 6.7, 0.6, 7.3  # in a picture of 8 x 8
    corners = torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]])
    vertices = torch.cat([corners / 8, torch.ones(4, 1)], dim=1)
    rectangle = Meshes(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), [2])
    matrix = torch.tensor([[8.0, 0, 0], [0, 8, 0], [0, 0, 1]])
    seen = Cameras(torch.eye(4)[None, None], matrix[None, None], 8, 8)
    fragments = rasterize(rectangle, seen)
    coverage = antialias((fragments.face >= 0).float()[..., None], fragments, rectangle, seen)[0, 0, ..., 0]
    torch.testing.assert_close(coverage[3], torch.tensor([0.2, 1, 1, 1, 1, 1, 0.7, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(coverage[:, 3], torch.tensor([0.4, 1, 1, 1, 1, 1, 1, 0.3]), atol=1e-5, rtol=0)
