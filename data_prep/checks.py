"""Looking at a prepared dataset: is every byte what its manifest says, and what is in it."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.failures import from_jsonl
from shapeloom.box import ASSET_HALF_SIZE
from shapeloom.config import UserError
from shapeloom.pictures import on_white
from shapeloom.shards import AssetSample, AssetShards, decode_member, read_manifest
from shapeloom.storage import AnyPath, file_digest


def verify(folder: AnyPath) -> list[str]:
    """Everything that is wrong with a dataset, a line each; nothing for a sound one.

    Checks that all that was found is accounted for, every shard's sha256, and each sample: that its members
    decode, hold finite numbers, and keep the contract of shapes, ranges and frames.
    Raises UserError if `folder` is no finished dataset.
    """
    shards = AssetShards(folder, checked=False)
    problems = list(shards.problems)
    for path in shards.shards:
        if file_digest(path) != read_manifest(path)["sha256"]:
            problems.append(f"{path.name}: its bytes are not those of its manifest")
    counts = Counter(row.key for row in shards.rows)
    problems += [f"{key}: {count} samples have this key" for key, count in counts.items() if count > 1]
    quarantine = from_jsonl((folder / "quarantine.jsonl").read_text())
    both = counts.keys() & {failure.id for failure in quarantine if failure.stage != "sources"}
    problems += [f"{key}: is in a shard and in quarantine.jsonl" for key in sorted(both)]
    for index, row in enumerate(shards.rows):
        place = f"{shards.shards[row.shard].name}: {row.key}"
        try:
            for problem in _check_row(shards, index):
                problems.append(f"{place}: {problem}")
        except Exception as error:  # whatever a damaged member makes a decoder raise
            problems.append(f"{place}: {type(error).__name__}: {error}")
    return problems


def _check_row(shards: AssetShards, index: int) -> Iterator[str]:
    row = shards.rows[index]
    for name, data in zip(row.members, shards.members(index, list(row.members)), strict=True):
        array = decode_member(name, data)
        if isinstance(array, np.ndarray) and not np.isfinite(array).all():
            yield f"{name} holds numbers that are not finite"
        if name.endswith(".png") and array.shape[:2] != (shards.resolution, shards.resolution):
            yield f"{name} has {array.shape[1]} x {array.shape[0]} pixels"
    facts = shards.facts(index)
    if facts.get("schema") != shards.header["schema"] or facts.get("sha256", "")[:16] != row.key:
        yield "its json is of another schema or asset"
    sample = shards.read(index, views=range(shards.num_views), depth=True, points=True, sdf=True)
    yield from check_sample(sample, shards.resolution)


def check_sample(sample: AssetSample, resolution: int) -> list[str]:
    """What of a fully read sample breaks the contract of shapes, ranges and frames."""
    rgba, depth, points = sample.rgba, sample.depth, sample.points
    assert rgba is not None and depth is not None and points is not None
    assert sample.sdf is not None and sample.sdf_points is not None and sample.points_normal is not None
    normals = np.linalg.norm(sample.points_normal / 127.0, axis=1)
    claims = {
        "views have another size": rgba.shape[1:] == (resolution, resolution, 4),
        "depth where there is no colour": not (depth[rgba[..., 3] == 0] > 0).any(),
        "no view shows anything": bool(rgba[..., 3].any()),
        "points leave the cube": bool(
            (np.abs(points) <= ASSET_HALF_SIZE + 1e-5).all()
        ),  # float32 of the scaled extent
        "normals are not unit vectors": bool((np.abs(normals - 1) < 0.02).all()),  # 8-bit rounding
        "SDF samples leave the box": bool((np.abs(sample.sdf_points) <= 1).all()),
        "it has no caption": any(sample.row.captions),
    }
    return [problem for problem, holds in claims.items() if not holds] + check_cameras(sample, resolution)


def check_cameras(sample: AssetSample, resolution: int) -> list[str]:
    """What is wrong with a sample's poses and intrinsics, given what an outside view of the cube needs."""
    poses, matrices = sample.cam_to_world.astype(float), sample.intrinsics.astype(float)
    rotation, eye = poses[:, :3, :3], poses[:, :3, 3]
    focal, centre = matrices[:, (0, 1), (0, 1)], matrices[:, :2, 2]
    last_rows = np.array([[0, 0, 0, 1.0]]), np.array([[0, 0, 1.0]])
    claims = {
        "a pose is not a rotation": np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-4),
        "a pose is mirrored": bool((np.linalg.det(rotation) > 0).all()),
        "a pose or intrinsic matrix has another last row": bool(
            (poses[:, 3] == last_rows[0]).all() and (matrices[:, 2] == last_rows[1]).all()
        ),
        "a camera stands within the cube": bool((np.abs(eye).max(axis=1) > ASSET_HALF_SIZE).all()),
        "a camera looks away from the cube": bool((np.einsum("vi,vi->v", rotation[:, :, 2], -eye) > 0).all()),
        "a focal length is not positive": bool((focal > 0).all()),
        "a principal point lies off its picture": bool(((centre >= 0) & (centre <= resolution)).all()),
    }
    return [problem for problem, holds in claims.items() if not holds]


def inspect_dataset(folder: AnyPath) -> str:
    """What a dataset holds: counts, splits, categories, captions, and what was left out and why."""
    shards = AssetShards(folder)
    categories = Counter(row.category or "(none)" for row in shards.rows).most_common(12)
    quarantine = from_jsonl((folder / "quarantine.jsonl").read_text())
    reasons = Counter(f"{failure.stage}: {failure.reason}" for failure in quarantine)
    lines = [
        f"{folder}: {len(shards)} assets, {len(shards.shards)} shards, digest {shards.digest[:16]}",
        f"splits: {_counts(shards.header['splits'])}",
        f"views: {shards.num_views} of {shards.resolution} x {shards.resolution}",
        f"categories: {_counts(dict(categories))}",
        f"captions: {sum(len(row.captions) for row in shards.rows)}, such as {shards.rows[0].captions[0]!r}",
        f"left out: {_counts(reasons) or 'nothing'}",
    ]
    lines += [f"  {f.path} [{f.stage}: {f.reason}] {f.message}" for f in quarantine[:20]]
    if len(quarantine) > 20:
        lines.append(f"  ... {len(quarantine) - 20} more in {folder}/quarantine.jsonl")
    return "\n".join(lines)


def inspect_asset(folder: AnyPath, key: str, picture: Path | None = None) -> str:
    """One asset's provenance and its members' shapes and ranges; to `picture` views on white, depth below.

    `key` may be the start of a key. Raises UserError when it fits no asset or several.
    """
    shards = AssetShards(folder)
    found = [index for index, row in enumerate(shards.rows) if row.key.startswith(key)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} assets of {folder} have a key that starts with {key!r}; one is needed."
        )
    names = sorted(shards.rows[found[0]].members)
    lines = [json.dumps(shards.facts(found[0]), indent=2, ensure_ascii=False)]
    for name, data in zip(names, shards.members(found[0], names), strict=True):
        array = decode_member(name, data)
        if isinstance(array, np.ndarray):
            shape = " x ".join(map(str, array.shape))
            lines.append(
                f"{name:18} {array.dtype!s:8} {shape:16} {array.min():10.5g} to {array.max():<10.5g}"
                f" {len(data):>9,} bytes"
            )
    if picture is not None:
        sample = shards.read(found[0], views=range(min(shards.num_views, 8)), depth=True)
        Image.fromarray(contact_sheet(sample)).save(picture)
        lines.append(f"picture: {picture}")
    return "\n".join(lines)


def contact_sheet(sample: AssetSample) -> np.ndarray:
    """uint8 [2 * height, views * width, 3]: the read views on white above their depth, near is bright."""
    assert sample.rgba is not None and sample.depth is not None
    hit = sample.depth > 0
    low, high = sample.depth[hit].min(initial=np.inf), sample.depth.max(initial=0)
    near = np.where(hit, 255 - 200 * (sample.depth - low) / max(high - low, 1e-6), 0).astype(np.uint8)
    rows = [
        np.concatenate(list(on_white(sample.rgba)), axis=1),
        np.concatenate(list(near), axis=1)[..., None].repeat(3, axis=2),
    ]
    return np.concatenate(rows)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
