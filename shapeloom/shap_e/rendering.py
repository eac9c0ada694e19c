"""Shap-E's rays, samples and surface as its reference has them, mistakes included: for comparisons.

The official frame: box [-1, 1]^3, +Z up, signed distance positive inside. Cameras: x right, y down, z
forward; the outermost pixels' centres lie on the edge of the view, so a pixel is at i / (W - 1). An exact
equivalent in our convention (centres at +0.5) is a focal length of (W - 1) / (2 tan(fov / 2)).

The reference's random numbers are arguments here, uniform in [0, 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from skimage.measure import marching_cubes
from torch import Tensor

from shapeloom.rendering.rays import edges_from_samples
from shapeloom.rendering.volume import RayValues, composite, ray_weights

PAN_VIEWS, PAN_DISTANCE, PAN_FOV = 20, 4.0, 0.7
OfficialField = Callable[
    [Float[Tensor, "rays samples 3"]], tuple[Float[Tensor, "rays samples"], Float[Tensor, "rays samples 3"]]
]
"""Points of the official box -> (density, rgb in [0, 1])."""


def pan_cameras() -> Float[Tensor, "views 4 4"]:
    """Returns cam_to_world of the 20 turntable cameras of the reference's previews; the last is the first."""
    theta = torch.linspace(0, 2 * math.pi, PAN_VIEWS, dtype=torch.float64)
    z = torch.stack([theta.sin(), theta.cos(), torch.full_like(theta, -0.5)], dim=-1)
    z = z / z.norm(dim=-1, keepdim=True)
    x = torch.stack([theta.cos(), -theta.sin(), torch.zeros_like(theta)], dim=-1)
    pose = torch.zeros(PAN_VIEWS, 4, 4, dtype=torch.float64)
    pose[:, :3] = torch.stack([x, torch.linalg.cross(z, x), z, -PAN_DISTANCE * z], dim=-1)
    pose[:, 3, 3] = 1
    return pose.float()


def official_intrinsics(fov_x: float, fov_y: float, *, height: int, width: int) -> Float[Tensor, "3 3"]:
    """Returns our matrix of an official camera with full angles of view in radians."""
    focal_x, focal_y = (width - 1) / 2 / math.tan(fov_x / 2), (height - 1) / 2 / math.tan(fov_y / 2)
    return torch.tensor([[focal_x, 0, width / 2], [0, focal_y, height / 2], [0, 0, 1]], dtype=torch.float32)


def official_rays(
    cam_to_world: Float[Tensor, "*batch 4 4"], tangents: Float[Tensor, "*batch 2"], height: int, width: int
) -> tuple[Float[Tensor, "*batch height width 3"], Float[Tensor, "*batch height width"]]:
    """Returns unit directions of the rays through all pixels, and their cosines to the camera's z axis.

    tangents: of half the angles of view, x and y. The same rays as `camera_rays`', in the reference's order
    of operations: its positional encoding multiplies what rounding does to them by 2^14.
    """
    x, y, z = (cam_to_world[..., None, None, :3, column] for column in range(3))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    share = torch.stack([columns, rows], dim=-1).to(cam_to_world) / cam_to_world.new_tensor(
        [width - 1, height - 1]
    )
    plane = (share * 2 - 1) * tangents[..., None, None, :]
    directions = z + x * plane[..., :1] + y * plane[..., 1:]
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return directions, (directions * z).sum(-1)


def official_box(
    origins: Float[Tensor, "*rays 3"], directions: Float[Tensor, "*rays 3"]
) -> tuple[Float[Tensor, " *rays"], Float[Tensor, " *rays"], Bool[Tensor, " *rays"]]:
    """Returns t_near, t_far and whether a ray meets the box; 0 and 1 for one that misses."""
    safe = torch.where(directions < 0, directions - 1e-6, directions + 1e-6)
    faces = torch.stack([(-1 - origins) / safe, (1 - origins) / safe])
    t_near = faces.amin(0).amax(-1).clamp(min=0)
    t_far = faces.amax(0).amin(-1)
    hit = t_near + 1e-3 < t_far
    return torch.where(hit, t_near, 0.0), torch.where(hit, t_far, 1.0), hit


def stratified_samples(
    t_near: Float[Tensor, " *rays"], t_far: Float[Tensor, " *rays"], uniform: Float[Tensor, "*rays samples"]
) -> Float[Tensor, "*rays samples"]:
    """Returns a sample in each cell around even places, ends included: the outermost are half as wide."""
    share = torch.linspace(0, 1, uniform.shape[-1], device=uniform.device)
    even = t_near[..., None] * (1 - share) + t_far[..., None] * share
    edges = edges_from_samples(even, t_near, t_far)
    return edges[..., :-1] + (edges[..., 1:] - edges[..., :-1]) * uniform


def official_importance_samples(
    edges: Float[Tensor, "*rays edges"],
    weights: Float[Tensor, "*rays samples"],
    uniform_cell: Float[Tensor, "*rays fine"],
    uniform_within: Float[Tensor, "*rays fine"],
) -> Float[Tensor, "*rays fine"]:
    """Returns sorted places: cells drawn by their weights, places within them drawn evenly."""
    padded = weights + 1e-5
    cdf = (padded / padded.sum(-1, keepdim=True)).cumsum(-1)
    cell = torch.searchsorted(cdf.contiguous(), uniform_cell.contiguous()).clamp(max=weights.shape[-1] - 1)
    low, high = edges[..., :-1].gather(-1, cell), edges[..., 1:].gather(-1, cell)
    return (low + (high - low) * uniform_within).sort(dim=-1).values


@dataclass(frozen=True)
class Draws:
    """The reference's random numbers of a picture, in the order in which it draws them."""

    stratified: Float[Tensor, "rays coarse"]
    cell: Float[Tensor, "rays fine"]
    within: Float[Tensor, "rays fine"]

    @classmethod
    def of(cls, num_rays: int, generator: torch.Generator, *, coarse: int = 64, fine: int = 128) -> "Draws":
        """Fresh numbers."""
        counts = (coarse, fine, fine)
        return cls(*(torch.rand(num_rays, count, generator=generator) for count in counts))


@dataclass(frozen=True)
class OfficialRender:
    """Both passes of rays: rgb on black, and distances times opacity."""

    coarse: RayValues
    fine: RayValues


def render_rays(
    coarse: OfficialField,
    fine: OfficialField,
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    draws: Draws,
) -> OfficialRender:
    """Renders rays: stratified samples through `coarse`, then these and samples where it found something,
    all of them through `fine`."""
    t_near, t_far, hit = official_box(origins, directions)
    t = stratified_samples(t_near, t_far, draws.stratified)
    density, rgb = coarse(_along(origins, directions, t))
    edges = edges_from_samples(t, t_near, t_far)
    first = composite(density, rgb, t, edges)
    weights = ray_weights(density, edges[..., 1:] - edges[..., :-1])
    more = official_importance_samples(edges, weights, draws.cell, draws.within)
    t = torch.cat([t, more], dim=-1).sort(dim=-1).values
    density, rgb = fine(_along(origins, directions, t))
    second = composite(density, rgb, t, edges_from_samples(t, t_near, t_far))
    return OfficialRender(_masked(first, hit), _masked(second, hit))


def _along(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    return origins[:, None] + t[..., None] * directions[:, None]


def _masked(values: RayValues, hit: Tensor) -> RayValues:
    return RayValues(values.rgb * hit[:, None], values.alpha * hit, values.distance * hit)


def official_surface(
    sdf: Float[Tensor, "x y z"],
) -> tuple[Float[np.ndarray, "vertices 3"], Int[np.ndarray, "faces 3"]]:
    """Returns the zero level of a grid over the box as the reference makes it: shrunk by (n-1)/(n+1).

    sdf: positive inside, its first and last nodes on the box's faces. The grid gets a border of -1, and is
    then stretched over the box as if it had none. Faces are counter-clockwise seen from outside.
    """
    padded = torch.nn.functional.pad(sdf, (1, 1, 1, 1, 1, 1), value=-1.0)
    return classic_surface(padded, low=(-1.0, -1.0, -1.0), size=(2.0, 2.0, 2.0))


def classic_surface(
    values: Float[Tensor, "x y z"], *, low: tuple[float, float, float], size: tuple[float, float, float]
) -> tuple[Float[np.ndarray, "vertices 3"], Int[np.ndarray, "faces 3"]]:
    """Returns marching cubes (Lorensen & Cline 1987) of a grid whose ends lie at `low` and `low + size`.

    Values are positive inside. Vertices come as the reference lists them: those on edges along x first, then
    y, then z, each row-major.
    """
    grid = values.cpu().numpy()
    vertices, faces, _, _ = marching_cubes(grid, 0.0, method="lorensen", gradient_direction="ascent")
    # Each vertex is on one edge of the grid: all coordinates but one are whole.
    axis = np.abs(vertices - np.rint(vertices)).argmax(axis=1)
    rows = np.arange(len(vertices))
    lower = np.rint(vertices).astype(np.int64)
    lower[rows, axis] = np.floor(vertices[rows, axis]).astype(np.int64)
    upper = lower.copy()
    upper[rows, axis] += 1
    first, second = (grid[tuple(index.T)].astype(np.float64) for index in (lower, upper))
    exact = lower.astype(np.float64)
    exact[rows, axis] += first / (first - second)
    order = np.lexsort((lower[:, 2], lower[:, 1], lower[:, 0], axis))
    place = np.empty_like(order)
    place[order] = rows
    world = np.asarray(low) + exact * (np.asarray(size) / (np.asarray(grid.shape) - 1))
    return world[order].astype(np.float32), place[faces].astype(np.int64)
