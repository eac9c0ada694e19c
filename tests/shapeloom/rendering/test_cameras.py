"""Cameras and rays: conventions pinned down by hand-made cases."""

import math

import torch

from shapeloom.rendering.cameras import fitting_distance, intrinsics, look_at, ring, sphere
from shapeloom.rendering.rays import camera_rays, intersect_box, pixel_rays


def test_a_camera_on_the_x_axis_sees_y_to_its_right_and_z_up() -> None:
    pose = look_at(torch.tensor([-3.0, 0, 0]), torch.zeros(3))
    torch.testing.assert_close(pose[:3, 2], torch.tensor([1.0, 0, 0]))  # forward
    torch.testing.assert_close(pose[:3, 0], torch.tensor([0.0, -1, 0]))  # right
    torch.testing.assert_close(pose[:3, 1], torch.tensor([0.0, 0, -1]))  # down


def test_camera_matrices_are_rotations_even_straight_down() -> None:
    poses = torch.cat(
        [sphere(20, seed=3, distance=2.0), look_at(torch.tensor([[0.0, 0, 3]]), torch.zeros(1, 3))]
    )
    rotation = poses[:, :3, :3]
    identity = torch.eye(3).expand(len(poses), 3, 3)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(poses)))


def test_the_centre_pixel_of_an_odd_picture_looks_forward() -> None:
    pose, matrix = ring(1, distance=3.0), intrinsics(0.6, 5, 5)[None]
    _, directions, cosine = camera_rays(pose, matrix, 5, 5)
    torch.testing.assert_close(directions[0, 2, 2], pose[0, :3, 2])
    torch.testing.assert_close(cosine[0, 2, 2], torch.tensor(1.0))


def test_projecting_a_point_along_a_pixel_ray_gives_the_pixel_back() -> None:
    pose, matrix = sphere(4, seed=1, distance=3.0), intrinsics(0.7, 32, 48).expand(4, 3, 3)
    pixels = torch.rand(4, 10, 2, generator=torch.Generator().manual_seed(0)) * 32
    origins, directions, cosine = pixel_rays(pose, matrix, pixels)
    points = origins + 2.5 * directions
    local = (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    torch.testing.assert_close(local[..., 2], 2.5 * cosine)
    projected = local @ matrix.transpose(1, 2)
    torch.testing.assert_close(projected[..., :2] / projected[..., 2:], pixels, atol=1e-3, rtol=0)


def test_the_cube_fits_into_the_picture_at_the_fitting_distance() -> None:
    fov = 0.7
    distance = fitting_distance(fov)
    assert math.asin(0.95 * math.sqrt(3) / distance) <= fov / 2 + 1e-9


def test_rays_against_the_box_in_closed_form() -> None:
    origins = torch.tensor([[-3.0, 0, 0], [0.0, 0, 0], [-3.0, 2.0, 0]])
    directions = torch.tensor([[1.0, 0, 0]]).expand(3, 3)
    t_near, t_far, hit = intersect_box(origins, directions)
    assert hit.tolist() == [True, True, False]
    torch.testing.assert_close(t_near, torch.tensor([2.0, 0.0, 0.0]))
    torch.testing.assert_close(t_far, torch.tensor([4.0, 1.0, 0.0]))
