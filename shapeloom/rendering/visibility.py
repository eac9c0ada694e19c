"""Which face each pixel's centre sees: by Embree on the CPU, by pytorch3d on GPUs. Nothing is differentiable.

pytorch3d (0.7, `rasterize_meshes`) takes x to the left and y up, in units of half the picture's shorter side
from its middle, and z in camera space. Faces that pass through the camera's plane are clipped at NEAR.
"""

from functools import cache

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Float, Int
from torch import Tensor

from shapeloom.log import get_logger
from shapeloom.rendering.cameras import NEAR, Cameras
from shapeloom.rendering.implicit_surface import Meshes
from shapeloom.rendering.rays import camera_rays

# A face's reach beyond its edges (squared, in pytorch3d's units: 1e-4 pixels of 256). pytorch3d leaves out
# centres that lie on an edge, for both of its faces; this closes the gap.
REACH = 1e-12


@torch.no_grad()
def visible_faces(meshes: Meshes, cameras: Cameras) -> Int[Tensor, "batch views height width"]:
    """Returns the nearest face that each pixel's centre sees, from either side, or -1.

    On the tensors' device; where pytorch3d doesn't work there, by way of the CPU.
    """
    device = meshes.faces.device
    if device.type == "cuda" and pytorch3d_works(device):
        return faces_by_pytorch3d(meshes, cameras)
    return faces_by_embree(meshes, cameras)


@cache
def pytorch3d_works(device: torch.device) -> bool:
    """Returns whether pytorch3d rasterises on a device, by one triangle; logs a line where it doesn't."""
    triangle = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [0, 1, 1]], device=device)
    faces = torch.tensor([[0, 1, 2]], device=device)
    view = torch.eye(4, device=device)[None, None], torch.eye(3, device=device)[None, None]
    try:
        faces_by_pytorch3d(Meshes(triangle, faces, [1]), Cameras(*view, 2, 2))
    except (ImportError, RuntimeError) as error:  # not installed; built without CUDA, or for other GPUs
        get_logger("rendering").warning(
            "meshes' visible faces are found on the CPU, since pytorch3d doesn't work on %s: %s",
            device,
            error,
        )
        return False
    return True


def faces_by_embree(meshes: Meshes, cameras: Cameras) -> Int[Tensor, "batch views height width"]:
    """Returns visible faces by casting rays on the CPU, wherever the tensors are."""
    origins, directions, _ = camera_rays(
        cameras.cam_to_world, cameras.intrinsics, cameras.height, cameras.width
    )
    shape = directions.shape[:-1]
    found = np.full(shape, -1, np.int64)
    triangles = meshes.vertices.detach()[meshes.faces].float().cpu().numpy()
    first = 0
    for asset, num in enumerate(meshes.num_faces):
        if num:
            scene = EmbreeScene()
            TriangleMesh(scene, np.ascontiguousarray(triangles[first : first + num]))
            o, d = (_rows(value[asset]) for value in (origins, directions))
            face = scene.run(o, d).reshape(shape[1:])
            found[asset] = np.where(face >= 0, face + first, -1)
        first += num
    return torch.from_numpy(found).to(meshes.faces.device)


def _rows(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.float().cpu().numpy().reshape(-1, 3))


@torch.no_grad()
def faces_by_pytorch3d(meshes: Meshes, cameras: Cameras) -> Int[Tensor, "batch views height width"]:
    """Returns visible faces by rasterising on the tensors' device; on CPUs only good as a slow reference.

    Raises ImportError without pytorch3d, RuntimeError if it was built without the device.
    """
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes as Scenes

    views = cameras.cam_to_world.shape[1]
    size = (cameras.height, cameras.width)
    found = meshes.faces.new_full((len(meshes.num_faces), views, *size), -1)
    present = list(meshes.nonempty())
    if not present:
        return found
    vertices = [view for asset, own, _ in present for view in _ndc(own, cameras, asset)]
    scenes = Scenes(vertices, [faces for _, _, faces in present for _ in range(views)])
    face = rasterize_meshes(
        scenes,
        size,
        blur_radius=REACH,
        faces_per_pixel=1,
        max_faces_per_bin=max(meshes.num_faces),  # a bin that is full drops faces
        perspective_correct=True,
        clip_barycentric_coords=True,
        z_clip_value=NEAR,
    )[0][..., 0].unflatten(0, (len(present), views))
    # pytorch3d numbers faces through all pictures, `Meshes` through all assets.
    own = face - scenes.mesh_to_faces_packed_first_idx().reshape(len(present), views, 1, 1)
    first = np.cumsum([0, *meshes.num_faces])
    for (asset, _, _), number, seen in zip(present, own, face >= 0, strict=True):
        found[asset] = torch.where(seen, number + int(first[asset]), -1)
    return found


def _ndc(points: Float[Tensor, "points 3"], cameras: Cameras, asset: int) -> Float[Tensor, "views points 3"]:
    """Returns points in pytorch3d's screen coordinates; those behind a camera are mirrored, as it expects."""
    local = cameras.local(points.float(), asset)
    depth = local[..., 2:]
    # Clipping multiplies by the depth again, so that a point in the camera's plane may lie just beside it.
    depth = torch.where(depth.abs() < 1e-6, torch.full_like(depth, 1e-6), depth)
    middle = 0.5 * torch.tensor([cameras.width, cameras.height], device=points.device)
    pixels = cameras.pixels(local[..., :2] / depth, asset)
    return torch.cat([(middle - pixels) / middle.min(), depth], dim=-1)
