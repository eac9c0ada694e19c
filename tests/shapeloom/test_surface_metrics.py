"""Measures of surfaces against closed forms, invariances and an independent implementation."""

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from shapeloom.metrics import MAX_PSNR
from shapeloom.surface_metrics import (
    SURFACE_SCORES,
    color_scores,
    field_surface,
    fscore,
    map_cameras,
    normal_maps,
    normal_psnr,
    slope,
    surface_scores,
)
from shapeloom.surfaces import Surface, sample_triangles


def ball(radius: float = 0.8, subdivisions: int = 4) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions, radius)


def of(mesh: trimesh.Trimesh, *, num: int = 4000, seed: int = 0) -> Surface:
    return Surface.of_mesh(mesh.vertices, mesh.faces, num=num, seed=seed)


def box(*size: float) -> trimesh.Trimesh:
    return trimesh.creation.box(size)


def square(height: float = 0.0, tilt_degrees: float = 0.0) -> Surface:
    mesh = trimesh.Trimesh([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    mesh.apply_transform(trimesh.transformations.rotation_matrix(np.radians(tilt_degrees), [1, 0, 0]))
    mesh.apply_translation([0, 0, height])
    return of(mesh)


NOTHING = Surface.of_mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))


def test_equal_surfaces_score_exactly_the_best_whatever_their_points() -> None:
    scores = surface_scores(of(ball(), seed=1, num=100), of(ball(), seed=2, num=500))
    # A point between two faces may be nearer, by rounding, to the neighbour: 3 degrees off.
    assert scores.pop("normal_consistency") > 0.999
    assert scores.pop("chamfer") < 1e-6
    assert scores.pop("normal_psnr") == pytest.approx(MAX_PSNR)
    assert scores == {"fscore_0.01": 1, "fscore_0.02": 1, "fscore_0.05": 1, "normals_off": 0}


@pytest.mark.parametrize(("apart", "fscores"), [(0.005, (1, 1, 1)), (0.015, (0, 1, 1)), (0.04, (0, 0, 1))])
def test_parallel_planes_have_their_distance_as_chamfer(apart: float, fscores: tuple[int, ...]) -> None:
    scores = surface_scores(square(), square(apart))
    assert scores["chamfer"] == pytest.approx(apart)
    assert tuple(scores[f"fscore_{at}"] for at in (0.01, 0.02, 0.05)) == fscores
    assert scores["normal_consistency"] == pytest.approx(1)


def test_a_scaled_sphere_is_as_far_away_as_its_radius_differs() -> None:
    scores = surface_scores(of(ball(0.83)), of(ball(0.8)))
    # Faces of 64-gons lie within a sphere by up to 1 - cos(pi / 64) = 0.1%.
    assert scores["chamfer"] == pytest.approx(0.03, abs=1e-3)
    assert scores["fscore_0.02"] == 0 and scores["fscore_0.05"] == 1
    assert scores["normal_consistency"] > 0.998 and scores["normals_off"] == 0


@pytest.mark.parametrize("degrees", [10, 29, 31, 60])
def test_turned_normals_have_their_cosine_and_count_as_off_beyond_30_degrees(degrees: float) -> None:
    flat = square()
    angle = np.radians(degrees)
    turned = Surface(
        flat.vertices,
        flat.faces,
        flat.points,
        np.tile([0, np.sin(angle), np.cos(angle)], (len(flat.points), 1)),
    )
    scores = surface_scores(turned, flat)
    # Of the two directions one goes by the turned points' normals, the other by the faces', which are equal.
    assert scores["normal_consistency"] == pytest.approx((np.cos(angle) + 1) / 2)
    assert scores["normals_off"] == (0.5 if degrees > 30 else 0)
    both = surface_scores(square(tilt_degrees=degrees), flat)
    assert both["normals_off"] == (1 if degrees > 30 else 0)


def test_as_much_again_far_away_gives_an_fscore_of_two_thirds() -> None:
    one = box(0.5, 0.5, 0.5)
    two = trimesh.util.concatenate([one, one.copy().apply_translation([0, 0, 1.4])])
    scores = surface_scores(of(two), of(one))
    # Half of the predicted points are right, and every true one is found.
    assert scores["fscore_0.02"] == pytest.approx(2 * 0.5 / 1.5, abs=1e-3)
    assert fscore(np.zeros(10), np.ones(5), threshold=0.1) == 0


def test_a_missing_leg_costs_its_share_of_the_area() -> None:
    top = box(1.6, 1.6, 0.1).apply_translation([0, 0, 0.5])
    leg = box(0.1, 0.1, 1.0).apply_translation([0.5, 0.5, -0.1])
    whole = trimesh.util.concatenate([top, leg])
    lost = 0.4 / whole.area  # its four long sides
    recall = 1 - lost
    scores = surface_scores(of(top), of(whole))
    # What is within 0.02 of the top is found all the same, and so is the leg's end within it.
    assert scores["fscore_0.02"] == pytest.approx(2 * recall / (1 + recall), abs=0.005)


def test_flipped_faces_score_alike_and_order_does_not_matter() -> None:
    a, b = of(ball(0.8)), of(box(1, 1, 1))
    scores = surface_scores(a, b)
    assert surface_scores(b, a) == pytest.approx(scores)
    turned = Surface(b.vertices, b.faces[::-1, ::-1].copy(), b.points[::-1].copy(), -b.normals[::-1])
    # Points of a ball beyond a cube's edge are as near to either face there: the order decides.
    assert surface_scores(a, turned) == pytest.approx(scores, rel=1e-3)


def test_a_rigid_motion_of_both_leaves_distances_and_normals() -> None:
    a, b = of(ball(0.5)), of(box(0.8, 0.8, 0.8))
    matrix = trimesh.transformations.rotation_matrix(1.0, [1, 2, 3])[:3, :3]
    shift = np.array([0.1, -0.1, 0.2])
    moved = [
        Surface(s.vertices @ matrix.T + shift, s.faces, s.points @ matrix.T + shift, s.normals @ matrix.T)
        for s in (a, b)
    ]
    before, after = surface_scores(a, b), surface_scores(*moved)
    for name in set(SURFACE_SCORES) - {"normal_psnr"}:  # its views stay where they are
        # A point may fall to another face at a tie, and no more than a few of 4,000 do.
        assert after[name] == pytest.approx(before[name], abs=2e-3)


def test_scores_agree_with_dense_points_and_a_search_tree() -> None:
    """The independent implementation: scipy's nearest of 400,000 points, not igl's nearest triangle."""
    a, b = of(ball(0.6)), of(box(1.0, 1.0, 0.9))
    dense = [of(ball(0.6), num=400_000, seed=5), of(box(1.0, 1.0, 0.9), num=400_000, seed=6)]
    first, near_b = cKDTree(dense[1].points).query(a.points)
    second, near_a = cKDTree(dense[0].points).query(b.points)
    scores = surface_scores(a, b)
    # Dense points are 0.003 apart at most where there are 80,000 a unit of area.
    assert scores["chamfer"] == pytest.approx((first.mean() + second.mean()) / 2, abs=5e-4)
    for at in (0.01, 0.02, 0.05):
        precision, recall = (first < at).mean(), (second < at).mean()
        assert scores[f"fscore_{at}"] == pytest.approx(
            2 * precision * recall / (precision + recall), abs=0.01
        )
    cosines = [
        np.abs((a.normals * dense[1].normals[near_b]).sum(1)),
        np.abs((b.normals * dense[0].normals[near_a]).sum(1)),
    ]
    assert scores["normal_consistency"] == pytest.approx(np.mean([c.mean() for c in cosines]), abs=5e-3)
    off = np.mean([(c < np.cos(np.radians(30))).mean() for c in cosines])
    assert scores["normals_off"] == pytest.approx(off, abs=5e-3)


def test_a_surface_without_triangles_fails_in_every_measure() -> None:
    truth = of(ball(0.8))
    scores = surface_scores(NOTHING, truth)
    assert scores["chamfer"] == pytest.approx(0.8, abs=2e-3)
    assert [scores[f"fscore_{at}"] for at in (0.01, 0.02, 0.05)] == [0, 0, 0]
    assert scores["normal_consistency"] == 0 and scores["normals_off"] == 1
    assert scores["normal_psnr"] == pytest.approx(
        normal_psnr(np.zeros((8, 128, 128, 3)), normal_maps(truth, map_cameras()))
    )


def test_normal_maps_of_a_sphere_are_its_directions() -> None:
    maps = normal_maps(of(ball(0.8, 5)), map_cameras())
    assert maps.shape == (8, 128, 128, 3)
    seen = np.linalg.norm(maps, axis=-1) > 0
    # A ball is seen within asin(radius / distance) of the axis.
    half = np.tan(np.radians(10))
    radius = np.tan(np.arcsin(0.8 / (1.4 / half))) / half
    assert seen.mean() == pytest.approx(np.pi / 4 * radius**2, rel=0.02)
    # The middle of each view looks along the camera's own axis.
    poses = map_cameras().cam_to_world[0].numpy()
    assert np.allclose(maps[:, 64, 64], -poses[:, :3, 2], atol=0.05)


def test_a_wall_has_the_normal_of_the_viewers_side_from_both() -> None:
    maps = normal_maps(square(), map_cameras())
    above = map_cameras().cam_to_world[0, :, 2, 3].numpy() > 0
    seen = np.linalg.norm(maps, axis=-1) > 0.5
    for view, is_above in enumerate(above):
        assert np.allclose(maps[view][seen[view]], [0, 0, 1 if is_above else -1])


def test_normal_psnr_of_turned_normals_is_a_closed_form() -> None:
    truth = np.tile(np.array([0.0, 0.0, 1.0]), (2, 4, 4, 1))
    turned = np.tile(np.array([0.0, 1.0, 0.0]), (2, 4, 4, 1))
    # |difference| = sqrt 2, halved by the picture's scale, over three channels: 2 / 4 / 3.
    assert normal_psnr(turned, truth) == pytest.approx(-10 * np.log10(1 / 6))
    # Where there is nothing the picture is white: (0.5, 0.5, 1) of the truth is off by 0.5 in two channels.
    assert normal_psnr(np.zeros_like(truth), truth) == pytest.approx(-10 * np.log10(1 / 6))


def test_points_alone_stand_for_their_surface() -> None:
    truth = of(ball(0.8))
    spread = of(ball(0.8), num=4096, seed=3)
    scores = surface_scores(Surface.of_points(spread.points, spread.normals), truth)
    # Squares across a ball stand off it at their corners by 0.001, and random points leave gaps.
    assert scores["fscore_0.02"] > 0.98 and scores["normal_consistency"] > 0.98
    assert scores["normal_psnr"] > 15  # its silhouette is ragged: a limit of what maps can say there


def test_a_field_of_true_distances_has_slope_one_and_a_hedging_one_less() -> None:
    truth = of(ball(0.7))

    def gradient(points: torch.Tensor) -> torch.Tensor:
        return points / points.norm(dim=-1, keepdim=True)

    assert slope(gradient, truth) == pytest.approx(1, abs=1e-5)
    assert slope(lambda points: 0.4 * gradient(points), truth) == pytest.approx(0.4, abs=1e-5)
    scores = surface_scores(field_surface(lambda points: points.norm(dim=-1) - 0.7, resolution=48), truth)
    assert scores["fscore_0.01"] == 1 and scores["normal_consistency"] > 0.995


def test_sampled_points_are_even_by_area() -> None:
    mesh = box(1, 1, 0.5)
    face, weights = sample_triangles(mesh.triangles, 10_000, np.random.default_rng(0))
    assert np.allclose(weights.sum(axis=1), 1) and (weights >= 0).all()
    # Stratified: each face has its share but for one point at either end.
    assert np.abs(np.bincount(face, minlength=12) - 10_000 * mesh.area_faces / mesh.area).max() <= 2


def test_colours_that_bleed_show_at_edges_and_a_wrong_colour_everywhere() -> None:
    x = np.linspace(-1, 1, 401)
    points = np.stack([x, 0 * x, 0 * x], axis=1)
    truth = np.where(x[:, None] < 0, [1.0, 0, 0], [0, 0, 1.0])
    width = 0.04
    bled = np.clip(0.5 + x / width, 0, 1)[:, None] * [-1.0, 0, 1] + [1.0, 0, 0]
    scores = color_scores(bled, truth, points)
    # A ramp over 0.04 is wrong by 1/2 at the edge and 0 at 0.02, in two channels of three.
    assert scores["color_error_edge"] == pytest.approx(2 / 3 * 0.5 * 0.5 * 0.02 / 0.05, rel=0.1)
    assert scores["color_error_flat"] == 0
    darker = color_scores(truth * 0.9, truth, points)
    assert darker["color_error_edge"] == pytest.approx(darker["color_error_flat"], rel=1e-6)
    assert darker["color_error"] == pytest.approx(0.1 / 3)


def test_an_asset_of_one_colour_has_no_colour_edges() -> None:
    points = np.random.default_rng(0).random((50, 3))
    scores = color_scores(np.full((50, 3), 0.5), np.full((50, 3), 0.4), points)
    assert scores.keys() == {"color_error", "color_error_flat"}
