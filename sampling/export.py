"""Textured meshes to files, each in the frame that readers expect of its format, ours (`data_prep`) too.

Our frame is +Z up; that of glTF, USD and OBJ is +Y up and is converted to here, once.

GLB: one mesh with normals, uv and a PNG base colour (metallic 0, roughness 0.8, double-sided); without a
texture its colours go to the vertices, which glTF holds in linear light. PLY: vertex colours in sRGB, +Z up.
OBJ: with MTL and PNG beside it, +Y up. STL: the bare surface, +Z up. USDZ: as GLB, see `usd`.
A unit is a metre: an object is at most 1.9 m long.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import UInt8
from PIL import Image
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from sampling.formats import MESH_FORMATS, listed
from sampling.mesh import Mesh
from sampling.texture import Atlas
from sampling.usd import save_usdz
from shapeloom.color import srgb_to_linear
from shapeloom.config import UserError
from shapeloom.storage import write_atomic

# Rows are glTF's x, y, z in our axes: (x, y, z) -> (x, z, -y).
Z_UP_TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
ROUGHNESS = 0.8


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh with, where it was baked, its atlas and texture."""

    mesh: Mesh
    atlas: Atlas | None = None
    texture: UInt8[np.ndarray, "size size 3"] | None = None

    @property
    def num_faces(self) -> int:
        """How many triangles there are; 0 where the field had no surface."""
        return len(self.mesh.faces)

    def save(self, path: str | Path) -> None:
        """Writes .glb, .ply, .obj, .stl or .usdz, by the suffix.

        Raises UserError for another one, or for an empty mesh.
        """
        path = Path(path)
        if path.suffix[1:] not in MESH_FORMATS:
            raise UserError(f"A mesh can be saved as {listed(MESH_FORMATS)}, not as {path.name}.")
        if not self.num_faces:
            raise UserError(
                f"There is no surface to write to {path.name}: the field keeps one sign in its whole box. "
                "An untrained model does that; another seed or prompt may help with a trained one."
            )
        match path.suffix:
            case ".glb":
                write_atomic(path, self.glb())
            case ".ply":
                write_atomic(path, self.ply())
            case ".obj":
                self._save_obj(path)
            case ".stl":
                write_atomic(path, trimesh.exchange.stl.export_stl(self._plain(np.eye(3))))
            case ".usdz":
                self._save_usdz(path)

    def glb(self) -> bytes:
        """Returns the bytes of a binary glTF 2.0 file, +Y up."""
        if self.texture is None:
            return _glb(self._plain(Z_UP_TO_Y_UP, linear_colours=True))
        material = PBRMaterial(
            name="baked",
            baseColorTexture=Image.fromarray(self.texture),
            metallicFactor=0.0,
            roughnessFactor=ROUGHNESS,
            doubleSided=True,
        )
        return _glb(self._textured(material, Z_UP_TO_Y_UP))

    def ply(self) -> bytes:
        """Returns the bytes of a binary PLY file with normals and sRGB vertex colours, +Z up."""
        return trimesh.exchange.ply.export_ply(self._plain(np.eye(3)), vertex_normal=True)

    def _save_obj(self, path: Path) -> None:
        if self.texture is None:
            plain = self._plain(Z_UP_TO_Y_UP)
            write_atomic(path, trimesh.exchange.obj.export_obj(plain, include_normals=True))
            return
        material = SimpleMaterial(image=Image.fromarray(self.texture), diffuse=(255, 255, 255, 255))
        # Not STEM.png, which is the name of a picture of the object.
        material.name = f"{path.stem}_texture"
        text, beside = trimesh.exchange.obj.export_obj(
            self._textured(material, Z_UP_TO_Y_UP),
            include_normals=True,
            return_texture=True,
            mtl_name=f"{path.stem}.mtl",
        )
        for name, data in beside.items():
            write_atomic(path.parent / name, data)
        write_atomic(path, text)

    def _save_usdz(self, path: Path) -> None:
        origin = self.atlas.origin if self.atlas else np.arange(len(self.mesh.vertices))
        save_usdz(
            path,
            self.mesh.vertices[origin] @ Z_UP_TO_Y_UP.T,
            self.atlas.faces if self.atlas else self.mesh.faces,
            self.mesh.normals[origin] @ Z_UP_TO_Y_UP.T,
            linear_colours=srgb_to_linear(self.mesh.colours[origin] / 255.0),
            uv=self.atlas.uv if self.atlas else None,
            texture=self.texture,
            roughness=ROUGHNESS,
        )

    def _plain(self, turn: np.ndarray, *, linear_colours: bool = False) -> trimesh.Trimesh:
        colours: Any = self.mesh.colours
        if linear_colours:
            colours = (srgb_to_linear(colours / 255.0) * 255).round().astype(np.uint8)
        return trimesh.Trimesh(
            self.mesh.vertices @ turn.T,
            self.mesh.faces,
            vertex_normals=self.mesh.normals @ turn.T,
            vertex_colors=colours,
            process=False,
        )

    def _textured(self, material: PBRMaterial | SimpleMaterial, turn: np.ndarray) -> trimesh.Trimesh:
        assert self.atlas is not None, "a texture comes with its atlas"
        return trimesh.Trimesh(
            self.mesh.vertices[self.atlas.origin] @ turn.T,
            self.atlas.faces,
            vertex_normals=self.mesh.normals[self.atlas.origin] @ turn.T,
            visual=trimesh.visual.TextureVisuals(uv=self.atlas.uv, material=material),
            process=False,
        )


def _glb(mesh: trimesh.Trimesh) -> bytes:
    return trimesh.exchange.gltf.export_glb(trimesh.Scene(mesh), include_normals=True)
