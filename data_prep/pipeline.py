"""One asset from its file to a shard sample, and one shard of assets: the stage's unit of work.

Everything is a function of the asset's bytes, its captions and the config: no clock, host or order of work.
"""

import importlib.metadata
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_prep.failures import AssetError, Failure, to_jsonl
from data_prep.filters import Filters, check_colors, check_shape, check_views
from data_prep.load import Up, load_mesh
from data_prep.mesh import Mesh
from data_prep.normalize import Placement, normalize
from data_prep.objaverse_cache import ObjaverseConfig
from data_prep.points import surface_points
from data_prep.procedural import ProceduralConfig
from data_prep.sdf import sdf_samples, signed_distance
from data_prep.sources import Source, SplitFractions
from data_prep.views import AMBIENT, LIGHTS, is_covered, render_views
from shapeloom.config import Config
from shapeloom.rendering import cameras
from shapeloom.runs import write_atomic
from shapeloom.seed import derive_seed, numpy_rng
from shapeloom.shards import SCHEMA, depth_to_png, write_shard

_LIBRARIES = ("embreex", "fpsample", "libigl", "numpy", "pillow", "trimesh")


class Limits(Config):
    """What one asset may cost before it is quarantined."""

    max_faces: int = Field(default=2_000_000, ge=1)
    max_megabytes: int = Field(default=1024, ge=1, description="of any one file")
    max_texture: int = Field(
        default=1024, ge=1, description="larger textures are shrunk to this many pixels a side"
    )
    seconds: float = Field(default=300, gt=0, description="wall clock; a worker that takes longer is ended")


class DataConfig(Config):
    """Data preparation."""

    assets: Path | None = Field(
        default=None,
        description="folder of 3D files, manifest (.csv, .parquet) or archive (.zip, .sh3f); none: "
        "`objaverse`, or else the procedural set",
    )
    objaverse: ObjaverseConfig | None = Field(default=None, description="in place of `assets`")
    procedural: ProceduralConfig = ProceduralConfig()
    up: Up = Field(
        default="auto",
        description="the files' up axis; auto: y for glTF and OBJ, z for PLY, STL and OFF, DAE says itself",
    )
    num_views: int = Field(default=20, ge=1, le=1000)
    resolution: int = Field(default=128, ge=8, le=4096, description="height and width of a view, pixels")
    supersample: int = Field(default=3, ge=1, le=16, description="n x n rays a pixel")
    fov_degrees: float = Field(default=40, gt=1, lt=120, description="vertical and horizontal field of view")
    num_points: int = Field(default=16384, ge=1)
    num_sdf: int = Field(default=16384, ge=1)
    sheet_thickness: float = Field(
        0.02, gt=0, lt=0.5, description="given to open surfaces; the box is 2 wide"
    )
    shard_size: int = Field(default=64, ge=1, description="assets a shard: the unit of work and of restarts")
    splits: SplitFractions = SplitFractions()
    seed: int = 0
    workers: int | None = Field(
        None, ge=0, description="processes; none: one a core; 0: this process, unguarded"
    )
    limits: Limits = Limits()
    filters: Filters = Filters()


@dataclass(frozen=True)
class ShardTask:
    """A fixed list of assets that become one tar."""

    path: Path
    """Of the tar."""
    folder: Path
    """Of the assets."""
    sources: list[Source]
    config: DataConfig
    failures: dict[int, Failure] = field(default_factory=dict)
    """Assets, by position, that ended their workers and are left out now."""
    suspects: frozenset[int] = frozenset()
    """Assets that ended one worker and have their second chance now."""


def quarantine_path(shard: Path) -> Path:
    """`000000.quarantine.jsonl` beside `000000.tar`."""
    return shard.with_suffix(".quarantine.jsonl")


def prepare_shard(task: ShardTask, report: Callable[[int], None]) -> dict[str, Any]:
    """Prepares every asset of a shard and writes it; returns its manifest.

    `report` is told each asset's position before its work begins.
    Safe to kill and to repeat anywhere: the tar appears last and whole, whoever writes it.
    """
    failures = dict(task.failures)

    def samples() -> Iterator[dict[str, Any]]:
        for position, source in enumerate(task.sources):
            report(position)
            if position in failures:
                continue
            outcome = try_asset(source, task.folder, task.config)
            if isinstance(outcome, Failure):
                failures[position] = outcome
            else:
                yield outcome
        write_atomic(quarantine_path(task.path), to_jsonl(failures[i] for i in sorted(failures)))

    return write_shard(task.path, samples())


def try_asset(source: Source, folder: Path, config: DataConfig) -> dict[str, Any] | Failure:
    """The asset's sample for `write_shard`, or why there is none."""
    stage = _Stage()
    try:
        return _prepare(source, folder, config, stage)
    except AssetError as error:
        reason, message = error.reason, error.message
    except (MemoryError, RecursionError) as error:
        reason, message = "too_large", f"{type(error).__name__} {error}".strip()
    except Exception as error:
        # Third-party geometry code raises anything on odd input; one asset must not end a run of millions.
        reason, message = "unexpected", f"{type(error).__name__}: {error}"
    # Absolute paths would make the record depend on where the assets lie.
    message = message.replace(f"{folder}/", "")
    return Failure(source.path, stage.name, reason, message[:500], source.sha256)


@dataclass
class _Stage:
    name: str = "load"


def _prepare(source: Source, folder: Path, config: DataConfig, stage: _Stage) -> dict[str, Any]:
    limits = config.limits
    mesh = load_mesh(
        folder / source.path, up=config.up, rotation=source.rotation, max_faces=limits.max_faces,
        max_bytes=limits.max_megabytes << 20, max_texture=limits.max_texture,
    )  # fmt: skip
    stage.name = "normalize"
    mesh, placement = normalize(mesh)
    mesh.warnings.extend(check_shape(mesh, config.filters))
    stage.name = "sdf"
    distance = signed_distance(mesh, thickness=config.sheet_thickness)
    mesh = mesh.flip(distance.turned)
    sdf_points, sdf = sdf_samples(mesh, distance, config.num_sdf, numpy_rng(config.seed, source.key, "sdf"))
    stage.name = "points"
    rng = numpy_rng(config.seed, source.key, "points")
    points, points_rgb, points_normal = surface_points(mesh, config.num_points, rng, hidden=distance.hidden)
    mesh.warnings.extend(check_colors(points_rgb, config.filters))
    stage.name = "views"
    views = _views(mesh, source, config)
    return {
        "__key__": source.key,
        "json": _facts(source, config, mesh, placement, watertight=distance.watertight),
        "points.npy": points,
        "points_rgb.npy": points_rgb,
        "points_normal.npy": points_normal,
        "sdf_points.npy": sdf_points,
        "sdf.npy": sdf,
        **views,
    }


def _views(mesh: Mesh, source: Source, config: DataConfig) -> dict[str, Any]:
    fov = math.radians(config.fov_degrees)
    seed = derive_seed(config.seed, source.key, "cameras")
    poses = cameras.sphere(config.num_views, seed=seed, distance=cameras.fitting_distance(fov))
    intrinsics = cameras.intrinsics(fov, config.resolution, config.resolution)
    rgba, depth = render_views(
        mesh, poses, intrinsics, size=config.resolution, supersample=config.supersample
    )
    mesh.warnings.extend(check_views(is_covered(rgba), config.filters))
    members: dict[str, Any] = {
        "cameras.npy": poses.numpy().astype(np.float32),
        "intrinsics.npy": np.tile(intrinsics.numpy().astype(np.float32), (config.num_views, 1, 1)),
    }
    for view in range(config.num_views):
        members[f"rgba_{view:03d}.png"] = rgba[view]
        members[f"depth_{view:03d}.png"] = depth_to_png(depth[view])
    return members


def _facts(
    source: Source, config: DataConfig, mesh: Mesh, placement: Placement, *, watertight: bool
) -> dict[str, Any]:
    """Provenance: everything that a sample's numbers depend on, and nothing of the machine."""
    facts = asdict(source)
    del facts["key"]
    return facts | {
        "schema": SCHEMA,
        "renderer": {
            "name": "embree",
            "supersample": config.supersample,
            "fov_degrees": config.fov_degrees,
            "ambient": AMBIENT,
            "lights": [{"direction": d.tolist(), "intensity": i} for d, i in LIGHTS],
        },
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "warnings": source.warnings + mesh.warnings,
        "watertight": watertight,
        "num_faces": len(mesh.faces),
        "centre": placement.centre.tolist(),
        "scale": placement.scale,
    }
