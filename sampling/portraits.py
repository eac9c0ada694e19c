"""An object as people see it first: filling the frame, as volume and as lit mesh, with texture and without.

Pictures are uint8 sRGB [size, size, 3] on white, all of an object from one camera. Meshes are lit by the
renderer of data preparation.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data_prep.mesh import Mesh as Soup
from data_prep.mesh import Sampler
from data_prep.render.views import render_views
from sampling.export import TexturedMesh
from sampling.shape import FOV, ShapeSample
from shapeloom.color import srgb_to_linear
from shapeloom.decoder import DEFAULT_SAMPLES, RenderConfig
from shapeloom.pictures import on_white
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.viewpoints import fitting_distance

FILLED = 0.9
"""Share of the frame that the object's longer side takes."""
CLAY = 0.62
"""Grey of surfaces without texture, linear: light enough to show shadows and dark enough on white."""
SUPERSAMPLE = 2
Picture = UInt8[np.ndarray, "size size 3"]


def portrait(
    shape: ShapeSample, mesh: TexturedMesh, *, size: int = 256, samples: RenderConfig = DEFAULT_SAMPLES
) -> UInt8[np.ndarray, "size width 3"]:
    """Returns the volume, the textured mesh and the bare surface side by side, [size, 3 * size, 3]."""
    pose = viewpoint()
    matrix = framed(mesh.mesh.vertices, pose, size=size)
    volume = shape.render(pose, matrix, size, size, samples=samples)[0]
    return np.hstack([volume, *(mesh_picture(mesh, pose, matrix, size=size, bare=b) for b in (False, True))])


def viewpoint() -> Float[Tensor, "1 4 4"]:
    """Returns the camera of turntables' first frame."""
    return ring(1, distance=fitting_distance(FOV))


def framed(
    points: Float[np.ndarray, "points 3"], pose: Float[Tensor, "1 4 4"], *, size: int
) -> Float[Tensor, "3 3"]:
    """Returns the intrinsics with which the points fill a picture from `pose`; the box, without points."""
    matrix = intrinsics(FOV, size, size)
    if not len(points):
        return matrix
    to_camera = torch.linalg.inv(pose[0].double()).numpy()
    seen = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    on_plane = seen[:, :2] / seen[:, 2:]
    low, high = on_plane.min(axis=0), on_plane.max(axis=0)
    focal = FILLED * size / max(float((high - low).max()), 1e-3)
    x, y = size / 2 - focal * (low + high) / 2
    return torch.tensor([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]], dtype=torch.float32)


def mesh_picture(
    mesh: TexturedMesh,
    pose: Float[Tensor, "1 4 4"],
    matrix: Float[Tensor, "3 3"],
    *,
    size: int,
    bare: bool = False,
) -> Picture:
    """Returns a lit picture of a mesh, white without faces; bare: grey in place of its colours."""
    if not mesh.num_faces:
        return np.full((size, size, 3), 255, np.uint8)
    return lit_picture(_soup(mesh, bare=bare), pose, matrix, size=size)


def lit_picture(
    soup: Soup, pose: Float[Tensor, "1 4 4"], matrix: Float[Tensor, "3 3"], *, size: int
) -> Picture:
    """Returns a lit picture of a mesh of data preparation, which has faces."""
    views = render_views(soup, pose.numpy(), matrix.numpy(), size=size, supersample=SUPERSAMPLE)
    return on_white(views.rgba)[0]


def _soup(mesh: TexturedMesh, *, bare: bool) -> Soup:
    """The mesh as data preparation has them, with its texture or its vertices' colours."""
    atlas = None if bare else mesh.atlas
    own = mesh.mesh
    origin = np.arange(len(own.vertices)) if atlas is None else atlas.origin
    faces = own.faces if atlas is None else origin[atlas.faces]
    num = len(faces)
    tint = np.ones((num, 3, 3), np.float32)
    if bare:
        tint *= CLAY
    elif atlas is None:
        tint = srgb_to_linear(own.colours[faces] / 255.0).astype(np.float32)
    textures = []
    if atlas is not None and mesh.texture is not None:
        textures.append(np.pad(mesh.texture, ((0, 0), (0, 0), (0, 1)), constant_values=255))
    return Soup(
        vertices=own.vertices.astype(np.float64),
        faces=faces.astype(np.int64),
        tint=tint,
        shading=own.normals[faces].astype(np.float32),
        uv=np.zeros((num, 3, 2), np.float32) if atlas is None else atlas.uv[atlas.faces],
        texture=np.full(num, len(textures) - 1),
        cutoff=np.zeros(num, np.float32),
        textures=textures,
        samplers=[Sampler("clamp", "clamp")] * len(textures),
    )
