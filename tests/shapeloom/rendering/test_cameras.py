"""Cameras and rays: conventions pinned down by hand-made cases."""

import math

import torch

from shapeloom.rendering.cameras import (
    Cameras,
    intrinsics,
    look_at,
    ring,
    sphere,
    spherical,
)
from shapeloom.rendering.rays import camera_rays, intersect_box, pixel_rays
from shapeloom.viewpoints import fitting_distance


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


def test_angles_count_from_x_to_y_and_up() -> None:
    azimuth, elevation = torch.tensor([0.0, math.pi / 2, math.pi]), torch.tensor([0.0, math.pi / 6, 0.0])
    poses = spherical(azimuth, elevation, torch.tensor([2.0, 4.0, 1.0]))
    expected = torch.tensor([[2.0, 0, 0], [0, 4 * math.cos(math.pi / 6), 2], [-1, 0, 0]])
    torch.testing.assert_close(poses[:, :3, 3], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        poses[:, :3, 2], -expected / expected.norm(dim=1, keepdim=True), atol=1e-6, rtol=0
    )


def test_a_ring_goes_around_in_even_steps_at_its_height() -> None:
    eyes = ring(7, elevation_degrees=30.0, distance=3.0)[:, :3, 3]
    torch.testing.assert_close(eyes[:, 2], torch.full((7,), 1.5))
    turn = torch.atan2(eyes[:, 1], eyes[:, 0]).diff().remainder(2 * math.pi)
    torch.testing.assert_close(turn, torch.full((6,), 2 * math.pi / 7))


def test_a_sphere_of_cameras_is_even_in_height_and_turns_by_the_golden_angle() -> None:
    eyes = sphere(50, seed=4, distance=2.0)[:, :3, 3] / 2
    low, high = math.sin(math.radians(-35)), math.sin(math.radians(75))
    torch.testing.assert_close(eyes[:, 2].diff(), torch.full((49,), (high - low) / 50), atol=1e-5, rtol=0)
    assert low <= eyes[0, 2] < low + (high - low) / 50
    turn = torch.atan2(eyes[:, 1], eyes[:, 0]).diff().remainder(2 * math.pi)
    torch.testing.assert_close(turn, torch.full((49,), math.pi * (3 - math.sqrt(5))), atol=1e-4, rtol=0)


def test_seeds_turn_and_shift_a_sphere_of_cameras_independently() -> None:
    first = torch.stack([sphere(1, seed=seed, distance=1.0)[0, :3, 3] for seed in range(300)])
    turn = torch.atan2(first[:, 1], first[:, 0])
    assert torch.histc(turn, 6, -math.pi, math.pi).min() > 30  # of 50 on average
    assert torch.corrcoef(torch.stack([turn.remainder(2 * math.pi), first[:, 2]]))[0, 1].abs() < 0.2


def test_points_come_to_the_pixels_whose_rays_go_through_them() -> None:
    matrix = torch.tensor([[40.0, 0, 30], [0, 50, 18], [0, 0, 1]]).expand(2, 3, 3, 3)
    poses = torch.stack([sphere(3, seed=seed, distance=3.0) for seed in range(2)])
    origins, directions, _ = camera_rays(poses[1], matrix[1], 20, 32)
    cameras = Cameras(poses, matrix, 20, 32)
    for view in range(3):
        points = (origins + 2.5 * directions)[view].reshape(-1, 3)
        local = cameras.local(points, 1)[view]
        pixels = cameras.pixels((local[:, :2] / local[:, 2:]).expand(3, -1, -1), 1)[view].reshape(20, 32, 2)
        row, column = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(32) + 0.5, indexing="ij")
        torch.testing.assert_close(pixels, torch.stack([column, row], dim=-1), atol=1e-3, rtol=0)
