"""Filters say what they find, leave out only what they are told to, and see the same thing twice."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from data_prep.failures import AssetError
from data_prep.filters import Filters, check_colors, check_shape, check_views, feature, near_duplicates
from data_prep.geometry.normalize import normalize
from data_prep.geometry.points import sample_surface


def test_flat_assets_are_warned_of_or_left_out(make_soup):
    mesh = make_soup(trimesh.creation.box(extents=(1, 2, 0.01)).vertices, trimesh.creation.box().faces)
    assert check_shape(mesh, Filters()) == ["flat: its thickness is 0.50% of its longest side"]
    with pytest.raises(AssetError, match=r"0\.50%"):
        check_shape(mesh, Filters(min_thickness=0.01))
    cube = make_soup(trimesh.creation.box().vertices, trimesh.creation.box().faces)
    assert check_shape(cube, Filters(min_thickness=0.5)) == []


@pytest.mark.parametrize(("covered", "reason"), [([0, 0, 0, 0], "invisible"), ([1, 0, 0, 0], "blank")])
def test_blank_views_leave_an_asset_out(covered, reason):
    with pytest.raises(AssetError) as caught:
        check_views(np.array(covered, bool), Filters())
    assert caught.value.reason == reason


def test_some_blank_views_are_a_warning():
    assert check_views(np.array([True, True, False]), Filters()) == ["1 of 3 views show nothing"]
    assert check_views(np.ones(3, bool), Filters()) == []


def test_white_assets_are_warned_of_or_left_out():
    white = np.full((9, 3), 255, np.uint8)
    assert "colourless" in check_colors(white, Filters())[0]
    with pytest.raises(AssetError, match="white"):
        check_colors(white, Filters(drop_colourless=True))
    white[4] = (255, 200, 255)
    assert check_colors(white, Filters(drop_colourless=True)) == []


def points_of(mesh, seed: int) -> np.ndarray:
    face, weights = sample_surface(mesh, 4096, np.random.default_rng(seed))
    return np.einsum("nc,ncd->nd", weights, mesh.triangles[face]).astype(np.float32)


def test_near_duplicates_are_the_same_shape_and_colour_whatever_the_points(make_soup):
    shapes = [
        trimesh.creation.box(extents=(1, 2, 3)),
        trimesh.creation.icosphere(),
        trimesh.creation.cylinder(1, 4),
    ]
    meshes = [normalize(make_soup(s.vertices, s.faces))[0] for s in [*shapes, *shapes]]
    grey, red = np.full((4096, 3), 120, np.uint8), np.full((4096, 3), [200, 20, 20], np.uint8)
    features = [feature(points_of(mesh, seed), grey) for seed, mesh in enumerate(meshes)]
    features.append(feature(points_of(meshes[0], 9), red))
    pairs = near_duplicates(np.stack(features), Filters().near_duplicate)
    assert sorted((p.first, p.second) for p in pairs) == [(0, 3), (1, 4), (2, 5)]
    # Stretched by a tenth, a box is another box.
    longer = replace(meshes[0], vertices=meshes[0].vertices * [1.1, 1, 1])
    apart = np.stack([features[0], feature(points_of(longer, 1), grey)])
    assert near_duplicates(apart, pairs[-1].distance) == []


@pytest.mark.parametrize("num", [1, 2, 700])
def test_near_duplicates_are_those_of_all_pairs(num):
    rng = np.random.default_rng(num)
    features = np.abs(rng.standard_normal((num, 90))).astype(np.float32)
    features[num // 2 :] = features[: num - num // 2] + 0.2 * rng.random((num - num // 2, 90), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    apart = np.linalg.norm(features[:, None].astype(np.float64) - features, axis=2)
    limit = 0.12
    found = near_duplicates(features, limit)
    wanted = {(i, j) for i, j in np.argwhere(apart < limit).tolist() if i < j}
    assert {(pair.first, pair.second) for pair in found} == wanted
    assert num < 700 or len(wanted) > 100
    for pair in found:
        assert pair.distance == pytest.approx(apart[pair.first, pair.second], abs=1e-3)
