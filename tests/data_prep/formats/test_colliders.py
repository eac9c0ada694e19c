"""Colliders go by two signs, and nothing else is hidden."""

import numpy as np
import pytest

from data_prep.formats.colliders import Shape, find_colliders

UNIT = np.array([[0.0, 0, 0], [1, 1, 1]])


def shapes(*names: str, bare: str = "", boxes: dict[str, np.ndarray] | None = None) -> list[Shape]:
    return [Shape(name, name != bare, (boxes or {}).get(name)) for name in names]


@pytest.mark.parametrize("names", [
    ("wall", "UCX_wall"), ("Wall", "UCX_wall_01"), ("wall_02", "UBX_wall"), ("rock", "rock_collider"),
    ("rock", "Rock.collision.001"), ("Rock_3", "rock colonly"), ("a-b", "USP_a-b_2"),
])  # fmt: skip
def test_a_name_made_of_anothers_is_a_collider(names):
    assert find_colliders(shapes(*names)) == [1]


@pytest.mark.parametrize("names", [
    ("USP",), ("USP_45", "trigger"), ("usp-s silencer", "grip"), ("Collision Red", "wheel"), ("hitbox",),
    ("UCX_wall", "tree"), ("Collectible_Gear", "gear"), ("BoxCover", "box"), ("hitbox", "collider"),
    ("UCX_", ""),
])  # fmt: skip
def test_a_name_alone_hides_nothing(names):
    assert find_colliders(shapes(*names)) == []


def test_a_word_and_no_material_where_all_others_have_one():
    assert find_colliders(shapes("car", "hitbox", bare="hitbox")) == [1]
    assert find_colliders(shapes("car", "hitbox", bare="car")) == []
    assert find_colliders([Shape("car", False), Shape("hitbox", False)]) == []


@pytest.mark.parametrize(("box", "hidden"), [
    (UNIT, True), (UNIT * 1.4 - 0.2, True), (UNIT * 5 - 2, False), (UNIT * 0.5, False), (UNIT + 3, False),
])  # fmt: skip
def test_a_word_and_a_box_that_hugs_another(box, hidden):
    found = find_colliders(shapes("car", "hitbox", boxes={"car": UNIT, "hitbox": box}))
    assert found == ([1] if hidden else [])
