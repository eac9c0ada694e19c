"""One object as it is judged: pictures of it as feature vectors, points on its surface, whether it can be
printed.

All objects go the same way, ours, references and other systems': the loader and normaliser of data
preparation (longest side 1.9, centred), its light and renderer, `views` fixed cameras. There are two kinds of
picture, `shaded` (lit, with colours) and `normals` (of surfaces in world axes, colours left out), both on
white; networks of points see a coloured cloud (`POINTS`) that is denser than the one that distances are of.
An object without a surface is white pictures, one point at the centre, and a black cloud of it.

Looks are kept by what they depend on: the file's content, how it is looked at, and the networks' digests. A
3D file is read in a process of its own, so that a hostile one costs itself alone.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image
from pydantic import Field

from data_prep.failures import AssetError
from data_prep.formats.load import Up, load_mesh
from data_prep.geometry.farthest import farthest_first
from data_prep.geometry.normalize import normalize
from data_prep.geometry.points import sample_surface
from data_prep.isolation import Lost, Quota, call
from data_prep.mesh import Mesh, base_color, plain_triangles
from data_prep.render.views import render_views
from data_prep.sources.content import content_digest
from eval.backbones import MOST_POINTS, Backbone, BackboneConfig, load_backbone
from eval.folders import Item
from eval.printable import PRINTABLE, printability
from shapeloom.color import linear_to_srgb
from shapeloom.config import Config
from shapeloom.pictures import on_white
from shapeloom.seed import numpy_rng
from shapeloom.storage import file_digest, write_atomic
from shapeloom.surface_metrics import surface_scores
from shapeloom.surfaces import Surface
from shapeloom.viewpoints import fitting_distance, intrinsics, sphere

KINDS = ("shaded", "normals")
POINTS = "points"
"""What is seen beside pictures, by networks of points."""
VERSION = "2"
"""Of what a look is: raised, kept ones are made anew."""
FOV_DEGREES = 40.0
THUMB = 128
OVERSAMPLE = 4
QUOTA = Quota(cpu_seconds=300, wall_seconds=1800.0, memory_bytes=4 << 30, file_bytes=1 << 30)


class LookConfig(Config):
    """How every object is looked at."""

    views: int = Field(
        8, ge=1, description="cameras, evenly over the sphere from 35 degrees below to 75 above"
    )
    size: int = Field(256, ge=16, description="side of the pictures, pixels")
    supersample: int = Field(2, ge=1, le=4, description="n x n samples at edges")
    points: int = Field(2048, ge=16, description="of each cloud, farthest first")
    surface_points: int = Field(16384, ge=100, description="on surfaces that have a truth")
    up: Up = Field("auto", description="the files' up axis, as in data_prep")


@dataclass(frozen=True)
class Look:
    """One object, judged."""

    features: dict[str, Float32[ndarray, "views features"]]
    """Of each network's digest and kind of picture, as "DIGEST shaded", or "DIGEST points" with one vector;
    those that there are pictures or points of."""
    points: Float32[ndarray, "points 3"]
    facts: dict[str, float]
    """PRINTABLE as 0 or 1, and SURFACE_SCORES where there is a truth; none of an object of pictures alone."""
    fault: str
    """Why it is empty; "": it isn't."""


@dataclass(frozen=True)
class Task:
    """An object to look at, and where its look is kept."""

    item: Item
    config: LookConfig
    backbones: tuple[BackboneConfig, ...]
    path: Path
    is_guarded: bool = True
    """Whether its file is read in a process of its own."""

    @property
    def num_points(self) -> int:
        """Of the largest cloud that a network sees; 0: none sees any."""
        return max((load_backbone(each).num_points for each in self.backbones), default=0)


def make_task(
    item: Item, config: LookConfig, backbones: tuple[BackboneConfig, ...], cache: Path, *, is_guarded: bool
) -> Task:
    """Returns what `look` makes of an object; the place that it is kept follows from its content."""
    parts = [VERSION, config.model_dump_json(), *(load_backbone(each).digest for each in backbones)]
    parts += _digests(item)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Task(item, config, backbones, cache / key[:2] / f"{key}.npz", is_guarded)


def _digests(item: Item) -> list[str]:
    """What the object is; the reason where its files can't be read."""
    try:
        own = content_digest(item.mesh, root=item.root) if item.mesh is not None else "no mesh"
    except AssetError as error:
        own = f"{error.reason}: {error.message}"
    turned = [] if item.up is None and item.rotation is None else [f"{item.up} {item.rotation}"]
    truth = _digests(item.truth) if item.truth is not None else ["no truth"]
    return [own, *truth, *(file_digest(path) for path in item.pictures), *turned]


# ---------------------------------------------------------------- looking


@dataclass(frozen=True)
class _Seen:
    """What of an object needs no network."""

    pictures: dict[str, UInt8[ndarray, "views size size 3"]]
    points: Float32[ndarray, "points 3"]
    facts: dict[str, float]
    fault: str = ""
    cloud: Float32[ndarray, "num 6"] | None = None
    """Positions and sRGB in [0, 1], farthest first; none: not asked for, or an object of pictures."""


def look(task: Task) -> None:
    """Looks at an object and keeps that."""
    seen = _see_files(task.item, task.config) if task.item.pictures else _see_mesh(task)
    arrays: dict[str, ndarray] = {"points": seen.points, "fault": np.array(seen.fault)}
    for config in task.backbones:
        network = load_backbone(config)
        for kind, given in _given(network, seen).items():
            arrays[f"features/{network.digest} {kind}"] = network(given)
    arrays |= {f"facts/{name}": np.array(value) for name, value in seen.facts.items()}
    shown = [pictures[len(pictures) // 2] for pictures in seen.pictures.values()]
    small = [np.asarray(Image.fromarray(picture).resize((THUMB, THUMB))) for picture in shown]
    arrays["thumbs"] = np.hstack(small)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_atomic(task.path, file.getvalue())


def _given(network: Backbone, seen: _Seen) -> Mapping[str, ndarray]:
    """What a network is shown, by kind."""
    if not network.num_points:
        return seen.pictures
    return {} if seen.cloud is None else {POINTS: seen.cloud[None, : network.num_points]}


def read_thumbs(path: Path) -> UInt8[ndarray, "height width 3"]:
    """Returns a view of each kind, side by side, of a look that was kept."""
    with np.load(path) as file:
        return file["thumbs"]


def read_look(path: Path) -> Look:
    """Returns a look that was kept."""
    with np.load(path) as file:
        named = {name: file[name] for name in file.files if name != "thumbs"}
    features = {n.removeprefix("features/"): a for n, a in named.items() if n.startswith("features/")}
    facts = {n.removeprefix("facts/"): float(a) for n, a in named.items() if n.startswith("facts/")}
    return Look(features, named["points"], facts, str(named["fault"]))


def _see_mesh(task: Task) -> _Seen:
    num_points = task.num_points  # before the guarded call, so that it loads no network
    if task.item.mesh is None:
        return _nothing(task, "missing: there is no such file")
    if not task.is_guarded:
        return _try_mesh(task, num_points)
    result, _ = call(lambda _: _try_mesh(task, num_points), QUOTA)
    return _nothing(task, f"{result.reason}: {result.message}") if isinstance(result, Lost) else result


def _try_mesh(task: Task, num_points: int) -> _Seen:
    item = task.item
    try:
        mesh = _load(item, task.config)
    except AssetError as error:
        return _nothing(task, f"{error.reason}: {error.message}")
    return see(mesh, task.config, truth=item.truth, num_points=num_points)


def _load(item: Item, config: LookConfig) -> Mesh:
    assert item.mesh is not None
    up = item.up or config.up
    return normalize(load_mesh(item.mesh, root=item.root, up=up, rotation=item.rotation))[0]


def see(mesh: Mesh, config: LookConfig, *, truth: Item | None = None, num_points: int = 0) -> _Seen:
    """Returns pictures, points and facts of a normalised mesh, and a cloud of `num_points` for networks."""
    fov = np.radians(FOV_DEGREES)
    poses = sphere(config.views, seed=0, distance=fitting_distance(fov))
    matrix = intrinsics(fov, config.size, config.size)
    views = render_views(mesh, poses, matrix, size=config.size, supersample=config.supersample)
    normals = np.where(views.normal.any(axis=-1, keepdims=True), views.normal, np.uint8(255))
    pictures = {"shaded": on_white(views.rgba), "normals": normals}
    face, weights = sample_surface(mesh, OVERSAMPLE * config.points, numpy_rng("clouds"))
    points = np.einsum("nc,ncd->nd", weights, mesh.triangles[face]).astype(np.float32)
    vertices, faces = plain_triangles(mesh)
    whole = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    facts = {name: float(holds) for name, holds in printability(vertices, whole).items()}
    if truth is not None:
        facts |= _scores(Surface.of_mesh(mesh.vertices, mesh.faces, num=config.surface_points), truth, config)
    cloud = coloured_cloud(mesh, num_points) if num_points else None
    return _Seen(pictures, points[farthest_first(points, config.points)], facts, cloud=cloud)


def coloured_cloud(mesh: Mesh, num: int) -> Float32[ndarray, "num 6"]:
    """Returns points of the surface, farthest first, with their unlit sRGB colours in [0, 1].

    They are chosen among as many whatever `num` is, so that fewer are the first of more. num: up to
    MOST_POINTS.
    """
    face, weights = sample_surface(mesh, OVERSAMPLE * MOST_POINTS, numpy_rng("coloured clouds"))
    points = np.einsum("nc,ncd->nd", weights, mesh.triangles[face])
    chosen = farthest_first(points, num)
    linear, _ = base_color(mesh, face[chosen], weights[chosen])
    colours = np.clip(linear_to_srgb(linear), 0, 1)
    return np.concatenate([points[chosen], colours], axis=1).astype(np.float32)


def _scores(surface: Surface, truth: Item, config: LookConfig) -> dict[str, float]:
    mesh = _load(truth, config)
    return surface_scores(surface, Surface.of_mesh(mesh.vertices, mesh.faces, num=config.surface_points))


def _nothing(task: Task, fault: str) -> _Seen:
    config, truth = task.config, task.item.truth
    white = np.full((config.views, config.size, config.size, 3), 255, np.uint8)
    facts = dict.fromkeys(PRINTABLE, 0.0)
    if truth is not None:
        facts |= _scores(Surface.of_mesh(np.zeros((0, 3)), np.zeros((0, 3))), truth, config)
    cloud = np.zeros((task.num_points, 6), np.float32) if task.num_points else None
    return _Seen(dict.fromkeys(KINDS, white), np.zeros((1, 3), np.float32), facts, fault, cloud)


def _see_files(item: Item, config: LookConfig) -> _Seen:
    """An object of pictures alone: whatever views its system made, on white, at the common size."""
    nothing = np.zeros((0, 3), np.float32)
    try:
        files = [_open(path, config.size) for path in item.pictures[: config.views]]
    except (OSError, ValueError) as error:
        white = np.full((config.views, config.size, config.size, 3), 255, np.uint8)
        return _Seen({"shaded": white}, nothing, {}, f"unreadable: {error}")
    fault = "blank: its pictures are of one colour" if np.ptp(np.stack(files)) == 0 else ""
    # Fewer are repeated in turn, so that every object counts alike.
    return _Seen(
        {"shaded": np.stack([files[i % len(files)] for i in range(config.views)])}, nothing, {}, fault
    )


def _open(path: Path, size: int) -> UInt8[ndarray, "size size 3"]:
    with Image.open(path) as picture:
        rgba = picture.convert("RGBA").resize((size, size), Image.Resampling.BOX)
    return on_white(np.asarray(rgba))
