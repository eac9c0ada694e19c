"""Renders of meshes and point sets in the light of the data: what reconstructions are compared with.

Pictures are float32 sRGB [*, height, width, 3] in [0, 1] on white, with alpha [*, height, width].
Meshes and points carry unlit base colours; they are lit and anti-aliased by the renderer of data preparation,
so that all pictures differ by their content alone.
"""

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from numpy import ndarray

from data_prep.mesh import Mesh
from data_prep.render.views import render_views
from shapeloom.color import srgb_to_linear
from shapeloom.pictures import on_white
from shapeloom.surfaces import surfel_triangles

SUPERSAMPLE = 2


def render_mesh(
    mesh: Mesh,
    cam_to_world: Float32[ndarray, "views 4 4"],
    intrinsics: Float32[ndarray, "views 3 3"],
    *,
    size: int,
) -> tuple[Float32[ndarray, "views size size 3"], Float32[ndarray, "views size size"]]:
    """Returns pictures and alpha of a mesh of data preparation; white and 0 for a mesh without faces."""
    num = len(cam_to_world)
    if not len(mesh.faces):
        return np.ones((num, size, size, 3), np.float32), np.zeros((num, size, size), np.float32)
    rgba = render_views(mesh, cam_to_world, intrinsics[0], size=size, supersample=SUPERSAMPLE).rgba
    return on_white(rgba).astype(np.float32) / 255, rgba[..., 3].astype(np.float32) / 255


def coloured_mesh(
    vertices: Float[ndarray, "vertices 3"],
    faces: Int[ndarray, "faces 3"],
    colours: UInt8[ndarray, "vertices 3"],
    normals: Float[ndarray, "vertices 3"],
) -> Mesh:
    """Returns a mesh of data preparation from unlit sRGB colours and normals at its vertices."""
    num = len(faces)
    return Mesh(
        vertices=np.asarray(vertices, np.float64),
        faces=np.asarray(faces, np.int64),
        tint=srgb_to_linear(colours[faces] / 255.0).astype(np.float32),
        shading=np.asarray(normals[faces], np.float32),
        uv=np.zeros((num, 3, 2), np.float32),
        texture=np.full(num, -1),
        cutoff=np.zeros(num, np.float32),
    )


def surfels(
    points: Float32[ndarray, "points 3"],
    colours: UInt8[ndarray, "points 3"],
    normals: Float[ndarray, "points 3"],
    *,
    spacing: float,
) -> Mesh:
    """Returns unlit coloured points, `spacing` apart, as squares across their normals."""
    corners, faces = surfel_triangles(points, normals, spacing=spacing)
    return coloured_mesh(corners, faces, colours.repeat(4, axis=0), normals.repeat(4, axis=0))
