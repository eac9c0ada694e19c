"""Files to meshes: GLB, glTF, OBJ, PLY, STL, OFF and DAE, in the project's frame (right-handed, +Z up).

glTF and OBJ are +Y up and are turned; DAE says itself which axis is up; PLY, STL and OFF (scans, CAD,
printing) are +Z up and stay as they are; `up` overrides. Units don't matter: every asset is scaled to fit.
An asset may name others (textures, materials, buffers) within the assets' root; nothing else is ever read.
A missing texture is a warning, a missing buffer an error. Each format has its reader beside this file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats import collada_scene
from data_prep.formats.collada import open_collada
from data_prep.formats.files import Files
from data_prep.formats.gltf import open_gltf
from data_prep.formats.gltf_materials import Materials
from data_prep.formats.gltf_scene import scene_parts
from data_prep.formats.obj import obj_parts
from data_prep.formats.off import off_parts
from data_prep.formats.parts import Part, Soup
from data_prep.formats.ply import ply_parts
from data_prep.formats.stl import stl_parts
from data_prep.mesh import Mesh

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae")
Up = Literal["auto", "x", "y", "z"]

_TURNS = {
    "x": np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]),  # COLLADA: right is -Y then
    "y": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "z": np.eye(3),
}
"""Rotations that make an axis +Z."""


def load_mesh(
    path: Path,
    *,
    root: Path | None = None,
    up: Up = "auto",
    rotation: Sequence[float] | None = None,
    max_faces: int = 2_000_000,
    max_bytes: int = 1 << 30,
    max_texture: int = 1024,
) -> Mesh:
    """Reads one asset as a triangle soup in the project's frame, in the file's own units.

    path: of a file, or of a member of a zip archive as `archive.zip/member.obj`.
    root: folder in which all lies that the asset may read; none: its own.
    rotation: row-major 3 x 3, applied in the file's own frame before it is turned upright.
    max_texture: larger textures are shrunk to it. Raises AssetError with the reason for whatever can't be
    used: unreadable, unsupported, empty, without extent, not finite, too large, files outside its folder.
    """
    files, soup = Files(path, max_bytes, root), Soup(max_faces)
    try:
        parts, own_up = _open(files, path.suffix.lower(), soup, max_texture)
        for part, transform in parts:
            soup.add(part, transform)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        # What a damaged file makes its reader trip over; the readers' own checks say more where they can.
        raise AssetError("unreadable", f"{type(error).__name__}: {error}") from error
    turn = _TURNS[own_up if up == "auto" else up]
    mesh = soup.build(turn if rotation is None else turn @ np.reshape(rotation, (3, 3)))
    mesh.warnings.extend(sorted(files.notes))
    if missing := sorted(set(files.missing)):
        mesh.warnings.append(f"missing file{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    mesh.warnings[:] = dict.fromkeys(mesh.warnings)
    return mesh


def _open(
    files: Files, suffix: str, soup: Soup, max_texture: int
) -> tuple[Iterator[tuple[Part, Float[ndarray, "4 4"]]], Literal["x", "y", "z"]]:
    """A file's parts in their places, read as they are asked for, and the axis that is up in it."""
    warnings, max_faces = soup.warnings, soup.max_faces
    match suffix:
        case ".glb" | ".gltf":
            gltf = open_gltf(files, warnings, max_items=3 * max_faces)
            return scene_parts(gltf, Materials(gltf, max_texture)), "y"
        case ".dae":
            document = open_collada(files, warnings)
            parts = collada_scene.scene_parts(document, max_texture=max_texture, max_faces=max_faces)
            return parts, document.up_axis
        case ".obj":
            return obj_parts(files, max_texture, warnings, max_faces=max_faces), "y"
        case ".ply":
            return ply_parts(files, max_texture, warnings, max_faces=max_faces), "z"
        case ".stl":
            return stl_parts(files, warnings, max_faces=max_faces), "z"
        case ".off":
            return off_parts(files, warnings, max_faces=max_faces), "z"
        case _:
            raise AssetError("unsupported", f"{suffix or 'no suffix'}; supported: {', '.join(SUFFIXES)}")
