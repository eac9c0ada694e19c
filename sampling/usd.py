"""Textured meshes to USDZ: one file that iPhones, macOS and USD tools open, by OpenUSD (the extra `usd`).

A package holds a binary USD layer and its texture, uncompressed: +Y up, metres, a mesh that isn't subdivided,
and a UsdPreviewSurface. Colours without a texture go to the vertices, which USD holds in linear light.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from shapeloom.config import UserError
from shapeloom.storage import write_atomic


def save_usdz(
    path: Path,
    vertices: Float[np.ndarray, "vertices 3"],
    faces: Int[np.ndarray, "faces 3"],
    normals: Float[np.ndarray, "vertices 3"],
    *,
    linear_colours: Float[np.ndarray, "vertices 3"],
    uv: Float[np.ndarray, "vertices 2"] | None = None,
    texture: UInt8[np.ndarray, "size size 3"] | None = None,
    roughness: float,
) -> None:
    """Writes a .usdz. All arrays are +Y up; uv has v upwards; texture is sRGB and comes with uv.

    Raises UserError if OpenUSD isn't installed.
    """
    try:
        from pxr import Gf, Usd, UsdGeom, UsdUtils, Vt
    except ImportError as error:
        raise UserError(
            "USDZ files are written by OpenUSD, which isn't installed: pip install 'shapeloom[usd]' (200 MB)."
        ) from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = Usd.Stage.CreateNew(str(folder / "object.usdc"))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        root = UsdGeom.Xform.Define(stage, "/object")
        stage.SetDefaultPrim(root.GetPrim())
        mesh = UsdGeom.Mesh.Define(stage, "/object/mesh")
        mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        mesh.CreateDoubleSidedAttr(True)
        mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(vertices.astype(np.float32)))
        low, high = (Gf.Vec3f(*map(float, end)) for end in (vertices.min(axis=0), vertices.max(axis=0)))
        mesh.CreateExtentAttr([low, high])
        mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(faces), 3, np.int32)))
        mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(faces.astype(np.int32).ravel()))
        mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(normals.astype(np.float32)))
        mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
        if texture is None or uv is None:
            mesh.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex).Set(
                Vt.Vec3fArray.FromNumpy(linear_colours.astype(np.float32))
            )
        else:
            Image.fromarray(texture).save(folder / "texture.png")
            _bind_texture(stage, mesh, uv, roughness)
        stage.GetRootLayer().Save()
        package = folder / "object.usdz"
        if not UsdUtils.CreateNewUsdzPackage(str(folder / "object.usdc"), str(package)):
            raise RuntimeError("OpenUSD could not make a package")
        write_atomic(path, package.read_bytes())


def _bind_texture(stage: Any, mesh: Any, uv: np.ndarray, roughness: float) -> None:
    """The surface of UsdPreviewSurface's specification, with `texture.png` as its diffuse colour."""
    from pxr import Sdf, UsdGeom, UsdShade, Vt

    kinds = Sdf.ValueTypeNames
    UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", kinds.TexCoord2fArray, UsdGeom.Tokens.vertex).Set(
        Vt.Vec2fArray.FromNumpy(uv.astype(np.float32))
    )
    material = UsdShade.Material.Define(stage, "/object/baked")

    def shader(name: str, kind: str) -> Any:
        made = UsdShade.Shader.Define(stage, f"/object/baked/{name}")
        made.CreateIdAttr(kind)
        return made

    reader, picture = shader("uv", "UsdPrimvarReader_float2"), shader("texture", "UsdUVTexture")
    surface = shader("surface", "UsdPreviewSurface")
    reader.CreateInput("varname", kinds.String).Set("st")
    reader.CreateOutput("result", kinds.Float2)
    picture.CreateInput("file", kinds.Asset).Set("texture.png")
    picture.CreateInput("sourceColorSpace", kinds.Token).Set("sRGB")
    picture.CreateInput("st", kinds.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
    picture.CreateOutput("rgb", kinds.Float3)
    surface.CreateInput("diffuseColor", kinds.Color3f).ConnectToSource(picture.ConnectableAPI(), "rgb")
    surface.CreateInput("roughness", kinds.Float).Set(roughness)
    surface.CreateInput("metallic", kinds.Float).Set(0.0)
    surface.CreateOutput("surface", kinds.Token)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
