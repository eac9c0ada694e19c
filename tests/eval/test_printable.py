"""Each fault of a mesh is named for what it is."""

import numpy as np
import pytest
import trimesh

from eval.printable import printability

BALL = trimesh.creation.icosphere(2, 0.8)
SMALL = trimesh.creation.icosphere(2, 0.3)


def joined(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.util.concatenate(list(meshes))


def inward(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False)


@pytest.mark.parametrize(
    ("mesh", "faults"),
    [
        (BALL, set()),
        (trimesh.Trimesh(BALL.vertices, BALL.faces[1:]), {"watertight"}),
        (joined(BALL, SMALL.copy().apply_translation([2, 0, 0])), {"one_piece"}),
        (joined(BALL, inward(SMALL)), {"one_piece", "no_inner_shell"}),
    ],
)
def test_a_fault_is_named(mesh: trimesh.Trimesh, faults: set[str]) -> None:
    found = printability(np.asarray(mesh.vertices), np.asarray(mesh.faces))
    assert {name for name, holds in found.items() if not holds} == faults


def test_nothing_can_not_be_printed() -> None:
    assert not any(printability(np.zeros((0, 3)), np.zeros((0, 3), np.int64)).values())
