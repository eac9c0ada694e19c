"""The box's symmetries are a group that keeps +Z up."""

import numpy as np
import pytest

from shapeloom.box import symmetries


@pytest.mark.parametrize(
    ("mirrored", "turned", "size"), [(False, False, 1), (True, False, 2), (False, True, 4), (True, True, 8)]
)
def test_symmetries_are_a_group_that_keeps_z(mirrored: bool, turned: bool, size: int) -> None:
    matrices = symmetries(mirrored=mirrored, turned=turned)
    entries = {tuple(matrix.ravel().tolist()) for matrix in matrices}
    assert len(matrices) == len(entries) == size
    np.testing.assert_array_equal(matrices[0], np.eye(3))
    assert all(tuple((a @ b).ravel().tolist()) in entries for a in matrices for b in matrices)
    assert all((matrix @ [0, 0, 1] == [0, 0, 1]).all() for matrix in matrices)
    assert sum(np.linalg.det(matrix) < 0 for matrix in matrices) == (size // 2 if mirrored else 0)
    if turned:  # a quarter, counter-clockwise seen from above: x to y
        np.testing.assert_array_equal(matrices[1] @ [1, 0, 0], [0, 1, 0])
