"""One asset from its file to a shard sample, and one shard of assets: the stage's unit of work.

Everything is a function of the asset's bytes, its captions and the config: no clock, host or order of work.
"""

import functools
import importlib.metadata
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import Field

from data_prep.failures import AssetError, Failure, to_jsonl
from data_prep.filters import Filters, check_colors, check_shape, check_views
from data_prep.formats.load import Up, load_mesh
from data_prep.geometry.edges import edge_points
from data_prep.geometry.normalize import Placement, normalize
from data_prep.geometry.points import surface_points, view_points
from data_prep.geometry.sdf import sdf_samples, signed_distance
from data_prep.isolation import STDERR_TAIL, Cost, Lost, Quota, call
from data_prep.mesh import Mesh, plain_triangles
from data_prep.procedural.dataset import ProceduralConfig
from data_prep.render import zbuffer
from data_prep.render.view_members import ViewConfig, renderer_facts, shoot
from data_prep.render.views import is_covered, resolve
from data_prep.sources.content import content_digest
from data_prep.sources.find import Source, SplitFractions
from data_prep.sources.objaverse_cache import ObjaverseConfig
from shapeloom.config import Config
from shapeloom.seed import numpy_rng
from shapeloom.shards import (
    SCHEMA,
    encode_member,
    manifest_path,
    read_back,
    read_manifest,
    write_shard,
)
from shapeloom.storage import AnyPath, write_atomic

_LIBRARIES = ("DracoPy", "embreex", "libigl", "numpy", "pillow", "trimesh", "zlib-ng")
TRIES = 3
"""Of an asset whose process crashes or is killed: a machine short of memory ends innocent ones too."""


class Limits(Config):
    """What one asset may cost before it is quarantined."""

    max_faces: int = Field(2_000_000, ge=1, description="triangles, after loading")
    max_megabytes: int = Field(default=1024, ge=1, description="of any one file")
    max_texture: int = Field(
        default=1024, ge=1, description="larger textures are shrunk to this many pixels a side"
    )
    cpu_seconds: int = Field(default=300, ge=1, description="CPU time, which hardly depends on the load")
    wall_seconds: float = Field(
        default=3600, gt=0, description="by the clock; generous, for what waits for ever"
    )
    memory_megabytes: int = Field(
        default=4096, ge=64, description="that preparing one asset may add to its worker's; Linux only"
    )


class DataConfig(ViewConfig):
    """Data preparation."""

    assets: Path | None = Field(
        default=None,
        description="folder of 3D files, manifest (.csv, .parquet) or archive (.zip, .sh3f); none: "
        "`objaverse`, or else the procedural set",
    )
    objaverse: ObjaverseConfig | None = Field(default=None, description="instead of `assets`")
    procedural: ProceduralConfig = ProceduralConfig()
    up: Up = Field(
        default="auto",
        description="the files' up axis; auto: y for glTF and OBJ, z for PLY, STL and OFF, DAE says itself",
    )
    num_points: int = Field(16384, ge=1, description="points with colours and normals on the surface")
    num_edge_points: int = Field(default=0, ge=0, description="further points, on sharp edges")
    num_view_points: int = Field(default=0, ge=0, description="further points, only of what the views see")
    num_sdf: int = Field(
        16384, ge=1, description="points with signed distances, most of them near the surface"
    )
    max_mesh_faces: int = Field(
        default=100_000, ge=0, description="meshes up to this size are stored too, as truth for measures"
    )
    sheet_thickness: float = Field(
        0.02, gt=0, lt=0.5, description="given to open surfaces; the box is 2 wide"
    )
    shard_size: int = Field(default=64, ge=1, description="assets a shard: the unit of work and of restarts")
    splits: SplitFractions = SplitFractions()
    seed: int = Field(0, description="of every draw: cameras, lights, points")
    workers: int | None = Field(
        None, ge=0, description="processes; none: one a core; 0: this process, unguarded"
    )
    limits: Limits = Limits()
    filters: Filters = Filters()


@dataclass(frozen=True)
class ShardTask:
    """A fixed list of assets that become one tar."""

    path: AnyPath
    """Of the tar."""
    folder: Path
    """Of the assets."""
    sources: list[Source]
    config: DataConfig
    retry: bool = False
    """The shard is finished, and only what it left out is tried again."""


def quarantine_path(shard: AnyPath) -> AnyPath:
    """`000000.quarantine.jsonl` beside `000000.tar`."""
    return shard.with_suffix(".quarantine.jsonl")


def prepare_shard(task: ShardTask, report: Callable[[int], None]) -> Cost:
    """Prepares every asset of a shard and writes it; returns what that took.

    `report` is told each asset's position before its work begins.
    Safe to kill and to repeat anywhere: the manifest appears last, and the bytes are the same whoever writes.
    Raises UserError on a machine that lacks the renderer that the others use.
    """
    if task.config.renderer == "zbuffer":
        zbuffer.require()  # here, so that no asset's own process has to compile it
    _versions()
    if task.retry:
        return _retry_shard(task, report)
    failures, costs = [], []

    def samples() -> Iterator[dict[str, Any]]:
        for position, source in enumerate(task.sources):
            report(position)
            outcome, cost = prepare_asset(source, task.folder, task.config)
            costs.append(cost)
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                yield outcome
        write_atomic(quarantine_path(task.path), to_jsonl(failures))

    write_shard(task.path, samples())
    return sum(costs, Cost())


def _retry_shard(task: ShardTask, report: Callable[[int], None]) -> Cost:
    """Tries again what a finished shard left out. If any of it succeeds, the shard becomes what it would have
    been then at once: the other samples are copied, and each stands at its place."""
    kept = {row["key"] for row in read_manifest(task.path)["samples"]}
    outcomes, cost = {}, Cost()
    for position, source in enumerate(task.sources):
        if source.key not in kept:
            report(position)
            outcomes[source.key], more = prepare_asset(source, task.folder, task.config)
            cost += more
    ledger = to_jsonl(outcome for outcome in outcomes.values() if isinstance(outcome, Failure))
    gained = {key: outcome for key, outcome in outcomes.items() if not isinstance(outcome, Failure)}
    if gained:
        before = read_back(task.path)
        # From here on the shard is unfinished: a kill leaves it to be made anew, with a ledger of its own.
        manifest_path(task.path).unlink()
        write_atomic(quarantine_path(task.path), ledger)
        present = [source.key for source in task.sources if source.key in kept | gained.keys()]
        write_shard(task.path, (gained[key] if key in gained else next(before) for key in present))
    else:
        write_atomic(quarantine_path(task.path), ledger)
    return cost


def prepare_asset(source: Source, folder: Path, config: DataConfig) -> tuple[dict[str, Any] | Failure, Cost]:
    """The asset's sample for `write_shard`, or why there is none, from a process of its own.

    With `workers: 0` from this one, without any limit.
    """
    if config.workers == 0:
        start = time.process_time()
        outcome = try_asset(source, folder, config)
        return outcome, Cost(time.process_time() - start)
    limits, cost = config.limits, Cost()
    quota = Quota(
        limits.cpu_seconds, limits.wall_seconds, limits.memory_megabytes << 20, limits.max_megabytes << 20
    )
    for attempt in count(1):
        result, more = call(lambda report: try_asset(source, folder, config, report), quota)
        cost += more
        if not isinstance(result, Lost):
            return result, cost
        if attempt == TRIES or result.reason not in ("killed", "crash"):
            return _lost(source, folder, result), cost
    raise AssertionError("count() never ends")


def _lost(source: Source, folder: Path, lost: Lost) -> Failure:
    stderr = lost.stderr.replace(f"{folder}/", "")
    return Failure(source.path, lost.last_report or "load", lost.reason, lost.message, source.sha256, stderr)


def try_asset(
    source: Source, folder: Path, config: DataConfig, report: Callable[[str], None] = lambda stage: None
) -> dict[str, Any] | Failure:
    """The asset's sample with its members as bytes, or why there is none; `report` is told each stage."""
    stage, stderr = _Stage(report), ""
    try:
        sample = _prepare(source, folder, config, stage)
        return {
            name: value if name in ("__key__", "json") else encode_member(name, value)
            for name, value in sample.items()
        }
    except AssetError as error:
        reason, message = error.reason, error.message
    except MemoryError as error:
        reason, message = "memory", f"ran out of memory ({error})"
    except RecursionError as error:
        reason, message = "too_large", f"RecursionError {error}".strip()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Third-party geometry code raises anything on odd input, SystemExit and the panics of Rust libraries
        # (which are no Exception) included; one asset must not end a run of millions.
        reason, message = "unexpected", f"{type(error).__name__}: {error}"
        stderr = traceback.format_exc()[-STDERR_TAIL:]
    # Absolute paths would make the record depend on where the assets lie.
    message, stderr = (text.replace(f"{folder}/", "") for text in (message, stderr))
    return Failure(source.path, stage.name, reason, message[:500], source.sha256, stderr)


class _Stage:
    """Where in its preparation an asset is; each change is reported."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._name, self._report = "load", report

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name
        self._report(name)


def _prepare(source: Source, folder: Path, config: DataConfig, stage: _Stage) -> dict[str, Any]:
    limits = config.limits
    mesh = load_mesh(
        folder / source.path, root=folder, up=config.up, rotation=source.rotation, max_faces=limits.max_faces,
        max_bytes=limits.max_megabytes << 20, max_texture=limits.max_texture,
    )  # fmt: skip
    if content_digest(folder / source.path, limits.max_megabytes << 20, root=folder) != source.sha256:
        raise AssetError("changed", "was edited since it was listed; prepare the folder again")
    stage.name = "normalize"
    mesh, placement = normalize(mesh)
    mesh.warnings.extend(check_shape(mesh, config.filters))
    stage.name = "sdf"
    compiled = resolve(config.renderer) == "zbuffer"
    distance = signed_distance(mesh, thickness=config.sheet_thickness, compiled=compiled)
    mesh = mesh.flip(distance.turned)
    sdf_points, sdf = sdf_samples(mesh, distance, config.num_sdf, numpy_rng(config.seed, source.key, "sdf"))
    stage.name = "points"
    rng = numpy_rng(config.seed, source.key, "points")
    points, points_rgb, points_normal = surface_points(mesh, config.num_points, rng, hidden=distance.hidden)
    mesh.warnings.extend(check_colors(points_rgb, config.filters))
    stage.name = "views"
    views, view_members = shoot(mesh, config, source.key, config.seed)
    mesh.warnings.extend(check_views(is_covered(views.rgba), config.filters))
    sample = {
        "__key__": source.key,
        "json": _facts(source, config, mesh, placement, watertight=distance.watertight),
        "points.npy": points,
        "points_rgb.npy": points_rgb,
        "points_normal.npy": points_normal,
        "sdf_points.npy": sdf_points,
        "sdf.npy": sdf,
        **view_members,
    }
    if len(mesh.faces) <= config.max_mesh_faces:
        sample["mesh_vertices.npy"], sample["mesh_faces.npy"] = plain_triangles(mesh)
    if config.num_edge_points:
        rng = numpy_rng(config.seed, source.key, "edges")
        on_edges = edge_points(mesh, config.num_edge_points, rng, hidden=distance.hidden)
        sample["edge_points.npy"], sample["edge_normals.npy"] = on_edges
    if config.num_view_points:
        poses, matrices = view_members["cameras.npy"], view_members["intrinsics.npy"]
        seen = view_points(views, poses, matrices, config.num_view_points)
        sample["view_points.npy"], sample["view_points_rgb.npy"] = seen
    return sample


@functools.cache
def _versions() -> dict[str, str]:
    """Of the libraries that a sample's numbers depend on; looking them up takes milliseconds."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _facts(
    source: Source, config: DataConfig, mesh: Mesh, placement: Placement, *, watertight: bool
) -> dict[str, Any]:
    """Provenance: everything that a sample's numbers depend on, and nothing of the machine."""
    facts = asdict(source)
    del facts["key"]
    return facts | {
        "schema": SCHEMA,
        "renderer": renderer_facts(config, source.key, config.seed),
        "versions": _versions(),
        "warnings": source.warnings + mesh.warnings,
        "watertight": watertight,
        "num_faces": len(mesh.faces),
        "centre": placement.centre.tolist(),
        "scale": placement.scale,
    }
