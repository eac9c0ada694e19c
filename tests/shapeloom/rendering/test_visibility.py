"""Both ways to find visible faces against each other, on the CPU, and which of them is taken."""

import logging
import sys

import pytest
import torch

from shapeloom.rendering import raster, visibility
from shapeloom.rendering.cameras import Cameras, intrinsics, look_at, ring
from shapeloom.rendering.implicit_surface import Meshes, differentiable_surfaces
from shapeloom.rendering.raster import antialias, rasterize
from shapeloom.rendering.visibility import faces_by_embree, faces_by_pytorch3d, visible_faces


@pytest.fixture
def pytorch3d():
    return pytest.importorskip("pytorch3d", reason="pytorch3d has no wheel for this machine")


def cameras(height: int, width: int, *, batch: int = 1, distance: float = 3.0) -> Cameras:
    """Two views that differ, with the principal point off the middle and unequal focal lengths."""
    matrix = intrinsics(0.7, height, width)
    matrix[:2, 2] += torch.tensor([2.3, -1.6])
    matrix[0, 0] *= 1.1
    poses = ring(2, distance=distance)
    return Cameras(poses.expand(batch, 2, 4, 4), matrix.expand(batch, 2, 3, 3), height, width)


def assets(radius: torch.Tensor | float = 0.6) -> Meshes:
    """A torus that hides parts of itself, nothing, and a ball off the middle."""
    place = torch.tensor([0.2, -0.1, 0.15])
    return differentiable_surfaces(
        [
            lambda p: torch.stack([p[:, :2].norm(dim=-1) - radius, p[:, 2]], dim=-1).norm(dim=-1) - 0.25,
            lambda p: p[:, 0] * 0 + 1,
            lambda p: (p - place).norm(dim=-1) - radius,
        ],
        resolution=16,
    )


def beside_an_edge(face: torch.Tensor) -> torch.Tensor:
    """Returns the pixels where a neighbour sees another face."""
    found = torch.zeros_like(face, dtype=torch.bool)
    for axis in (-1, -2):
        differs = face.narrow(axis, 1, face.shape[axis] - 1) != face.narrow(axis, 0, face.shape[axis] - 1)
        found.narrow(axis, 1, face.shape[axis] - 1).logical_or_(differs)
        found.narrow(axis, 0, face.shape[axis] - 1).logical_or_(differs)
    return found


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 56), (56, 40)])
def test_rasterised_faces_are_those_that_rays_hit(pytorch3d, height: int, width: int) -> None:
    meshes, seen = assets(), cameras(height, width, batch=3)
    rays, found = faces_by_embree(meshes, seen), faces_by_pytorch3d(meshes, seen)
    differs = rays != found
    # Centres within rounding of an edge may go to either side's face.
    assert differs.float().mean() < 2e-3
    assert not (differs & ~beside_an_edge(rays)).any()
    assert (found[1] == -1).all()
    for asset, (first, last) in {
        0: (0, meshes.num_faces[0]),
        2: (meshes.num_faces[0], len(meshes.faces)),
    }.items():
        hit = found[asset][found[asset] >= 0]
        assert len(hit) > 100
        assert ((hit >= first) & (hit < last)).all()


def test_no_gap_shows_where_centres_lie_on_edges(pytorch3d) -> None:
    # A square of two faces whose diagonal passes through the centres of a 9 x 9 picture.
    vertices = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    square = Meshes(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), [2])
    pose = look_at(torch.tensor([0.0, 0.0, 2.0]), torch.zeros(3))[None, None]
    seen = Cameras(pose, intrinsics(0.5, 9, 9)[None, None], 9, 9)
    assert (faces_by_pytorch3d(square, seen) >= 0).all()


def test_faces_that_pass_the_camera_are_cut_and_those_behind_it_gone(pytorch3d) -> None:
    # A long floor below a camera that stands on its middle, and looks along it or away from a wall.
    floor = torch.tensor([[-5.0, -6, -0.3], [5, -6, -0.3], [5, 7, -0.3], [-5, 7, -0.3]])
    wall = torch.tensor([[-3.0, -2, -3], [3, -2, -3], [0, -2, 4]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    meshes = Meshes(torch.cat([floor, wall]), faces, [3])
    pose = look_at(torch.zeros(2, 3), torch.tensor([[0.1, 1.0, 0.05], [0.1, -1.0, 0.05]]))[None]
    seen = Cameras(pose, intrinsics(1.2, 32, 32).expand(1, 2, 3, 3), 32, 32)
    rays, found = faces_by_embree(meshes, seen), faces_by_pytorch3d(meshes, seen)
    assert set(rays[0, 0].unique().tolist()) == {-1, 0, 1}
    assert 2 in rays[0, 1]
    assert not ((rays != found) & ~beside_an_edge(rays)).any()
    assert (rays != found).float().mean() < 2e-3
    wall_alone = Meshes(wall, faces[:1], [1])
    assert (faces_by_pytorch3d(wall_alone, seen)[0, 0] == -1).all()


def test_pictures_and_gradients_are_the_same_by_both(pytorch3d, monkeypatch) -> None:
    seen = cameras(32, 32, batch=3)
    weights = torch.rand(3, 2, 32, 32, 4, generator=torch.Generator().manual_seed(0))

    def paint(find) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(raster, "visible_faces", torch.no_grad()(find))
        radius = torch.tensor(0.6, requires_grad=True)
        meshes = assets(radius)
        fragments = rasterize(meshes, seen)
        covered = (fragments.face >= 0).float()[..., None]
        picture = torch.cat([fragments.interpolate(meshes.vertices, meshes.faces), covered], dim=-1)
        picture = antialias(picture, fragments, meshes, seen)
        (slope,) = torch.autograd.grad((picture * weights).sum(), meshes.vertices)
        return picture.detach(), slope

    (rays, slope), (found, other) = paint(faces_by_embree), paint(faces_by_pytorch3d)
    # Which of two faces a centre on their edge belongs to makes no difference to the place seen.
    torch.testing.assert_close(found, rays, atol=1e-4, rtol=0)
    assert (other - slope).norm() < 1e-3 * slope.norm()


def test_nothing_at_all_is_seen_of_no_meshes(pytorch3d) -> None:
    nothing = Meshes(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), [0, 0])
    seen = cameras(8, 8, batch=2)
    for find in (faces_by_embree, faces_by_pytorch3d):
        assert find(nothing, seen).shape == (2, 2, 8, 8)
        assert (find(nothing, seen) == -1).all()


def test_faces_are_numbered_through_all_assets_and_rays_that_miss_see_none() -> None:
    # Squares of two faces each, and an asset without any between them.
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    meshes = Meshes(torch.cat([square, 0.5 * square]), torch.cat([faces, faces + 4]), [2, 0, 2])
    pose = look_at(torch.tensor([0.0, 0.0, 4.0]), torch.zeros(3))
    matrix = torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]])  # a side of 2 is 4 pixels wide
    seen = Cameras(pose.expand(3, 1, 4, 4), matrix.expand(3, 1, 3, 3), 8, 8)
    large, nothing, small = faces_by_embree(meshes, seen)[:, 0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert torch.equal(large >= 0, expected) and set(large[expected].tolist()) == {0, 1}
    assert (nothing == -1).all() and (large[~expected] == -1).all()
    assert set(small[3:5, 3:5].flatten().tolist()) == {2, 3} and int((small >= 0).sum()) == 4


def test_without_pytorch3d_one_line_says_so(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer.mesh.rasterize_meshes", None)
    visibility.pytorch3d_works.cache_clear()
    with caplog.at_level(logging.WARNING, logger="shapeloom"):
        assert not any(visibility.pytorch3d_works(torch.device("cpu")) for _ in range(3))
    visibility.pytorch3d_works.cache_clear()
    assert len(caplog.records) == 1
    assert "pytorch3d doesn't work on cpu" in caplog.text


def test_tensors_on_the_cpu_never_ask_for_pytorch3d(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch3d", None)
    monkeypatch.setattr(visibility, "faces_by_pytorch3d", None)
    monkeypatch.setattr(visibility, "pytorch3d_works", None)
    meshes, seen = assets(), cameras(16, 16, batch=3)
    assert torch.equal(visible_faces(meshes, seen), faces_by_embree(meshes, seen))


def test_points_close_to_a_camera_are_projected_by_their_own_depth() -> None:
    view = cameras(8, 12)
    near = torch.tensor([[0.1, -0.2, 0.4], [0.2, 0.3, 0.9], [0.2, 0.3, 2.0]])  # in the first camera's frame
    pose = view.cam_to_world[0, 0]
    world = near @ pose[:3, :3].T + pose[:3, 3]
    screen = visibility._ndc(world, view, 0)[0]
    torch.testing.assert_close(screen[:, 2], near[:, 2])
    matrix = view.intrinsics[0, 0]
    pixels = (near / near[:, 2:]) @ matrix[:2].T
    # pytorch3d: +x left, +y up, from the middle, in halves of the shorter side.
    expected = (torch.tensor([6.0, 4.0]) - pixels) / 4
    torch.testing.assert_close(screen[:, :2], expected)
