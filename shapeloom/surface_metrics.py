"""Measures of a surface against the true one that see what a person sees in an untextured render.

Both are triangles in the field's box [-1, 1]^3 (2 wide) with points on them. Distances go from each one's
points to the nearest place on the other's triangles (not to its nearest point), so that equal surfaces score
exactly 0, however few points there are. Normals count up to their sign: assets of sheets have no outside.

    chamfer             `chamfer_l1` in world units, of points to the other's triangles
    fscore_0.01         harmonic mean of the shares of either's points within 0.01 of the other (Knapitsch et
    fscore_0.02         al. 2017, "Tanks and Temples"); likewise within 0.02 and 0.05
    fscore_0.05
    normal_consistency  mean |cosine| between a point's normal and that of the other's face nearest to it, of
                        both directions (Mescheder et al. 2019, "Occupancy Networks")
    normals_off         share of points, of both directions, where those are more than 30 degrees apart
    normal_psnr         dB of pictures of the normals, 128x128 from 8 fixed views (see `normal_maps`)
    slope               median length of the signed distance's gradient at the true points: 1 for true
                        distances, less where a field hedges
    color_error         mean |difference| of unlit sRGB colours in [0, 1] at the true points
    color_error_edge    the same of points within 0.05 of one whose colour is another, where textures bleed
    color_error_flat    the same of all other points

A surface without triangles counts as one point at the centre of the box without a normal: a failure has the
scores of a failure, and is never left out.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import igl
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from numpy import ndarray
from scipy.spatial import cKDTree
from torch import Tensor

from shapeloom.decoder import Decoder
from shapeloom.metrics import chamfer_l1, psnr
from shapeloom.rendering.cameras import Cameras, intrinsics, sphere
from shapeloom.rendering.implicit_surface import Meshes
from shapeloom.rendering.isosurface import Field, extract_surface
from shapeloom.rendering.rays import camera_rays
from shapeloom.rendering.visibility import faces_by_embree
from shapeloom.surfaces import NUM_POINTS, Surface

THRESHOLDS = (0.01, 0.02, 0.05)
OFF_DEGREES = 30.0
RESOLUTION = 96
"""Cells a side of the grid that a field's surface is found on: by marching cubes alone, as it is."""
MAP_SIZE, MAP_VIEWS, MAP_FOV = 128, 8, math.radians(20)
MAP_WIDTH = 2.8
"""What a normal map shows across, at the box's middle: all but the corners of a cube seen from above."""
NUM_SLOPES = 4096

Gradient = Callable[[Float[Tensor, "points 3"]], Float[Tensor, "points 3"]]

SURFACE_SCORES = (
    "chamfer", *(f"fscore_{threshold}" for threshold in THRESHOLDS), "normal_consistency", "normals_off",
    "normal_psnr",
)  # fmt: skip
"""What `surface_scores` returns."""
FIELD_SCORES = (*SURFACE_SCORES, "slope")
"""What `decoder_scores` returns."""
COLOR_SCORES = ("color_error", "color_error_edge", "color_error_flat")
"""What `color_scores` returns."""
LOWER_IS_BETTER = frozenset({"chamfer", "normals_off", *COLOR_SCORES})
EDGE_WIDTH, EDGE_CONTRAST = 0.05, 0.2
"""Points are at a colour edge where another this near differs by more than this in a channel."""


# ---------------------------------------------------------------- distances


def surface_scores(predicted: Surface, truth: Surface) -> dict[str, float]:
    """Returns SURFACE_SCORES of a surface against the true one; symmetric in the two."""
    to_truth, cosine = _look(predicted, truth)
    to_predicted, other_cosine = _look(truth, predicted)
    limit = math.cos(math.radians(OFF_DEGREES))
    scores = {"chamfer": float(chamfer_l1(to_truth, to_predicted))}
    for threshold in THRESHOLDS:
        scores[f"fscore_{threshold}"] = fscore(to_truth, to_predicted, threshold=threshold)
    scores["normal_consistency"] = float(cosine.mean() + other_cosine.mean()) / 2
    scores["normals_off"] = float((cosine < limit).mean() + (other_cosine < limit).mean()) / 2
    scores["normal_psnr"] = normal_psnr(_fixed_maps(predicted), _fixed_maps(truth))
    return scores


def _look(own: Surface, other: Surface) -> tuple[Float[ndarray, " points"], Float[ndarray, " points"]]:
    """Returns each point's distance to the other surface, and |cosine| with its normal there."""
    squared, nearest, _ = igl.point_mesh_squared_distance(own.points, other.vertices, other.faces)
    cosine = np.abs((own.normals * other.face_normals[nearest]).sum(axis=1))
    return np.sqrt(squared), cosine


def fscore(to_truth: Float[ndarray, " n"], to_predicted: Float[ndarray, " m"], *, threshold: float) -> float:
    """Returns the harmonic mean of precision and recall, in [0, 1] (Knapitsch et al. 2017).

    Precision: share of predicted points within `threshold` of the truth; recall: the other way round.
    """
    precision, recall = float((to_truth < threshold).mean()), float((to_predicted < threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# ---------------------------------------------------------------- pictures


def map_cameras(size: int = MAP_SIZE) -> Cameras:
    """Returns the fixed views: evenly over the sphere, from 35 degrees below the horizon to 75 above it."""
    poses = sphere(MAP_VIEWS, seed=0, distance=0.5 * MAP_WIDTH / math.tan(0.5 * MAP_FOV))[None]
    matrices = intrinsics(MAP_FOV, size, size).expand(1, MAP_VIEWS, 3, 3)
    return Cameras(poses, matrices, size, size)


def visible(surface: Surface, cameras: Cameras) -> Int[ndarray, "views height width"]:
    """Returns the face that each pixel's centre sees, or -1. cameras: of one asset."""
    vertices, faces = (torch.from_numpy(array) for array in (surface.vertices, surface.faces))
    return faces_by_embree(Meshes(vertices.float(), faces, [len(faces)]), cameras)[0].numpy()


def normal_maps(surface: Surface, cameras: Cameras) -> Float32[ndarray, "views height width 3"]:
    """Returns normals of the faces that pixels' centres see, in world axes on the viewer's side; 0: none.

    cameras: of one asset.
    """
    face = visible(surface, cameras)
    _, directions, _ = camera_rays(cameras.cam_to_world, cameras.intrinsics, cameras.height, cameras.width)
    normals = np.where((face >= 0)[..., None], surface.face_normals[face], 0)
    away = (normals * directions[0].numpy()).sum(axis=-1, keepdims=True) > 0
    return np.where(away, -normals, normals).astype(np.float32)


@lru_cache(maxsize=4)
def _fixed_maps(surface: Surface) -> Float32[ndarray, "views height width 3"]:
    """A true surface's are asked for again and again."""
    return normal_maps(surface, map_cameras())


def normal_psnr(
    predicted: Float[ndarray, "views height width 3"], truth: Float[ndarray, "views height width 3"]
) -> float:
    """Returns the mean PSNR of normal maps as pictures (n + 1) / 2 on white, dB; all pixels count."""
    return float(psnr(_as_picture(predicted), _as_picture(truth)).mean())


def _as_picture(maps: Float[ndarray, "views height width 3"]) -> Float[ndarray, "views height width 3"]:
    return np.where((maps != 0).any(axis=-1, keepdims=True), (maps + 1) / 2, 1.0)


# ---------------------------------------------------------------- fields


def decoder_scores(
    decoder: Decoder, weights: Sequence[Tensor], truth: Surface, *, resolution: int = RESOLUTION,
    num: int = NUM_POINTS,
) -> tuple[Surface, dict[str, float]]:  # fmt: skip
    """Returns the surface of an asset's field (weights of a batch of one), and its FIELD_SCORES."""
    weights = list(weights)
    device = weights[0].device

    def gradient(points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        return decoder.sdf_gradient(weights, points[None])[0]

    found = field_surface(partial(decoder.sdf, weights), resolution=resolution, num=num, device=device)
    with torch.no_grad():
        return found, surface_scores(found, truth) | {"slope": slope(gradient, truth, device=device)}


def field_surface(
    sdf: Field, *, resolution: int = RESOLUTION, num: int = NUM_POINTS, device: torch.device | str = "cpu"
) -> Surface:
    """Returns the zero level of a field by marching cubes alone: nothing thickened, dropped or simplified."""
    return Surface.of_mesh(*extract_surface(sdf, resolution=resolution, device=device), num=num)


def slope(gradient: Gradient, truth: Surface, *, device: torch.device | str = "cpu") -> float:
    """Returns the median length of a field's gradient at the true points, the first NUM_SLOPES of them."""
    points = torch.from_numpy(truth.points[:NUM_SLOPES]).float().to(device)
    return float(gradient(points).norm(dim=-1).median())


# ---------------------------------------------------------------- colours


def color_scores(
    predicted: Float[ndarray, "points 3"], truth: Float[ndarray, "points 3"],
    points: Float[ndarray, "points 3"],
) -> dict[str, float]:  # fmt: skip
    """Returns COLOR_SCORES of unlit sRGB colours in [0, 1] at true surface points.

    Without those that no point counts for: an asset of one colour has no edges.
    """
    error, near = np.abs(predicted - truth).mean(axis=1), at_color_edges(points, truth)
    parts = {"color_error": error, "color_error_edge": error[near], "color_error_flat": error[~near]}
    return {name: float(values.mean()) for name, values in parts.items() if len(values)}


def at_color_edges(
    points: Float[ndarray, "points 3"], colors: Float[ndarray, "points 3"]
) -> Bool[ndarray, " points"]:
    """Returns which points have one within EDGE_WIDTH whose colour differs by more than EDGE_CONTRAST."""
    pairs = cKDTree(points).query_pairs(EDGE_WIDTH, output_type="ndarray")
    contrast = np.abs(colors[pairs[:, 0]] - colors[pairs[:, 1]]).max(axis=1)
    near = np.zeros(len(points), bool)
    near[pairs[contrast > EDGE_CONTRAST]] = True
    return near
