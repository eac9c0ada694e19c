"""Differentiable surfaces against spheres and planes in closed form, and against finite differences."""

import pytest
import torch

from shapeloom.rendering.implicit_surface import differentiable_surfaces
from shapeloom.rendering.isosurface import extract_surface


def ball(radius, centre=(0.0, 0.0, 0.0)):
    return lambda p: (p - torch.tensor(centre)).norm(dim=-1) - radius


@pytest.mark.parametrize("radius", [0.3, 0.6, 0.95])
def test_a_sphere_keeps_its_radius_and_vertices_move_with_it(radius):
    learnt = torch.tensor(radius, requires_grad=True)
    meshes = differentiable_surfaces([ball(learnt)], resolution=32)
    distance = meshes.vertices.norm(dim=-1)
    # Linear interpolation along an edge of length h errs by h^2 / (8 r) at most.
    assert (distance - radius).abs().max() < (2 / 32) ** 2 / (8 * radius) + 1e-5
    (slope,) = torch.autograd.grad(distance.mean(), learnt)
    # The mean distance follows the radius but for that error's own change, of order (h / r)^2: it
    # jumps where vertices pass nodes.
    assert slope == pytest.approx(1, abs=0.02)


def test_vertices_are_those_of_marching_cubes():
    fields = [ball(0.5), lambda p: p[:, 0] - 0.31, lambda p: p[:, 2].abs() + 0.2 * p[:, 1] - 0.25]
    meshes = differentiable_surfaces(fields, resolution=24)
    expected = [extract_surface(field, resolution=24, coarsest=16) for field in fields]
    vertices = torch.cat([torch.from_numpy(v) for v, _ in expected])
    # Near a node a float32 step of the distance counts most, and scikit-image weighs it otherwise.
    torch.testing.assert_close(meshes.vertices, vertices, atol=1e-4, rtol=0)
    assert meshes.num_faces == [len(f) for _, f in expected]
    assert int(meshes.faces.max()) == len(meshes.vertices) - 1


def test_gradients_agree_with_finite_differences():
    def surface(offset):
        field = lambda p: torch.maximum(p[:, 0] * 1.5 - 0.21, p.norm(dim=-1) - 0.7) + offset  # noqa: E731
        return differentiable_surfaces([field], resolution=12).vertices

    weights = torch.randn(surface(0.0).shape, generator=torch.Generator().manual_seed(0))
    offset = torch.tensor(0.0, requires_grad=True)
    (slope,) = torch.autograd.grad((surface(offset) * weights).sum(), offset)
    step = 1e-3
    difference = ((surface(step) - surface(-step)) * weights).sum() / (2 * step)
    assert float(slope) == pytest.approx(float(difference), rel=1e-2)


@pytest.mark.parametrize("value", [0.3, -0.3, 0.0])
def test_empty_and_full_fields_are_safe(value):
    level = torch.tensor(value, requires_grad=True)
    meshes = differentiable_surfaces([lambda p: level.expand(len(p)), ball(0.5)], resolution=16)
    assert meshes.num_faces[0] == 0 < meshes.num_faces[1]
    assert meshes.vertices.isfinite().all()
    empty = differentiable_surfaces([lambda p: level.expand(len(p))], resolution=16)
    assert empty.vertices.shape == empty.faces.shape == (0, 3)


def test_walls_of_the_box_stay_where_they_are():
    shift = torch.tensor(0.0, requires_grad=True)
    meshes = differentiable_surfaces([lambda p: p[:, 0] - 0.3 - shift], resolution=16)
    (slope,) = torch.autograd.grad(meshes.vertices[:, 0].amin(), shift, retain_graph=True)
    assert slope == 0
    (slope,) = torch.autograd.grad(meshes.vertices[:, 0].amax(), shift)
    assert slope == pytest.approx(1)  # amax shares the gradient among all vertices of the plane
