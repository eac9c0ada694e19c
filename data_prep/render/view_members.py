"""Which views an asset is given: their cameras and light, and their members of a shard's sample."""

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from pydantic import Field, model_validator

from data_prep.mesh import Mesh
from data_prep.render.lighting import STUDIO, UNLIT, Lighting, random_lighting
from data_prep.render.views import Backend, Views, render_views, resolve
from shapeloom import viewpoints
from shapeloom.config import Config
from shapeloom.seed import derive_seed, numpy_rng
from shapeloom.shards import depth_to_png

# Powers of the plastic number's inverse: strides of the sequence that fills a square most evenly.
_FOV_STRIDE, _DISTANCE_STRIDE = 0.7548776662466927, 0.5698402909980532
RING_ELEVATION_DEGREES = 20.0


class ViewConfig(Config):
    """Cameras, light and pictures of every asset."""

    num_views: int = Field(default=20, ge=1, le=1000, description="from all around, others for each asset")
    num_ring_views: int = Field(
        default=0, ge=0, le=1000, description="further views for evaluation, the same for all assets"
    )
    resolution: int = Field(default=128, ge=8, le=4096, description="height and width of a view, pixels")
    supersample: int = Field(default=3, ge=1, le=16, description="n x n samples a pixel, where it has edges")
    fov_degrees: float | tuple[float, float] = Field(
        default=40, description="vertical and horizontal field of view, or a range to draw it from"
    )
    distance: tuple[float, float] = Field(
        default=(1, 1),
        description="range of the cameras' distance; at 1 the whole cube just fits the picture",
    )
    normals: bool = Field(default=False, description="whether to store normals of the views")
    albedo: bool = Field(default=False, description="whether to store unlit base colours of the views")
    lighting: Literal["studio", "random", "unlit"] = Field(
        default="studio", description="fixed lights; other lights for each asset; base colours as they are"
    )
    renderer: Backend = Field(
        default="auto",
        description="zbuffer: compiled; embree: ray casting; gl: OpenGL, on a GPU; auto: what the run was "
        "begun with, or else zbuffer where there is a C++ compiler and embree elsewhere",
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> "ViewConfig":
        low, high = self.fov_range
        if not 1 < low <= high < 120:
            raise ValueError(f"fov_degrees {self.fov_degrees}: expected 1 < low <= high < 120")
        if not 0.6 <= self.distance[0] <= self.distance[1] <= 4:
            # Nearer, a camera could stand within the asset; farther, depths would not fit 16 bits.
            raise ValueError(f"distance {self.distance}: expected 0.6 <= low <= high <= 4")
        return self

    @property
    def fov_range(self) -> tuple[float, float]:
        """Degrees."""
        fov = self.fov_degrees
        return fov if isinstance(fov, tuple) else (fov, fov)


def make_cameras(
    config: ViewConfig, key: str, seed: int
) -> tuple[Float32[ndarray, "views 4 4"], Float32[ndarray, "views 3 3"]]:
    """cam_to_world [views + ring views, 4, 4] and intrinsics [.., 3, 3], a function of key and seed."""
    own = derive_seed(seed, key, "cameras")
    num = config.num_views
    degrees = viewpoints.spread(num, *config.fov_range, seed=derive_seed(own, "fov"), stride=_FOV_STRIDE)
    fov = np.radians(degrees).tolist()
    far = viewpoints.spread(num, *config.distance, seed=derive_seed(own, "distance"), stride=_DISTANCE_STRIDE)
    fitting = np.array([viewpoints.fitting_distance(angle) for angle in fov])
    poses = [viewpoints.sphere(num, seed=own, distance=far * fitting)]
    matrices = [viewpoints.intrinsics(angle, config.resolution, config.resolution) for angle in fov]
    if config.num_ring_views:
        angle = math.radians(sum(config.fov_range) / 2)
        ring = viewpoints.ring(config.num_ring_views, elevation_degrees=RING_ELEVATION_DEGREES,
                               distance=viewpoints.fitting_distance(angle))  # fmt: skip
        poses.append(ring)
        matrix = viewpoints.intrinsics(angle, config.resolution, config.resolution)
        matrices += [matrix] * config.num_ring_views
    return np.concatenate(poses), np.stack(matrices)


def make_lighting(config: ViewConfig, key: str, seed: int) -> Lighting:
    """An asset's light: a function of the seed."""
    match config.lighting:
        case "studio":
            return STUDIO
        case "unlit":
            return UNLIT
        case "random":
            return random_lighting(numpy_rng(seed, key, "lighting"))


def shoot(mesh: Mesh, config: ViewConfig, key: str, seed: int) -> tuple[Views, dict[str, Any]]:
    """All views of an asset, and their members of its sample."""
    poses, matrices = make_cameras(config, key, seed)
    views = render_views(
        mesh, poses, matrices, size=config.resolution, supersample=config.supersample,
        lighting=make_lighting(config, key, seed), backend=config.renderer,
    )  # fmt: skip
    members: dict[str, Any] = {
        "cameras.npy": poses,
        "intrinsics.npy": matrices,
    }
    for view in range(len(poses)):
        members[f"rgba_{view:03d}.png"] = views.rgba[view]
        members[f"depth_{view:03d}.png"] = depth_to_png(views.depth[view])
        if config.normals:
            members[f"normal_{view:03d}.png"] = views.normal[view]
        if config.albedo:
            members[f"albedo_{view:03d}.png"] = views.albedo[view]
    return views, members


def renderer_facts(config: ViewConfig, key: str, seed: int) -> dict[str, Any]:
    """What an asset's provenance says of its pictures."""
    return {
        "name": resolve(config.renderer),
        "supersample": config.supersample,
        "fov_degrees": config.fov_degrees,
        "distance": config.distance,
        "lighting": config.lighting,
        **make_lighting(config, key, seed).facts(),
    }
