"""Could a shape be printed? Watertight, of one piece, and without an inner shell that nothing leads to."""

import numpy as np
import trimesh
from jaxtyping import Float, Int
from numpy import ndarray

PRINTABLE = ("watertight", "one_piece", "no_inner_shell")


def printability(vertices: Float[ndarray, "vertices 3"], faces: Int[ndarray, "faces 3"]) -> dict[str, bool]:
    """Returns PRINTABLE of a mesh whose faces are wound outward; all False for one without faces.

    watertight: every edge joins two faces, wound alike. one_piece: all faces hang together by edges.
    no_inner_shell: no closed part is wound inward, as the wall of a hollow is.
    """
    if not len(faces):
        return dict.fromkeys(PRINTABLE, False)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    part = trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(faces))
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    volume = np.bincount(part, weights=(a * np.cross(b, c)).sum(axis=1))
    return {
        "watertight": bool(mesh.is_watertight and mesh.is_winding_consistent),
        "one_piece": int(part.max()) == 0,
        "no_inner_shell": bool((volume > 0).all()),
    }
